"""Rules files as text: what is refused, with all problems at once and the line of each."""

import pytest
from transformers import LlamaConfig

from tests.families.written import LLAMA, PHI3, TINY, TINY_LLAMA, TINY_PHI3, mine, misfits, problems_of, write
from trace_transfer.errors import RulesError
from trace_transfer.families.application import apply_family
from trace_transfer.families.parsing import default_role
from trace_transfer.families.registry import folded_name, load_families, rules_files
from trace_transfer.models.sources import read_inventory

BROKEN = """\
family: mine
model_types: [mine]
layres: model.layers.{layer}
components:
  attention.querry: [self_attn.q_proj.weight]
  attention.key: [self_attn.k_proj.weight, self_attn.k_proj_2.weight]
  attention.value: []
  attention.output: {member: [self_attn.o_proj.weight]}
  attention.key: [self_attn.k_proj.weight]
  mlp.gate: self_attn.o_proj.weight
  mlp.up:
    - {name: mlp.up.weight, rows: [0, hidden_size / 2]}
    - {name: mlp.up.bias, rows: [0]}
  mlp.down:
    - {name: mlp.w.weight, rows: {every: 3, form: 0, to: 1}}
    - {name: mlp.w.bias, rows: [0, 1], columns: [0, 1]}
    - {role: bias}
    - "model.layers.{layer}.mlp.x"
    - mlp.*.weight
  head: [lm_head.weight]
  norm.pre_mlp: {members: [x.weight], expand: 3}
outside:
  embedding: [7]
sizes:
  2x: hidden_size
  q: [hidden_size, "a b"]
exclude:
  - {name: "a.{lyer}.b", reason: why}
  - {name: a.b}
  - nonsense
"""


def test_all_problems_of_a_file_at_once(tmp_path):
    assert problems_of(write(tmp_path, BROKEN)) == [
        "mine.yaml:1: 'layer:' is missing; expected it, or 'extends:' of a family with it",
        "mine.yaml:3: the file: unknown key 'layres'; did you mean 'layer'?",
        "mine.yaml:5: components: unknown component 'attention.querry'; did you mean 'attention.query'?",
        "mine.yaml:6: attention.key: 'self_attn.k_proj.weight' (line 6) and 'self_attn.k_proj_2.weight' have the same "
        "role 'weight'; tell them apart with {name: …, role: …}",
        "mine.yaml:7: attention.value: the list is empty",
        "mine.yaml:8: attention.output: 'members:' is missing; expected a list of names",
        "mine.yaml:8: attention.output: unknown key 'member'; did you mean 'members'?",
        "mine.yaml:9: components: 'attention.key' stands here a second time (first at line 6)",
        "mine.yaml:10: mlp.gate: found 'self_attn.o_proj.weight', expected a list",
        "mine.yaml:12: mlp.up: rows: 'hidden_size / 2' holds 'hidden_size / 2', which is not allowed (divide integers "
        "with //); allowed are integers, names from the config, dots, + - * // and parentheses",
        "mine.yaml:13: mlp.up: rows: found a list, expected [from, to] or {every: n, from: a, to: b}",
        "mine.yaml:15: mlp.down: rows: from missing; expected {every: n, from: a, to: b}",
        "mine.yaml:15: mlp.down: rows: unknown key 'form'; did you mean 'from'?",
        "mine.yaml:16: mlp.down: a part has one of 'rows:', 'columns:' and 'depth:'; found 'rows:' and 'columns:'",
        "mine.yaml:17: mlp.down: 'name:' is missing in a member",
        "mine.yaml:18: mlp.down: 'model.layers.{layer}.mlp.x' holds {layer}; names under 'components:' start below "
        "'layer:', and no name under 'outside:' has a layer",
        "mine.yaml:19: mlp.down: 'mlp.*.weight' is not a whole parameter name (letters, digits, _ and dots)",
        "mine.yaml:20: components: 'head' belongs under 'outside:'",
        "mine.yaml:21: norm.pre_mlp: expand: found 3 (int), expected true or false",
        "mine.yaml:23: embedding: found 7 (int), expected a text",
        "… and 5 more",
    ]


