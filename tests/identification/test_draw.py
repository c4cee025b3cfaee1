"""Importance heatmaps: which tensor stands in which cell, as a page in a browser without network, as a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.core_files import write_core
from tests.transfer.test_draw import needs_chromium, plots_in, rendered
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.figures import write_html, write_png
from trace_transfer.formats import read_any
from trace_transfer.identification.draw import figure
from trace_transfer.identification.importance import Cell, Entry, Grid, describe, importance_of

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


def cells_by_label(grid: Grid) -> dict[tuple[int | None, str], Cell]:
    return {(layer, column.label): cell for (layer, column), cell in grid.cells.items()}


def names_in(cell: Cell) -> list[str]:
    return [entry.tensor.name for entry in cell.entries]


# ---- which tensor stands where


@pytest.mark.parametrize(
    ("family", "projections", "norms", "bands"),
    [
        ("llama", LEFT, ["LN-In", "LN-PA"], ["embed", "head", "final"]),
        ("gemma3_text", LEFT, ["LN-In", "Q-Norm", "K-Norm", "LN-OutA", "LN-PA", "LN-OutM"], ["embed", "head", "final"]),
        ("phi3", LEFT, ["LN-In", "LN-PA"], ["embed", "head", "final"]),
        ("gpt2", [label for label in LEFT if label != "M-G"], ["LN-In", "LN-PA"], ["embed", "pos", "head", "final"]),
    ],
)
def test_columns_of_a_family(
    scored: Make, family: str, projections: list[str], norms: list[str], bands: list[str]
) -> None:
    core = scored(family)
    importance = importance_of([core])
    assert [column.label for column in importance.columns_of("projections")] == projections
    assert [column.label for column in importance.columns_of("norms")] == norms
    assert [band.label for band in importance.bands] == bands
    assert importance.others == ()
    (grid,) = importance.rows[0].present
    cells = cells_by_label(grid)
    inside = {(layer, label) for layer in range(core.model.num_layers) for label in projections + norms}
    assert set(cells) == inside | {(None, band) for band in bands}
    drawn = {name for cell in cells.values() for name in names_in(cell)}
    assert drawn == {parameter.name for parameter in core.parameters}


@pytest.mark.parametrize(
    ("family", "place", "names"),
    [
        ("llama", (3, "M-D"), ["model.layers.3.mlp.down_proj.weight"]),
        ("llama", (None, "head"), ["lm_head.weight"]),
        ("qwen3", (4, "K-Norm"), ["model.layers.4.self_attn.k_norm.weight"]),
        ("qwen2", (2, "A-V"), ["model.layers.2.self_attn.v_proj.weight", "model.layers.2.self_attn.v_proj.bias"]),
        ("gemma3_text", (1, "LN-OutA"), ["model.layers.1.post_attention_layernorm.weight"]),
        ("gemma3_text", (1, "LN-PA"), ["model.layers.1.pre_feedforward_layernorm.weight"]),
        ("phi3", (2, "A-K"), ["model.layers.2.self_attn.qkv_proj.weight"]),
        ("gpt2", (0, "A-V"), ["transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"]),
        ("gpt2", (None, "pos"), ["transformer.wpe.weight"]),
    ],
)
def test_a_cell_shows_its_weight(scored: Make, family: str, place: tuple[int | None, str], names: list[str]) -> None:
    core = scored(family)
    cell = cells_by_label(importance_of([core]).rows[0].present[0])[place]
    assert names_in(cell) == names
    scores = {parameter.name: parameter.score for parameter in core.parameters}
    assert cell.score == scores[names[0]]


def test_what_is_of_no_known_component_is_named_and_not_drawn() -> None:
    core = llama()
    extra = [
        {"name": "model.layers.1.self_attn.q_proj.weight_scale", "shape": [1], "score": 9.0, "core": True},
        {"name": "model.layers.9.a", "shape": [1], "score": 0.0, "component": "attention.query", "layer": 9},
        {"name": "vision.tower", "shape": [1], "score": 0.0, "component": "excluded"},
        {"name": "strange", "shape": [1], "score": 0.0, "component": "mlp.shared", "layer": 1},
    ]
    dumped = [parameter.model_dump(exclude_none=True) for parameter in core.parameters]
    importance = importance_of([made([*dumped, *extra], 4)])
    assert importance.others == (
        "model.layers.1.self_attn.q_proj.weight_scale*", "model.layers.9.a", "vision.tower", "strange",
    )  # fmt: skip
    # The two that score 9 and 3 come first.
    assert cells_by_label(importance.rows[0].present[0])[1, "A-Q"].entries[0].rank == 13


def test_a_cell_of_many_rows_shows_their_mean_and_core_share() -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    kinds = ["attention.query"] * 4 + ["attention.key"] * 2
    parameters: list[dict] = [
        {"name": name, "shape": [24, 4], "rows": [[4 * i, 4 * i + 4]], "score": float(i), "core": i in (1, 4, 5),
         "component": kind, "layer": 0}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    (grid,) = importance_of([made(parameters, 1, family="phi3", unit="rows")]).rows[0].present
    cells = cells_by_label(grid)
    query, key = cells[0, "A-Q"], cells[0, "A-K"]
    assert (query.score, query.core_share, query.mark) == (1.5, 0.25, 0.25)
    assert (key.score, key.core_share, key.mark) == (4.5, 1.0, 1.0)
    assert query.rank_share(6) == pytest.approx((0 + 1 / 5 + 2 / 5 + 3 / 5) / 4)
    assert query.description(6)[:3] == [
        "4 parts, mean score 1.5, 25.0% of the elements core", f"{name} [rows 12:16]",
        "score 3, rank 3 of 6, not core",
    ]  # fmt: skip


def test_a_core_bias_is_a_mark_in_part() -> None:
    weight = CoreTensor(name="a.weight", shape=(4, 4), score=0.25)
    bias = CoreTensor(name="a.bias", shape=(4,), score=0.5, core=True)
    cell = Cell((Entry(weight, 2), Entry(bias, 1)))
    assert (cell.score, cell.core_share) == (0.25, 0.0)
    assert 0 < cell.mark < 1
    assert cell.description(2) == [
        "a.weight", "score 0.25, rank 2 of 2, not core", "a.bias", "score 0.5, rank 1 of 2, core"
    ]  # fmt: skip
    assert Cell((Entry(bias, 1),)).score == 0.5


# ---- how core files are arranged


def test_a_row_per_task_a_column_per_length() -> None:
    cores = [
        llama("math", epochs=3),
        llama("code", epochs=1),
        llama("math", shift=0.5),
        llama("math", epochs=2, shift=-1),
    ]
    importance = importance_of(cores)
    assert importance.epochs == (1, 2, 3)
    assert [row.name for row in importance.rows] == ["math", "code"]
    assert [[grid and grid.core for grid in row.grids] for row in importance.rows] == [
        [cores[2], cores[3], cores[0]],
        [cores[1], None, None],
    ]
    scores = [p.score for i in (0, 2, 3) for p in cores[i].parameters if p.name.startswith("model.layers.")]
    assert importance.rows[0].scale == (min(scores), max(scores)), "of the layers of all lengths, without the embedding"
    assert importance.subtitle == "lf (alpha 0.5), core: top 5 % of tensors"
    assert importance.model_name == "small"


def test_methods_are_rows_of_their_own() -> None:
    importance = importance_of([llama("math"), llama("math", name="cs", ratio=0.1)])
    assert [row.name for row in importance.rows] == ["math, lf", "math, cs"]
    assert importance.subtitle == "lf (alpha 0.5), core: top 5 % of tensors; cs, core: top 10 % of tensors"


def test_core_files_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="no core file is given"):
        importance_of([])
    other = llama("code")
    other = other.model_copy(update={"model": other.model.model_copy(update={"names_sha256": "1" * 64, "id": "other"})})
    with pytest.raises(UserError, match=r"of 2 models.*\n  - a, c: someone/small .*names 00000000\)\n  - b: other "):
        importance_of([llama("math"), other, llama("law")], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"give one:\n  - a, b: task math, method lf, 1 epoch"):
        importance_of([llama(epochs=None), llama(epochs=1)], ["a", "b"])
    with pytest.raises(UserError, match="a: no tensor is said to be of a known component"):
        importance_of([made([{"name": "x", "shape": [1], "score": 1.0}], 1, family="unheard")], ["a"])
    for wrong in ("three", 0, True):
        with pytest.raises(ArtefactError, match=f"math: method.epochs is {wrong!r}, expected a number of epochs"):
            importance_of([llama(epochs=wrong)])


def test_no_scores_at_all_and_equal_scores() -> None:
    tensor = {"name": "model.layers.0.mlp.up_proj.weight", "shape": [2, 2], "component": "mlp.up", "layer": 0}
    assert importance_of([made([tensor], 1)]).rows[0].scale == (0.0, 1.0)
    low, high = importance_of([made([{**tensor, "score": 2.0}], 1)]).rows[0].scale
    assert low < 2 < high


# ---- the page


def several(num_layers: int = 32) -> list[CoreFile]:
    return [llama(task, num_layers, epochs=epochs) for task in ("math", "code") for epochs in (1, 2)]


def test_page_holds_all_cells(tmp_path: Path) -> None:
    page = tmp_path / "importance.html"
    cores = several(6)
    importance = importance_of(cores)
    write_html(page, figure(importance))
    assert [file.name for file in tmp_path.iterdir()] == ["importance.html"]
    plots = plots_in(page.read_text("utf-8"))
    assert [plot["title"] for plot in plots] == ["math", "code"]
    columns = importance.columns_of("projections")
    (grid, _) = importance.rows[1].present
    traces = plots[1]["data"]
    left = [t for t in traces if t["xaxis"] == "x" and t["type"] == "heatmap" and "text" in t]
    cells = next(trace for trace in left if len(trace["z"]) == 6)
    for layer in range(6):
        for index, column in enumerate(columns):
            cell = grid.cells[layer, column]
            assert cells["z"][layer][index] == pytest.approx(cell.score, abs=1e-4)
            assert cells["customdata"][layer][index] == pytest.approx(cell.rank_share(grid.num_ranked), abs=1e-4)
            assert cells["text"][layer][index] == "<br>".join(describe(grid, layer, column))
    assert cells["text"][2][0] == (
        "layer 2, A-Q (attention query)<br>model.layers.2.self_attn.q_proj.weight<br>score 0.8733, rank 21 of 56, core"
    )
    assert [cells["zmin"], cells["zmax"]] == pytest.approx(importance.rows[1].scale)
    bands = [trace for trace in left if len(trace["z"]) == 1]
    assert [band["text"][0][0].split("<br>")[0] for band in bands] == ["token embedding", "output head"]
    assert bands[1]["text"][0][0].endswith("lm_head.weight<br>no score")
    marks = [trace for trace in traces if trace.get("name") == "core"]
    assert [list(zip(trace["x"], trace["y"], strict=True)) for trace in marks] == [[(0, 0), (0, 2)], [(0, 0)]] * 2
    assert sum("colorbar" in trace for trace in traces) == 1
    score, rank = plots[1]["layout"]["updatemenus"][0]["buttons"]
    assert score["args"][0]["z"][0] == cells["z"] and rank["args"][0]["z"][0] == cells["customdata"]


@needs_chromium
def test_buttons_show_the_other_task_and_ranks(tmp_path: Path) -> None:
    page = tmp_path / "importance.html"
    write_html(page, figure(importance_of(several(24))))
    before = rendered(page, tmp_path)
    assert before.count('<path class="point') == 6
    for text in (">A-Q</text>", ">LN-PA</text>", ">embed</text>", ">2 epochs</tspan>", ">score</text>"):
        assert text in before
    click = """
        document.querySelector('[data-choice="1"]').click();
        setTimeout(() => document.querySelectorAll(".updatemenu-button")[1].dispatchEvent(new Event("click")), 500)"""
    after = rendered(page, tmp_path, click)
    assert re.findall(r'data-choice="(\w+)" aria-pressed="true"', after) == ["1"]
    assert ">rank</text>" in after and ">score</text>" not in after


# ---- the picture


@pytest.mark.parametrize("num_layers", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_picture(tmp_path: Path, num_layers: int) -> None:
    from PIL import Image

    cores = [*several(num_layers), llama("x" * 120, num_layers, epochs=2)]
    cores = [c.model_copy(update={"model": c.model.model_copy(update={"id": "a/" + "y$^{$" * 40})}) for c in cores]
    fewer = [cores[0].model_copy(update={"parameters": cores[0].parameters[:-4]}), *cores[1:]]
    for name, given in (("one", cores), ("same", cores), ("fewer", fewer)):
        write_png(tmp_path / f"{name}.png", figure(importance_of(given)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fewer.png", "one.png", "same.png"]
    with Image.open(tmp_path / "one.png") as image:
        image.load()
        assert image.format == "PNG"
        assert 900 <= image.width <= 1800 and 1000 <= image.height <= 4500
        grey = np.asarray(image.convert("L"))
    assert (grey[:, [0, -1]] == 255).all() and (grey[[0, -1]] == 255).all(), "something is cut off at the edge"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "fewer.png").read_bytes()
