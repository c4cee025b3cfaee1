"""What `inspect` shows of small made-up files, on narrow and wide terminals and in a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from tests.run_files import write_run
from trace_transfer.cli.inspection import draw
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError
from trace_transfer.records import Strict, to_json
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.summarising import summarise
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch

KINDS = ("input_layernorm.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight")


def model(name: str, num_layers: int) -> dict:
    counts = {"num_layers": num_layers, "num_parameters": 3 * num_layers + 1, "num_elements": 10**9}
    return {"id": name, "family": "llama", "model_type": "llama", "names_sha256": "0" * 64, **counts}


def written(path: Path, kind: type[Strict], **fields: object) -> Path:
    path.write_text(to_json(kind.model_validate(fields)), "utf-8")
    return path


def layer_match(folder: Path, num_source: int, num_target: int) -> Path:
    """A match of each source layer with the target layer of the same depth, where the matrix is largest."""
    best = [round(source * (num_target - 1) / (num_source - 1)) for source in range(num_source)]
    matrix = np.full((num_source, num_target), 0.1)
    matrix[range(num_source), best] = 0.9
    matrix[0, -1] = np.nan
    save_file({"similarity": matrix}, folder / "similarity.safetensors")
    pairs = [
        {"source": s, "target": t, "similarity": 0.9, "margin": -0.0123, "runner_up": t + 1, "flip_rate": 0.25}
        for s, t in enumerate(best)
    ]
    probe = {
        "name": "built-in", "sha256": "1" * 64, "num_texts": 512, "rows": "boundary", "num_minibatches": 8,
        "num_rows": 4000, "max_length": 256, "seed": 0,
    }  # fmt: skip
    return written(
        folder / "layer_match.json", LayerMatch, source=model("[bold]small[/bold]", num_source),
        target=model("big", num_target), probe=probe, similarity="cka-debiased", representation="update",
        transform="rms", policy="argmax", chosen_by="source", pairs=pairs, unmatched_targets=[1, 2, 3, 5],
        stability={"num_splits": 20, "same": 0.875, "within_one": 1.0},
        depth={"agreement": 0.5, "within_one": 0.75, "mean_similarity_gain": 0.031},
        warnings=["layer 3 of [red]small[/red] hardly differs from layer 4"],
    )  # fmt: skip


def core_file(folder: Path, num_layers: int = 4) -> Path:
    """Of each layer q_proj is core in the even layers, half of down_proj in layer 1, the embedding never scored."""
    parameters = []
    for layer in range(num_layers):
        name = f"model.layers.{layer}."
        parameters.append({"name": name + KINDS[0], "shape": [8], "score": 0.01 * layer})
        parameters.append({"name": name + KINDS[2], "shape": [8, 8], "score": 5 - layer, "core": layer % 2 == 0})
        for part, rows in enumerate(([[0, 4]], [[4, 8]])):
            core = layer == 1 and part == 0
            parameters.append(
                {"name": name + KINDS[1], "shape": [8, 8], "rows": rows, "score": 1.5 + part / 8, "core": core}
            )
    parameters.sort(key=lambda parameter: -parameter["score"])
    parameters.append({"name": "model.embed_tokens.weight", "shape": [50, 8]})
    origin = {
        "model": model("small", 2), "core_sha256": "2" * 64, "layer_match_sha256": "3" * 64,
        "rules": ["llama.yaml", "qwen3.yaml"], "carry": "scores",
    }  # fmt: skip
    return written(
        folder / "math.core.json", CoreFile, task="math", model=model("big", num_layers), parameters=parameters,
        method={"name": "lf", "ratio": 0.05, "alpha": 0.5}, transferred_from=origin,
    )  # fmt: skip


def correspondence(folder: Path, num_layers: int = 3) -> Path:
    entries = [{"name": "lm_head.weight", "components": ["head"], "targets": [{"name": "head.weight", "rule": "r"}]}]
    for layer in range(num_layers):
        targets = [
            {"name": f"model.layers.{layer + 1}.self_attn.qkv.weight", "rows": [[0, 4]], "rule": "a.yaml:1"},
            {"name": f"model.layers.{layer + 1}.self_attn.q_norm.weight", "rule": "a.yaml:1 (expand)"},
        ]
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        entries.append({"name": name, "components": ["attention.query"], "targets": targets})
        dropped = {"components": ["mlp.gate"], "targets": [], "dropped": "gpt2 has no mlp.gate"}
        entries.append({"name": f"model.layers.{layer}.mlp.gate.weight", **dropped})
    return written(
        folder / "correspondence.json", CorrespondenceFile, source=model("small", num_layers),
        target=model("big", num_layers + 1), layer_match_sha256="4" * 64, parameters=entries,
        unreached_targets=[{"name": "model.layers.0.a", "reason": "no source layer is matched to its layer"}],
        counts={"parameters": 7, "mapped": 4, "dropped": 3, "unreached_targets": 1},
    )  # fmt: skip


def shown(path: Path, width: int = 80) -> list[str]:
    """The lines as a pipe gets them; none is wider than the console."""
    file = io.StringIO()
    draw(path, Console(file=file, width=width, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


def squeezed(lines: list[str]) -> list[str]:
    """The lines of a table with one space between columns."""
    return [" ".join(line.split()) for line in lines]


def cells_of(lines: list[str], num_rows: int) -> list[str]:
    """The rows of the heatmap without their labels, the first above."""
    start = lines.index("") + 1
    return [line[line.index(line.split()[0]) + len(line.split()[0]) + 1 :] for line in lines[start : start + num_rows]]


def test_layer_match_in_a_pipe(tmp_path: Path) -> None:
    lines = shown(layer_match(tmp_path, 4, 10), 200)
    assert lines[0] == "Layer match: [bold]small[/bold] (llama, 4 layers) → big (llama, 10 layers)"
    start = lines.index("") + 1
    assert cells_of(lines, 4) == [" " * 18 + "[]", " " * 12 + "[]", " " * 6 + "[]", "[]" + " " * 16 + "??"]
    assert [line.split()[0] for line in lines[start : start + 4]] == ["3", "2", "1", "0"]
    assert lines[start + 4] == "  0         5"
    assert "[] matched pair, ? no value" in lines[start + 6]
    table = squeezed(lines)
    for line in (
        "layer match argmax, cka-debiased, update", "boundary rows of 512 texts (built-in), rms",
        "unused target layers 4: 1-3, 5", "1 3 0.900 -0.0123 4 25%",
        "! layer 3 of [red]small[/red] hardly differs from layer 4",
    ):  # fmt: skip
        assert line in table
    assert lines[-1] == "usable: 88% of the layers keep their partner on other texts, 0 of 4 pairs ambiguous"


@pytest.mark.parametrize(("shape", "width"), [((4, 30), 60), ((80, 94), 60), ((80, 94), 200)], ids=str)
def test_heatmap_fits_any_width(tmp_path: Path, shape: tuple[int, int], width: int) -> None:
    num_source, num_target = shape
    lines = shown(layer_match(tmp_path, *shape), width)
    pooled = num_target > width - len(str(num_source - 1)) - 1
    assert ("a cell shows the largest value of 2 x 2 layers" in " ".join(squeezed(lines))) == pooled
    rows = cells_of(lines, -(-num_source // 2) if pooled else num_source)
    assert all("O" in row or "[]" in row for row in rows)
    assert sum(len(line.split()) == 6 and line.split()[2] == "0.900" for line in lines) == num_source


def test_layer_match_with_a_matrix_of_another_run(tmp_path: Path) -> None:
    path = layer_match(tmp_path, 4, 10)
    save_file({"similarity": np.zeros((4, 9))}, tmp_path / "similarity.safetensors")
    with pytest.raises(ArtefactError, match=r"'similarity' is \[4, 9\], but the layer match is of \[4, 10\] layers"):
        shown(path)


def test_core_file(tmp_path: Path) -> None:
    lines = shown(core_file(tmp_path), 100)
    assert lines[2:5] == [
        "core: 3 of 17 tensors (17.65%), 160 of 944 elements (16.95%)",
        "tensors without a score: 1",
        "carried over from small (llama, 2 layers), carry scores, rules llama.yaml, qwen3.yaml",
    ]
    assert lines[6:11] == [
        " " * 26 + "0",
        "input_layernorm.weight    · · · ·        0/4",
        "mlp.down_proj.weight      · ▒▒· ·        1/8",
        "self_attn.q_proj.weight   ██· ██·        2/4",
        "model.embed_tokens.weight ·              0/1",
    ]
    table = squeezed(lines)
    assert "The 15 best of 16 scores" in table
    assert "1 5 core model.layers.0.self_attn.q_proj.weight" in table
    assert "5 1.625 model.layers.0.mlp.down_proj.weight [rows 4:8]" in table
    assert table[-1].startswith("15 ")


def test_correspondence(tmp_path: Path) -> None:
    lines = shown(correspondence(tmp_path))
    assert lines[0] == "Correspondence: small (llama, 3 layers) → big (llama, 4 layers)"
    assert lines[1] == "7 tensors, 4 mapped, 3 dropped, 1 unreached targets"
    table = squeezed(lines)
    first = table.index("self_attn.q_proj.weight self_attn.qkv.weight (part) 3")
    assert table[first + 1] == "self_attn.q_norm.weight"
    assert "lm_head.weight head.weight 1" in table
    assert "dropped source tensors: 3" in lines
    assert "3 gpt2 has no mlp.gate" in table
    assert "target tensors that nothing reaches: 1" in lines
    assert "1 no source layer is matched to its layer" in table


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {"a.weight": np.zeros((3, 4), np.float32), "scale": np.zeros((), np.int64)}
    save_file(tensors, path, {"format": "trace-transfer/patch", "note": "[b]x[/b]"})
    lines = shown(path)
    assert lines[0] == f"some.safetensors: 2 tensors, 13 elements, {path.stat().st_size} bytes"
    assert lines[1:3] == ["format: trace-transfer/patch", "note: [b]x[/b]"]
    table = squeezed(lines)
    assert "a.weight F32 3 x 4" in table
    assert "scale I64 scalar" in table


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    other, broken = tmp_path / "other.json", tmp_path / "broken.safetensors"
    other.write_text('{"format": "something"}', "utf-8")
    broken.write_bytes(b"\x00" * 5)
    for path, told in (
        (other, "format 'something', expected trace-transfer/core or trace-transfer/layer"),
        (tmp_path / "none.json", "cannot be read: No such file"),
        (tmp_path / "none.safetensors", "No such file"),
        (broken, "not a safetensors file, or cut short"),
    ):
        with pytest.raises(ArtefactError, match=told):
            draw(path, console)


def test_files_of_a_run(tmp_path: Path) -> None:
    """Each of them shows what it is about."""
    run = write_run(tmp_path / "run", methods=("sequential", "random"), seeds=(0, 1, 2))
    (run / "summary.json").write_text(to_json(summarise(read_run(run))), "utf-8")
    told = {"run.json": "sequential", "summary.json": "Sequential fine-tuning"}
    scores = next(run.rglob("scores.json"))
    told |= {
        str(scores.relative_to(run)): "maths-test (",
        str(scores.with_name("step.json").relative_to(run)): "address",
    }
    for name, text in told.items():
        assert text in "\n".join(shown(run / name, 200))
    assert "0.1" in "\n".join(shown(scores))
