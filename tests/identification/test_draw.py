"""Importance heatmaps: which tensor stands in which cell, as a page in a browser without network, as a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core_files import write_core
from tests.transfer.test_draw import needs_chromium, rendered
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.figures import write_html, write_png
from trace_transfer.formats import read_any
from trace_transfer.identification.draw import Cell, cells_of, figure

KINDS = {
    "input_layernorm.weight": "norm.pre_attention", "self_attn.q_proj.weight": "attention.query",
    "self_attn.k_proj.weight": "attention.key", "self_attn.v_proj.weight": "attention.value",
    "self_attn.o_proj.weight": "attention.output", "post_attention_layernorm.weight": "norm.pre_mlp",
    "mlp.gate_proj.weight": "mlp.gate", "mlp.up_proj.weight": "mlp.up", "mlp.down_proj.weight": "mlp.down",
}  # fmt: skip
LEFT = ["A-Q", "A-K", "A-V", "A-O", "M-G", "M-U", "M-D"]
Make = Callable[..., CoreFile]


def made(
    parameters: list[dict], num_layers: int, task: str = "math", family: str = "llama", **method: object
) -> CoreFile:
    parameters = sorted(parameters, key=lambda p: -(p.get("score") or -1))
    model = {
        "id": "someone/small", "family": family, "model_type": family, "num_layers": num_layers,
        "num_parameters": len(parameters), "num_elements": 10**9, "names_sha256": "0" * 64,
    }  # fmt: skip
    method = {"name": "lf", "ratio": 0.05, "alpha": 0.5, **method}
    return CoreFile.model_validate({"task": task, "model": model, "method": method, "parameters": parameters})


def llama(task: str = "math", num_layers: int = 4, shift: float = 0.0, **method: object) -> CoreFile:
    """Scores 1.00, 0.99, … from the first layer's first kind on; the best two and layer 2's q_proj are core."""
    parameters: list[dict] = [
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


@pytest.fixture
def scored(tiny, tmp_path: Path) -> Make:
    """The core file of a tiny model, in which the later tensors score higher."""

    def make(family: str) -> CoreFile:
        return read_any(write_core(tiny(family), tmp_path / f"{family}.core.json"), CoreFile)

    return make


def by_label(core: CoreFile) -> dict[tuple[int | None, str], Cell]:
    return {(layer, column.label): cell for (layer, column), cell in cells_of(core).items()}


# ---- which tensor stands where

FINAL = ["embed", "head", "final"]
FAMILIES = {
    "llama": (LEFT, ["LN-In", "LN-PA"], FINAL),
    "qwen2": (LEFT, ["LN-In", "LN-PA"], FINAL),
    "gemma3_text": (LEFT, ["LN-In", "Q-Norm", "K-Norm", "LN-OutA", "LN-PA", "LN-OutM"], FINAL),
    "phi3": (LEFT, ["LN-In", "LN-PA"], FINAL),
    "gpt2": ([label for label in LEFT if label != "M-G"], ["LN-In", "LN-PA"], ["embed", "pos", "head", "final"]),
}
PLACES = {
    "llama": {(3, "M-D"): ["model.layers.3.mlp.down_proj.weight"], (None, "head"): ["lm_head.weight"]},
    "qwen2": {(2, "A-V"): ["model.layers.2.self_attn.v_proj.weight", "model.layers.2.self_attn.v_proj.bias"]},
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
def test_each_tensor_of_a_family_has_its_cell(scored: Make, family: str) -> None:
    core, (projections, norms, bands) = scored(family), FAMILIES[family]
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


def test_what_is_of_no_known_component_is_named_and_not_drawn() -> None:
    core = llama()
    extra = [
        {"name": "model.layers.1.self_attn.q_proj.weight_scale", "shape": [1], "score": 9.0, "core": True},
        {"name": "model.layers.9.a", "shape": [1], "score": 0.0, "component": "attention.query", "layer": 9},
        {"name": "vision.tower", "shape": [1], "score": 0.0, "component": "excluded"},
        {"name": "strange", "shape": [1], "score": 0.0, "component": "mlp.shared", "layer": 1},
    ]
    dumped = [parameter.model_dump(exclude_none=True) for parameter in core.parameters]
    more = made([*dumped, *extra], 4)
    names = "model.layers.1.self_attn.q_proj.weight_scale*, model.layers.9.a, vision.tower, strange; * core"
    assert figure([more]).note.endswith(f"4 ({names})")
    assert "rank 13 of" in by_label(more)[1, "A-Q"].lines[1]  # those that score 9 and 3 come first


def test_a_cell_of_many_rows_shows_their_mean_and_core_share() -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    kinds = ["attention.query"] * 4 + ["attention.key"] * 2
    parameters: list[dict] = [
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
        "4 parts, mean score 1.5, 25.0% of the elements core", f"{name} [rows 12:16]",
        "score 3, rank 3 of 6, not core",
    )  # fmt: skip


def test_a_core_bias_is_a_mark_in_part() -> None:
    place = {"component": "mlp.up", "layer": 0}
    weight = {"name": "a.weight", "shape": [4, 4], "score": 0.25, **place}
    bias = {"name": "a.bias", "shape": [4], "score": 0.5, "core": True, **place}
    cell = by_label(made([weight, bias], 1))[0, "M-U"]
    assert cell.score == 0.25 and 0 < cell.mark < 1
    assert cell.lines == ("a.weight", "score 0.25, rank 2 of 2, not core", "a.bias", "score 0.5, rank 1 of 2, core")
    assert by_label(made([bias], 1))[0, "M-U"].score == 0.5


# ---- how core files are arranged


def test_a_row_per_task_a_column_per_length() -> None:
    cores = [
        llama("math", epochs=3),
        llama("code", epochs=1),
        llama("math", shift=0.5),
        llama("math", epochs=2, shift=-1),
    ]
    drawn = figure(cores)
    assert [row.name for row in drawn.rows] == ["math", "code"]
    for row in drawn.rows:
        assert [panel.title for panel in row.panels[::2]] == ["1 epoch", "2 epochs", "3 epochs"]
    assert [panel.note for panel in drawn.rows[1].panels[::2]] == [
        "",
        "no core file of 2 epochs",
        "no core file of 3 epochs",
    ]
    scores = [p.score for i in (0, 2, 3) for p in cores[i].parameters if p.name.startswith("model.layers.")]
    assert drawn.rows[0].scale == (min(scores), max(scores)), "of the layers of all lengths, without the embedding"
    assert drawn.subtitle == "lf (alpha 0.5), core: top 5 % of tensors"
    methods = figure([llama("math"), llama("math", name="cs", ratio=0.1)])
    assert [row.name for row in methods.rows] == ["math, lf", "math, cs"]
    assert methods.subtitle == "lf (alpha 0.5), core: top 5 % of tensors; cs, core: top 10 % of tensors"


def test_core_files_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="no core file is given"):
        figure([])
    other = llama("code")
    other = other.model_copy(update={"model": other.model.model_copy(update={"names_sha256": "1" * 64, "id": "other"})})
    with pytest.raises(UserError, match=r"of 2 models.*\n  - a, c: someone/small .*names 00000000\)\n  - b: other "):
        figure([llama("math"), other, llama("law")], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"give one:\n  - a, b: task math, method lf, 1 epoch"):
        figure([llama(epochs=None), llama(epochs=1)], ["a", "b"])
    with pytest.raises(UserError, match="a: no tensor is said to be of a known component"):
        figure([made([{"name": "x", "shape": [1], "score": 1.0}], 1, family="unheard")], ["a"])
    with pytest.raises(ArtefactError, match=r"math: method\.epochs is 'three', expected a number of epochs"):
        figure([llama(epochs="three")])


def test_no_scores_at_all_and_equal_scores() -> None:
    tensor = {"name": "model.layers.0.mlp.up_proj.weight", "shape": [2, 2], "component": "mlp.up", "layer": 0}
    assert figure([made([tensor], 1)]).rows[0].scale == (0.0, 1.0)
    low, high = figure([made([{**tensor, "score": 2.0}], 1)]).rows[0].scale
    assert low < 2 < high


# ---- the page


def several(num_layers: int = 32) -> list[CoreFile]:
    return [llama(task, num_layers, epochs=epochs) for task in ("math", "code") for epochs in (1, 2)]


def test_figure_holds_all_cells() -> None:
    cores = several(6)
    panel, cells = figure(cores).rows[1].panels[0], by_label(cores[2])
    layers, *bands = panel.cells
    for layer in range(6):
        for index, label in enumerate(LEFT):
            cell = cells[layer, label]
            assert (layers.values[layer, index], layers.ranks[layer, index]) == (cell.score, cell.rank)
            assert layers.texts[layer][index].split("\n")[1:] == list(cell.lines)
    assert layers.texts[2][0] == (
        "layer 2, A-Q (attention query)\nmodel.layers.2.self_attn.q_proj.weight\nscore 0.8733, rank 21 of 56, core"
    )
    assert [band.texts[0][0].split("\n")[0] for band in bands] == ["token embedding", "output head"]
    assert bands[1].texts[0][0].endswith("lm_head.weight\nno score")
    assert panel.marks[0].places.tolist() == [[0, 0], [0, 2]]


@needs_chromium
def test_buttons_show_the_other_task_and_ranks(tmp_path: Path) -> None:
    page = tmp_path / "importance.html"
    write_html(page, figure(several(24)))
    click = """
        document.querySelector('[data-choice="1"]').click();
        setTimeout(() => document.querySelectorAll(".updatemenu-button")[1].dispatchEvent(new Event("click")), 500)"""
    after = rendered(page, tmp_path, click)
    assert after.count('<path class="point') == 6
    assert re.findall(r'data-choice="(\w+)" aria-pressed="true"', after) == ["1"]
    assert ">A-Q</text>" in after and ">rank</text>" in after and ">score</text>" not in after


# ---- the picture


@pytest.mark.parametrize("num_layers", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_picture(tmp_path: Path, num_layers: int) -> None:
    from matplotlib.image import imread

    cores = [*several(num_layers), llama("x" * 120, num_layers, epochs=2)]
    cores = [c.model_copy(update={"model": c.model.model_copy(update={"id": "a/" + "y$^{$" * 40})}) for c in cores]
    for name in ("one.png", "same.png"):
        write_png(tmp_path / name, figure(cores))
    pixels = imread(tmp_path / "one.png")[..., :3]
    assert (pixels[:, [0, -1]] == 1).all() and (pixels[[0, -1]] == 1).all(), "something is cut off at the edge"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
