"""`unfrozen_parameters` read as Axolotl reads them, and as core files."""

import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from trace_transfer.core_sets.importing import import_patterns
from trace_transfer.core_sets.selection import reselect
from trace_transfer.core_sets.trainer_settings import Pattern, mask_of_patterns, read_patterns
from trace_transfer.errors import ArtefactError
from trace_transfer.formats import read_any
from trace_transfer.records import to_json

# As Spectrum writes them: names of modules, by kind of layer, the best first.
SPECTRUM = """\
unfrozen_parameters:
- ^lm_head.weight$
- ^model.embed_tokens.weight$
# input_layernorm layers
- model.layers.0.input_layernorm
# mlp.down_proj layers
- model.layers.3.mlp.down_proj
- model.layers.1.mlp.down_proj
# self_attn.q_proj layers
- model.layers.2.self_attn.q_proj
"""
SHAPES = {"m.1.q.weight": (4, 2), "m.1.q.bias": (4,), "m.10.q.weight": (4, 2), "head.weight": (6, 2)}


class Small(torch.nn.Module):
    """A module with the names above."""

    def __init__(self):
        super().__init__()
        self.m = torch.nn.ModuleDict(
            {"1": torch.nn.ModuleDict({"q": torch.nn.Linear(2, 4)}),
             "10": torch.nn.ModuleDict({"q": torch.nn.Linear(2, 4, bias=False)})}
        )  # fmt: skip
        self.head = torch.nn.Linear(2, 6, bias=False)


def write(tmp_path, text):
    file = tmp_path / "list.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def mask(*patterns):
    return mask_of_patterns([Pattern.parse(one) for one in patterns], SHAPES).parts


PATTERNS = st.sampled_from(
    ["m.1", "m.1.q.weight", "^m.10.q.weight$", "m.[0-9]+.q", "head", "^head.weight$", "m.+q", ".*"]
)
ROWS = st.sampled_from(["", "[0:2]", "[1:4]", "[3]", "[2:]", "[:3]", "[:]", "[]", "[4:6]", "[0:9]", "[3:3]"])


@given(st.lists(st.tuples(PATTERNS, ROWS).map("".join), min_size=1, max_size=4))
def test_it_is_read_as_axolotl_reads_it(texts):
    """Axolotl's own code on a module; the rows from the gradients that its hooks let through."""
    from axolotl.utils.freeze import freeze_layers_except

    module = Small()
    try:
        freeze_layers_except(module, texts)
    except ValueError:
        with pytest.raises((ArtefactError, ValueError), match=r"rows|matches none"):
            mask(*texts)
        return
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (3 * parameter).sum().backward()
            rows = parameter.grad.reshape(len(parameter), -1).any(dim=1).nonzero().flatten().tolist()
            found[name] = rows
    matched = [any(re.match(Pattern.parse(text).regex, name) for name in SHAPES) for text in texts]
    if not all(matched):
        with pytest.raises(ArtefactError, match="matches none of the 4 names"):
            mask(*texts)
        return
    ours = {name: list(range(SHAPES[name][0])) if part is None else part.indices for name, part in mask(*texts).items()}
    assert ours == found


def test_a_spectrum_list_becomes_a_core_file(tiny, tmp_path):
    core = import_patterns(write(tmp_path, SPECTRUM), tiny("llama"), "chat", made_by="spectrum")
    assert sorted(parameter.name for parameter in core.core) == [
        "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
    ]  # fmt: skip
    assert len(core.parameters) == 39
    assert (core.task, core.method.name, core.method.unit, core.method.ratio) == ("chat", "imported", "tensors", 6 / 39)
    assert core.method.model_extra == {"made_by": "spectrum", "imported_from": "list.yaml"}
    down = next(p for p in core.parameters if p.name == "model.layers.1.mlp.down_proj.weight")
    assert (down.component, down.layer, down.score) == ("mlp.down", 1, 1.0)
    file = tmp_path / "chat.core.json"
    file.write_text(to_json(core), encoding="utf-8")
    assert read_any(file) == core
    assert reselect(file, None, None).core == core.core


def test_rows_become_two_entries(tiny, tmp_path):
    text = "base_model: x\nunfrozen_parameters: ['^model.layers.0.self_attn.qkv_proj.weight$[10:20]', 'lm_head']\n"
    core = import_patterns(write(tmp_path, text), tiny("phi3"), "chat")
    parts = {p.rows: p for p in core.parameters if "layers.0.self_attn.qkv_proj" in p.name}
    rows = next(iter(parts.values())).shape[0]
    assert {key: part.core for key, part in parts.items()} == {((10, 20),): True, ((0, 10), (20, rows)): False}
    assert parts[((10, 20),)].component == "attention.query"
    assert parts[((0, 10), (20, rows))].component == "attention.query+attention.key+attention.value"
    assert core.method.unit == "rows"
    assert core.method.ratio == pytest.approx(core.ratio_of_elements)
    assert sum(p.num_elements for p in core.parameters) == core.model.num_elements


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unfrozen_parameters: model.layers\n", "found none"),
        (
            "unfrozen_parameters: ['a(b', 3, '', 'head[4:2]']\n",
            r"(?s)- entry 1, 'a\(b': not a regular expression: .*- entry 2, 3: not a name.*- entry 3, '': not a name"
            r".*- entry 4, 'head\[4:2\]': its rows \[4:2\] end before they begin",
        ),
    ],
)
def test_bad_files_are_one_clear_message(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_patterns(file)
    assert str(caught.value).startswith(f"{file}:")


def test_an_alias_of_a_tied_tensor_is_told(tiny, tmp_path):
    """Spectrum's lists begin with the head."""
    with pytest.raises(ArtefactError, match=r"\^lm_head.weight\$: tied to model\.embed_tokens\.weight; name that"):
        import_patterns(write(tmp_path, SPECTRUM), tiny("qwen2"), "chat")