def test_the_rest_of_them(tmp_path):
    text = LLAMA.replace("family: llama", "family: my family").replace("[llama]", "llama")
    text = text.replace("model.layers.{layer}", "model.layers") + (
        "sizes:\n  2x: hidden_size\n  q: [hidden_size, 'a b']\n"
        "exclude:\n  - {name: 'a.{lyer}.b', reason: why}\n  - {name: a.b}\n  - nonsense\n"
    )
    assert problems_of(write(tmp_path, text)) == [
        "mine.yaml:3: family: found 'my family', expected one word of letters, digits and _ . -",
        "mine.yaml:4: model_types: found 'llama', expected a list",
        "mine.yaml:5: layer: found 'model.layers', expected a module path that ends in .{layer}",
        "mine.yaml:21: sizes: '2x' cannot be used as a name in expressions",
        "mine.yaml:22: sizes: q: 'a b' is not an arithmetic expression; allowed are integers, names from the config, "
        "dots, + - * // and parentheses",
        "mine.yaml:24: exclude: 'a.{lyer}.b' is not a whole name; its only hole may be {layer}",
        "mine.yaml:25: exclude: expected {name: …, reason: …} or {module: …, reason: …}",
        "mine.yaml:26: exclude: found 'nonsense', expected a mapping",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [x", "mine.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n  - [x.bias?]", "mine.yaml:2: not valid YAML: expected ',' or ']', but got '?'; a name with '?' or "
         "'{layer}' inside [ ] or { } needs quotes"),
        ("", "mine.yaml:1: found nothing, expected a mapping with 'family:', 'layer:', 'components:' …"),
        ("- a", "mine.yaml:1: found a list, expected a mapping with 'family:', 'layer:', 'components:' …"),
        ("a:\n\tb: c", "mine.yaml:2: not valid YAML: found character '\\t' that cannot start any token; indent with "
         "spaces, not tabs"),
        ("a: b\n---\nc: d", "mine.yaml:2: not valid YAML: but found another document"),
    ],
)  # fmt: skip
def test_not_a_mapping(text, expected, tmp_path):
    assert problems_of(write(tmp_path, text)) == [expected]


def test_not_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"family: \xff")
    assert problems_of(path)[0].startswith("mine.yaml:1: not UTF-8 text (byte 8)")


def test_problems_of_several_files_come_together(tmp_path):
    first = write(tmp_path, "family: a\nmodel_types: [a]\nextends: lama\n", "a.yaml")
    second = write(tmp_path, "family: b\nmodel_types: [b]\nextends: c\n", "b.yaml")
    third = write(
        tmp_path, "family: c\nmodel_types: [b, c]\nextends: b\ncomponents:\n  norm.post_mlp: null\n", "c.yaml"
    )
    assert problems_of(first, second, third) == [
        "a.yaml:3: extends: there is no family 'lama'; did you mean 'llama'?",
        "b.yaml:3: extends: a circle: c → b → c",
        "c.yaml:1: model_type 'b' is also claimed by 'b' (b.yaml:1)",
        "c.yaml:3: extends: a circle: b → c → b",
        "c.yaml:5: 'norm.post_mlp: null' removes nothing: no family above 'c' has this component",
    ]


def test_two_files_of_one_family(tmp_path):
    first, second = write(tmp_path, mine(LLAMA), "a.yaml"), write(tmp_path, mine(LLAMA), "b.yaml")
    assert problems_of(first, second) == ["b.yaml:3: family 'mine' is also in a.yaml:3"]


def test_a_family_of_its_own_that_extends_itself(tmp_path):
    path = write(tmp_path, "family: mine\nmodel_types: [mine]\nextends: mine\n")
    assert problems_of(path)[0].startswith("mine.yaml:3: extends: there is no family 'mine'; ")


def test_one_name_in_two_components(tmp_path):
    text = mine(LLAMA).replace("[self_attn.o_proj.weight", "[self_attn.v_proj.weight")
    assert problems_of(write(tmp_path, text)) == [
        "mine.yaml:11: 'self_attn.v_proj.weight' is in two components: attention.value (mine.yaml:10) and "
        "attention.output; give both 'rows:' (or 'columns:', 'depth:') if each has a part of it, or 'shared: true' if "
        "it serves both"
    ]


def test_missing_files(tmp_path):
    with pytest.raises(RulesError, match=r"nowhere does not exist; expected a rules file, or a directory with"):
        load_families(tmp_path / "nowhere")
    with pytest.raises(RulesError, match=r"has no \*.yaml file; expected a rules file"):
        load_families(tmp_path)


# ---------------------------------------------------------------- applied to a model


