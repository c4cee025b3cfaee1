"""What `inspect` shows of small made-up files, on narrow and wide terminals and in a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from tests import run_files
from tests.run_files import SOURCE, TARGET
from trace_transfer.cli.inspection import draw, draw_heatmap
from trace_transfer.errors import ArtefactError
from trace_transfer.records import to_json
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.summarising import summarise
from trace_transfer.terminal import Page
from trace_transfer.transfer.records import CorrespondenceFile


def correspondence(folder: Path) -> Path:
    """Of three layers, each with one tensor in parts and one that is dropped."""
    entries = [{"name": "lm_head.weight", "components": ["head"], "targets": [{"name": "head.weight", "rule": "r"}]}]
    for layer in range(3):
        targets = [
            {"name": f"model.layers.{layer + 1}.self_attn.qkv.weight", "rows": [[0, 4]], "rule": "a.yaml:1"},
            {"name": f"model.layers.{layer + 1}.self_attn.q_norm.weight", "rule": "a.yaml:1 (expand)"},
        ]
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        entries.append({"name": name, "components": ["attention.query"], "targets": targets})
        dropped = {"components": ["mlp.gate"], "targets": [], "dropped": "gpt2 has no mlp.gate"}
        entries.append({"name": f"model.layers.{layer}.mlp.gate.weight", **dropped})
    made = CorrespondenceFile.model_validate({
        "source": SOURCE, "target": TARGET, "layer_match_sha256": "4" * 64, "parameters": entries,
        "unreached_targets": [{"name": "model.layers.0.a", "reason": "no source layer is matched to its layer"}],
        "counts": {"parameters": 7, "mapped": 4, "dropped": 3, "unreached_targets": 1},
    })  # fmt: skip
    file = folder / "correspondence.json"
    file.write_text(to_json(made), "utf-8")
    return file


def shown(path: Path, width: int = 80) -> list[str]:
    """The lines, of each table with one space between columns; none is wider than the console."""
    file = io.StringIO()
    draw(path, Console(file=file, width=width, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [" ".join(line.split()) for line in lines]


def test_layer_match(tmp_path: Path) -> None:
    match, similarity = run_files.layer_match(0)
    file = tmp_path / "layer_match.json"
    file.write_text(to_json(match), "utf-8")
    assert "(no heatmap: similarity.safetensors is not beside layer_match.json)" in shown(file)
    save_file({"similarity": similarity}, tmp_path / "similarity.safetensors")
    lines = shown(file, 200)
    assert lines[0] == "Layer match: models/small (llama, 3 layers) → models/large (qwen2, 4 layers)"
    assert "rows are source layers, columns target layers, from 0 at the lower left" in lines
    assert sum(line.count("[]") for line in lines) == 1 + len(match.pairs)
    for pair in match.pairs:
        assert any(line.startswith(f"{pair.source} {pair.target} {pair.similarity:.3f} ") for line in lines)
    assert lines[-1] == match.verdict


@pytest.mark.parametrize(("shape", "width"), [((4, 30), 60), ((80, 94), 60), ((80, 94), 200)], ids=str)
def test_heatmap_fits_any_width(shape: tuple[int, int], width: int) -> None:
    file = io.StringIO()
    pairs = {(source, source): source % 2 == 1 for source in range(shape[0])}
    draw_heatmap(np.eye(*shape), pairs, Page(Console(file=file, width=width, color_system=None)))
    lines = file.getvalue().splitlines()
    pooled = shape[1] > width - len(str(shape[0] - 1)) - 1
    assert ("a cell shows the largest value of 2 x 2 layers" in file.getvalue().replace("\n", " ")) == pooled
    rows = lines[: -(-shape[0] // 2) if pooled else shape[0]]
    assert max(map(len, lines)) <= width and all(any(mark in row for mark in "Oo[(") for row in rows)


def test_core_file(tmp_path: Path) -> None:
    core = run_files.core_file(TARGET, "maths", 0, carried=True)
    file = tmp_path / "maths.core.json"
    file.write_text(to_json(core), "utf-8")
    lines = shown(file, 100)
    assert lines[0] == "Core set of maths: models/large (qwen2, 4 layers)"
    assert lines[2].startswith(f"core: {len(core.core)} of 22 tensors ({core.ratio_of_tensors:.2%}), ")
    assert lines[3].startswith("carried over from models/small (llama, 3 layers), carry scores, rules llama, qwen2")
    names = [one.name for one in core.core]
    for kind in run_files.MODULES:
        (row,) = [line.split() for line in lines if line.startswith(kind)]
        there = [f"model.layers.{layer}.{kind}" in names for layer in range(4)]
        assert "".join(row[1:-1]) == "".join("██" if one else "·" for one in there)
        assert row[-1] == f"{sum(there)}/4"
    assert f"1 {core.parameters[0].score:.4g} core {names[0]}" in lines


def test_correspondence(tmp_path: Path) -> None:
    lines = shown(correspondence(tmp_path))
    assert lines[:2] == [
        "Correspondence: models/small (llama, 3 layers) → models/large (qwen2, 4 layers)",
        "7 tensors, 4 mapped, 3 dropped, 1 unreached targets",
    ]
    for line in ("dropped source tensors: 3", "3 gpt2 has no mlp.gate", "target tensors that nothing reaches: 1"):
        assert line in lines


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {"a.weight": np.zeros((3, 4), np.float32), "scale": np.zeros((), np.int64)}
    save_file(tensors, path, {"format": "trace-transfer/patch", "note": "[b]x[/b]"})
    lines = shown(path)
    assert lines[0] == f"some.safetensors: 2 tensors, 13 parameters, {path.stat().st_size} bytes"
    assert lines[1:3] == ["format: trace-transfer/patch", "note: [b]x[/b]"]
    assert "a.weight F32 3 x 4" in lines and "scale I64 scalar" in lines


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    other, broken = tmp_path / "other.json", tmp_path / "broken.safetensors"
    other.write_text('{"format": "something"}', "utf-8")
    broken.write_bytes(b"\x00" * 5)
    for path, told in ((other, "format 'something', expected trace-transfer/core or "), (broken, "or cut short")):
        with pytest.raises(ArtefactError, match=told):
            shown(path)


def test_files_of_a_run(tmp_path: Path) -> None:
    """Each of them shows what it is about."""
    run = run_files.write_run(tmp_path / "run", methods=("sequential", "random"), seeds=(0, 1, 2))
    (run / "summary.json").write_text(to_json(summarise(read_run(run))), "utf-8")
    scores = next(run.rglob("scores.json"))
    for file, told in (
        (run / "run.json", "sequential"), (run / "summary.json", "Sequential fine-tuning"),
        (scores, "maths-test ("), (scores.with_name("step.json"), "address"),
    ):  # fmt: skip
        assert told in "\n".join(shown(file, 200))
