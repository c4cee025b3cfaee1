"""Rules files as text: what is refused, with all problems at once and the line of each."""

import pytest

from tests.families.written import LLAMA, PHI3, TINY_LLAMA, TINY_PHI3, mine, misfits, problems_of, write
from trace_transfer.errors import RulesError
from trace_transfer.families.registry import load_families

BROKEN = """\
family: mine
model_types: [mine]
layres: model.layers.{layer}
components:
  attention.querry: [self_attn.q_proj.weight]
  attention.key: [self_attn.k_proj.weight, self_attn.k_proj_2.weight]
  attention.output: {member: [self_attn.o_proj.weight]}

  mlp.up:
    - {name: mlp.up.weight, rows: [0, hidden_size / 2]}
    - {name: mlp.up.bias, rows: [0]}
  mlp.down:
    - {name: mlp.w.weight, rows: {every: 3, form: 0, to: 1}}
    - {name: mlp.w.bias, rows: [0, 1], columns: [0, 1]}
    - mlp.*.weight
  head: [lm_head.weight]
  norm.pre_mlp: {members: [x.weight], expand: 3}
sizes:
  q: [hidden_size, "a b"]
exclude:
  - {name: a.b}
"""


def test_all_problems_of_a_file_at_once_each_with_its_line(tmp_path):
    problems = problems_of(write(tmp_path, BROKEN))
    expected = [
        (3, "layres: unknown key"), (5, "unknown component; allowed: norm.pre_attention"),
        (7, "'members:' is missing"), (7, "unknown key"), (10, "rows: to: 'hidden_size / 2' is not"),
        (11, "mlp.up: rows: found a list, expected [from, to] or {every: n, "), (13, "'from:' is missing"),
        (13, "form: unknown key"), (14, "'rows:' and 'columns:'"),
        (15, "found 'mlp.*.weight', String should match"), (16, "unknown component; allowed: norm.pre_attention"),
        (17, "norm.pre_mlp: expand: found the number 3, "), (19, "sizes: q: 'a b' is not an arithmetic expression"),
        (21, "'reason:' is missing"),
    ]  # fmt: skip
    assert [int(one.split(":")[1]) for one in problems] == [line for line, _ in expected]
    for problem, (_, words) in zip(problems, expected, strict=True):
        assert words in problem


def test_sizes_that_are_no_table(tmp_path):
    (problem,) = problems_of(write(tmp_path, "family: a\nmodel_types: [a]\nsizes: [hidden_size]\n"))
    assert problem.endswith(":3: sizes: found a list, Input should be a valid dictionary")


def test_problems_of_several_files_come_together(tmp_path):
    first = write(tmp_path, "family: a\nmodel_types: [a]\nextends: lama\n", "a.yaml")
    second = write(tmp_path, "family: b\nmodel_types: [b]\nextends: c\n", "b.yaml")
    third = write(
        tmp_path, "family: c\nmodel_types: [b, c]\nextends: b\ncomponents:\n  norm.post_mlp: null\n", "c.yaml"
    )
    unknown, *others = problems_of(first, second, third)
    assert unknown.startswith("a.yaml:3: extends: there is no family 'lama'; allowed: ")
    assert others == [
        "b.yaml:3: extends: a circle back to 'c'",
        "c.yaml:1: model_type 'b' is also claimed by 'b' (b.yaml:1)",
        "c.yaml:3: extends: a circle back to 'b'",
        "c.yaml:5: 'norm.post_mlp: null' removes nothing: no family above 'c' has this component",
    ]


# ---------------------------------------------------------------- applied to a model


def test_misfits_all_at_once(tmp_path):
    text = mine(LLAMA)
    text = text.replace("self_attn.k_proj.weight", "self_attn.kproj.weight").replace("  mlp.up: ", "  #")
    text = text.replace("model.norm.weight", "model.nrom.weight")
    text += "exclude:\n  - {name: model.nothing, reason: none}\n  - {name: lm_head.weight, reason: none}\n"
    found = misfits(text, TINY_LLAMA, tmp_path)
    assert [one.split(":")[1] for one in found] == ["9", "18", "21", "22", "3", "3", "3"]
    assert "'self_attn.kproj.weight' matches no tensor" in found[0]
    assert "tensor 'model.layers.{layer}.mlp.up_proj.weight' is in no component" in found[5]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows: [q, q + kv]", "rows: [q - 1, q + kv]", "has an overlap [63, 64] of attention.query (mine.yaml:13) and"),
        ("rows: [q, q + kv]", "rows: [q + 3, q + kv]", "has a gap [64, 67] between attention.query (mine.yaml:13) and"),
        ("q + 2*kv]", "q + 3*kv]", "is [96, 160], which is empty, reversed or outside of the 128 rows"),
        ("rows: [q, q + kv]", "columns: [0, 64]", "is cut along rows and along columns"),
        ("rows: [q, q + kv]", "depth: [0, 64]", "a tensor of shape [128, 64] has no depth"),
        ("rows: [q, q + kv]", "rows: {every: 3, from: 0, to: 1}", "blocks of 3 do not divide the 128 rows"),
        ("num_attention_heads * head_dim", "num_atention_heads * head_dim", "sizes: 'q' cannot be worked out"),
    ],
)
def test_parts_that_do_not_tile(old, new, expected, tmp_path):
    assert old in PHI3
    (found,) = misfits(PHI3.replace(old, new, 1), TINY_PHI3, tmp_path)
    assert expected in found


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


def test_unknown_model_type_names_what_writes_its_rules():
    with pytest.raises(RulesError, match=r"no rules file is for model_type 'mistral5' .there are") as caught:
        load_families().for_model_type("mistral5")
    assert "`trace-transfer rules draft`" in str(caught.value) and "--rules mistral5.yaml" in str(caught.value)