def test_misfits_all_at_once(tmp_path):
    text = mine(LLAMA)
    text = text.replace("self_attn.k_proj.weight", "self_attn.kproj.weight").replace("  mlp.up: ", "  #")
    text = text.replace("model.norm.weight", "model.nrom.weight")
    text += "exclude:\n  - {name: model.nothing, reason: none}\n  - {name: lm_head.weight, reason: none}\n"
    assert misfits(text, TINY_LLAMA, tmp_path) == [
        "mine.yaml:9: attention.key: 'self_attn.kproj.weight' matches no parameter (close: 'self_attn.k_proj.weight'); "
        "correct it, or write 'self_attn.kproj.weight?' if some models of this family lack it",
        "mine.yaml:18: norm.final: 'model.nrom.weight' matches no parameter (close: 'model.norm.weight'); correct it, "
        "or write 'model.nrom.weight?' if some models of this family lack it",
        "mine.yaml:21: exclude: 'model.nothing' matches no parameter",
        "mine.yaml:22: exclude: 'lm_head.weight' is also in head (mine.yaml:19)",
        "mine.yaml:3: parameter 'model.layers.{layer}.self_attn.k_proj.weight' is in no component; add it to one, or "
        "exclude it with a reason (layers 0-1)",
        "mine.yaml:3: parameter 'model.layers.{layer}.mlp.up_proj.weight' is in no component; add it to one, or "
        "exclude it with a reason (layers 0-1)",
        "mine.yaml:3: parameter 'model.norm.weight' is in no component; add it to one, or exclude it with a reason",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows: [q, q + kv]", "rows: [q - 1, q + kv]",
         ["mine.yaml:13: 'model.layers.{layer}.self_attn.qkv_proj.weight' [128, 64] has an overlap [63, 64] of "
          "attention.query (mine.yaml:13) and attention.key (mine.yaml:15) (layers 0-1)"]),
        ("rows: [q, q + kv]", "rows: [q + 3, q + kv]",
         ["mine.yaml:13: 'model.layers.{layer}.self_attn.qkv_proj.weight' [128, 64] has a gap [64, 67] between "
          "attention.query (mine.yaml:13) and attention.key (mine.yaml:15) (layers 0-1)"]),
        ("q + 2*kv]", "q + kv + 2]",
         ["mine.yaml:13: 'model.layers.{layer}.self_attn.qkv_proj.weight' [128, 64] has a gap [98, 128] between "
          "attention.value (mine.yaml:17) and its end (layers 0-1)"]),
        ("q + 2*kv]", "q + 3*kv]",
         ["mine.yaml:17: attention.value: 'self_attn.qkv_proj.weight': rows [q + kv, q + 3*kv] is [96, 160], which is "
          "empty, reversed or outside of the 128 rows of shape [128, 64] (layers 0-1)"]),
        ("rows: [q, q + kv]", "columns: [0, 64]",
         ["mine.yaml:13: 'model.layers.{layer}.self_attn.qkv_proj.weight' [128, 64] is cut along rows and along "
          "columns: attention.query (mine.yaml:13) and attention.key (mine.yaml:15) and attention.value (mine.yaml:17) "
          "(layers 0-1)"]),
        ("rows: [q, q + kv]", "depth: [0, 64]",
         ["mine.yaml:15: attention.key: 'self_attn.qkv_proj.weight': depth [0, 64]: a tensor of shape [128, 64] has no "
          "depth (layers 0-1)"]),
        ("rows: [q, q + kv]", "rows: {every: 3, from: 0, to: 1}",
         ["mine.yaml:15: attention.key: 'self_attn.qkv_proj.weight': rows [0, 1] of every 3: blocks of 3 do not divide "
          "the 128 rows of shape [128, 64] (layers 0-1)"]),
        ("num_attention_heads * head_dim", "num_atention_heads * head_dim",
         ["mine.yaml:8: sizes: 'q' cannot be worked out: 'num_atention_heads' is not set in the config of phi3 (close: "
          "num_attention_heads)"]),
    ],
)  # fmt: skip
def test_parts_that_do_not_tile(old, new, expected, tmp_path):
    assert old in PHI3
    assert misfits(PHI3.replace(old, new, 1), TINY_PHI3, tmp_path) == expected


def test_wrong_layer_path(tmp_path):
    found = misfits(mine(LLAMA).replace("model.layers.{layer}", "model.h.{layer}"), TINY_LLAMA, tmp_path)
    assert "mine.yaml:3: found no parameter below 'model.h.{layer}', expected 0, 1, 2 …" in found


def test_layer_1_is_not_layer_10():
    config = LlamaConfig(**{**TINY, "num_hidden_layers": 12})
    anatomy = apply_family(load_families().families["llama"], read_inventory(config))
    assert anatomy.num_layers == 12
    assert [unit.name for unit in anatomy.units if unit.layer == 1 and unit.component == "mlp.up"] == [
        "model.layers.1.mlp.up_proj.weight"
    ]


