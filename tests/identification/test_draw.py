"""Importance heatmaps: which tensor stands in which cell, and how core files are arranged."""

import pytest

from tests.core_files import write_core
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.formats import read_any
from trace_transfer.identification.draw import cells_of, figure

KINDS = {
    "input_layernorm.weight": "norm.pre_attention", "self_attn.q_proj.weight": "attention.query",
    "self_attn.k_proj.weight": "attention.key", "self_attn.v_proj.weight": "attention.value",
    "self_attn.o_proj.weight": "attention.output", "post_attention_layernorm.weight": "norm.pre_mlp",
    "mlp.gate_proj.weight": "mlp.gate", "mlp.up_proj.weight": "mlp.up", "mlp.down_proj.weight": "mlp.down",
}  # fmt: skip
LEFT = ["A-Q", "A-K", "A-V", "A-O", "M-G", "M-U", "M-D"]


def made(parameters, num_layers, task="math", family="llama", **method):
    parameters = sorted(parameters, key=lambda p: -(p.get("score") or -1))
    model = {
        "id": "someone/small", "family": family, "model_type": family, "num_layers": num_layers,
        "num_parameters": len(parameters), "num_elements": 10**9, "names_sha256": "0" * 64,
    }  # fmt: skip
    method = {"name": "lf", "ratio": 0.05, "alpha": 0.5, **method}
    return CoreFile.model_validate({"task": task, "model": model, "method": method, "parameters": parameters})


def llama(task="math", num_layers=4, shift=0.0, **method):
    """Scores 1.00, 0.99, … from the first layer's first kind on; the best two and layer 2's q_proj are core."""
    parameters = [
        {"name": "model.embed_tokens.weight", "shape": [50, 8], "score": 3.0, "component": "embedding"},
        {"name": "model.norm.weight", "shape": [8], "score": 0.5, "component": "norm.final"},
        {"name": "lm_head.weight", "shape": [50, 8], "component": "head"},
    ]
    for layer in range(num_layers):
        for index, (kind, component) in enumerate(KINDS.items()):
            score = 1 - 0.01 * (layer * len(KINDS) + index) / num_layers * 4 + shift
            core = (layer, index) in ((0, 0), (0, 1), (2, 1))
            name, shape = f"model.layers.{layer}.{kind}", [8] if "norm" in kind else [8, 8]
            parameters.append({"name": name, "shape": shape, "score": score, "core": core, "component": component,
                               "layer": layer})  # fmt: skip
    return made(parameters, num_layers, task, **method)


def by_label(core):
    return {(layer, column.label): cell for (layer, column), cell in cells_of(core).items()}


# ---- which tensor stands where