# ---------------------------------------------------------------- whose rules


def test_extends_merges_overrides_and_removes(tmp_path):
    text = (
        "family: mine\nmodel_types: [mine]\nextends: llama\nlayer: model.h.{layer}\ncomponents:\n"
        "  mlp.gate: null\n  attention.query: {members: [self_attn.q.weight], expand: false}\n"
    )
    registry = load_families(write(tmp_path, text))
    family, llama = registry.families["mine"], registry.families["llama"]
    assert set(llama.components) - set(family.components) == {"mlp.gate"}
    assert family.components["mlp.up"] == llama.components["mlp.up"]
    assert [member.pattern for member in family.components["attention.query"].members] == ["self_attn.q.weight"]
    assert (family.components["attention.query"].expand, llama.components["attention.query"].expand) == (False, True)
    assert (family.layer_path, llama.layer_path) == ("model.h", "model.layers")
    assert family.outside == llama.outside


def test_own_family_replaces_the_shipped_one_and_may_extend_it(tmp_path):
    text = "family: llama\nmodel_types: [llama]\nextends: llama\ncomponents:\n  mlp.gate: null\n"
    registry = load_families(write(tmp_path, text))
    assert "mlp.gate" not in registry.for_model_type("llama").components
    assert registry.families["llama"] is registry.for_model_type("llama")
    assert "mlp.gate" in registry.for_model_type("mistral").components


def test_own_family_takes_over_a_model_type(tmp_path):
    registry = load_families(write(tmp_path, mine(LLAMA)))
    assert registry.for_model_type("llama").name == "mine"
    assert "llama" in registry.families


def test_directory_of_rules(tmp_path):
    write(tmp_path, mine(LLAMA).replace("[llama]", "[a]"), "a.yaml")
    write(tmp_path, "family: b\nmodel_types: [b]\nextends: mine\n", "b.yml")
    (tmp_path / "notes.txt").write_text("no rules", encoding="utf-8")
    assert [path.name for path in rules_files(tmp_path)] == ["a.yaml", "b.yml"]
    registry = load_families(tmp_path)
    assert registry.for_model_type("b").components == registry.for_model_type("a").components


def test_unknown_model_type_names_the_file_to_write():
    registry = load_families()
    inventory = read_inventory(TINY_LLAMA)
    with pytest.raises(RulesError, match=r"no rules file is for model_type 'mistral5'") as caught:
        registry.for_model_type("mistral5", inventory)
    text = str(caught.value)
    assert "`trace-transfer rules draft` with this model writes mistral5.yaml" in text
    assert "--rules mistral5.yaml" in text
    assert "The nearest family is 'mistral', whose rules know 12 of the 12 names below: start with 'extends: m" in text
    assert "    model.layers.{layer}.mlp.up_proj.weight  (2 times)\n" in text
    with pytest.raises(RulesError, match=r"The nearest family by name is 'mistral': try 'extends: mistral'"):
        registry.for_model_type("mistral5")


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("model.layers.3.mlp.experts.0.w1", "model.layers.{layer}.mlp.experts.{n}.w1"),
        ("model.norm.weight", "model.norm.weight"),
        ("h.12", "h.{layer}"),
    ],
)
def test_folded_name(name, folded):
    assert folded_name(name) == folded


@pytest.mark.parametrize(
    ("pattern", "role"),
    [
        ("self_attn.q_proj.weight", "weight"),
        ("self_attn.q_proj.bias", "bias"),
        ("self_attn.q_norm.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("ln_1.weight", "norm"),
        ("ln_1.bias", "bias"),
        ("ln_f.weight", "norm"),
        ("mlp.experts.gate_up_proj", "weight"),
        ("mlp.experts.gate_up_proj_bias", "bias"),
        ("self_attn.sinks", "weight"),
        ("self_attn.q_layernorm.norms.{n}.weight", "norm"),
        ("self_attn.q_layernorm.norms.3.bias", "bias"),
    ],
)
def test_default_role(pattern, role):
    assert default_role(pattern) == role


def test_roles_can_be_told_apart(tmp_path):
    text = mine(LLAMA).replace(
        "attention.value: [self_attn.v_proj.weight,",
        'attention.value: [self_attn.v_proj.weight, {name: "self_attn.v_extra.weight?", role: extra},',
    )
    family = load_families(write(tmp_path, text)).families["mine"]
    assert [member.role for member in family.components["attention.value"].members] == ["weight", "extra", "bias"]
    assert apply_family(family, read_inventory(TINY_LLAMA)).num_layers == 2