FINAL = ["embed", "head", "final"]
FAMILIES = {
    "gemma3_text": (LEFT, ["LN-In", "Q-Norm", "K-Norm", "LN-OutA", "LN-PA", "LN-OutM"], FINAL),
    "phi3": (LEFT, ["LN-In", "LN-PA"], FINAL),
    "gpt2": ([label for label in LEFT if label != "M-G"], ["LN-In", "LN-PA"], ["embed", "pos", "head", "final"]),
}
PLACES = {
    "gemma3_text": {
        (1, "LN-OutA"): ["model.layers.1.post_attention_layernorm.weight"],
        (1, "LN-PA"): ["model.layers.1.pre_feedforward_layernorm.weight"],
        (1, "K-Norm"): ["model.layers.1.self_attn.k_norm.weight"],
    },
    "phi3": {(2, "A-K"): ["model.layers.2.self_attn.qkv_proj.weight"]},
    "gpt2": {
        (0, "A-V"): ["transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"],
        (None, "pos"): ["transformer.wpe.weight"],
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_of_a_family_has_its_cell(tiny, tmp_path, family):
    core, (projections, norms, bands) = read_any(write_core(tiny(family), tmp_path / "a.core.json")), FAMILIES[family]
    drawn = figure([core])
    panels = drawn.rows[0].panels
    assert [list((panel.x.ticks or {}).values()) for panel in panels] == [projections, norms]
    assert drawn.note == ""
    cells = by_label(core)
    inside = {(layer, label) for layer in range(core.model.num_layers) for label in projections + norms}
    assert set(cells) == inside | {(None, band) for band in bands}
    assert {name for cell in cells.values() for name in cell.lines[::2]} == {one.name for one in core.parameters}
    scores = {parameter.name: parameter.score for parameter in core.parameters}
    for place, names in PLACES[family].items():
        assert list(cells[place].lines[::2]) == names
        assert cells[place].score == scores[names[0]]


def test_what_is_of_no_known_component_is_named_and_not_drawn():
    core = llama()
    extra = [
        {"name": "model.layers.1.self_attn.q_proj.weight_scale", "shape": [1], "score": 9.0, "core": True},
        {"name": "model.layers.9.a", "shape": [1], "score": 0.0, "component": "attention.query", "layer": 9},
        {"name": "vision.tower", "shape": [1], "score": 0.0, "component": "excluded"},
        {"name": "strange", "shape": [1], "score": 0.0, "component": "mlp.shared", "layer": 1},
    ]
    dumped = [parameter.model_dump(exclude_none=True) for parameter in core.parameters]
    more = made([*dumped, *extra], 4)
    names = "model.layers.1.self_attn.q_proj.weight_scale, model.layers.9.a, vision.tower, strange"
    assert figure([more]).note.endswith(f"4 ({names})")
    assert "rank 13 of" in by_label(more)[1, "A-Q"].lines[1]  # those that score 9 and 3 come first


def test_a_cell_of_many_rows_shows_their_mean_and_core_share():
    name = "model.layers.0.self_attn.qkv_proj.weight"
    kinds = ["attention.query"] * 4 + ["attention.key"] * 2
    parameters = [
        {"name": name, "shape": [24, 4], "rows": [[4 * i, 4 * i + 4]], "score": float(i), "core": i in (1, 4, 5),
         "component": kind, "layer": 0}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    cells = by_label(made(parameters, 1, family="phi3", unit="rows"))
    query, key = cells[0, "A-Q"], cells[0, "A-K"]
    assert (query.score, query.mark) == (1.5, 0.25)
    assert (key.score, key.mark) == (4.5, 1.0)
    assert query.rank == pytest.approx((0 + 1 / 5 + 2 / 5 + 3 / 5) / 4)
    assert query.lines[:3] == (
        "4 parts, mean score 1.5, 25.0% of the parameters core", f"{name} [rows 12:16]",
        "score 3, rank 3 of 6, not core",
    )  # fmt: skip


# ---- how core files are arranged


def test_a_row_per_task_a_column_per_length():
    cores = [llama("math", epochs=3), llama("code"), llama("math", shift=0.5), llama("math", epochs=2, shift=-1)]
    drawn = figure(cores)
    assert [row.name for row in drawn.rows] == ["math", "code"]
    for row in drawn.rows:
        assert [panel.title for panel in row.panels[::2]] == ["1 epoch", "2 epochs", "3 epochs"]
    notes = ["", "no core file of 2 epochs", "no core file of 3 epochs"]
    assert [panel.note for panel in drawn.rows[1].panels[::2]] == notes
    scores = [p.score for i in (0, 2, 3) for p in cores[i].parameters if p.name.startswith("model.layers.")]
    assert drawn.rows[0].scale == (min(scores), max(scores)), "of the layers of all lengths, without the embedding"
    assert drawn.subtitle == "lf (alpha 0.5), core: top 5 % of tensors"
    methods = figure([llama("math"), llama("math", name="cs", ratio=0.1)])
    assert [row.name for row in methods.rows] == ["math, lf", "math, cs"]
    assert methods.subtitle == "lf (alpha 0.5), core: top 5 % of tensors; cs, core: top 10 % of tensors"


def test_core_files_that_do_not_fit_together():
    other = llama("code")
    other = other.model_copy(update={"model": other.model.model_copy(update={"names_sha256": "1" * 64, "id": "other"})})
    for cores, told in (
        ([], "no core file is given"),
        ([llama("math"), other], "of several models(.|\n)*code: other"),
        ([llama(epochs=None), llama(epochs=1)], r"give one:\n  - task math, method lf, 1 epoch"),
        ([made([{"name": "x", "shape": [1], "score": 1.0}], 1, family="unheard")], "no tensor is said to be"),
    ):
        with pytest.raises(UserError, match=told):
            figure(cores)
