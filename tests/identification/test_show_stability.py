"""What is printed of how far core sets depend on the seed."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from trace_transfer.cli.inspection import draw
from trace_transfer.identification.records import StabilityFile
from trace_transfer.identification.show import render_stability
from trace_transfer.records import to_json


def report(*tasks: dict, unit: str = "tensors", methods: tuple[str, ...] = ("lf", "cs")) -> StabilityFile:
    model = {
        "id": "someone/[bold]small[/bold]", "family": "llama", "model_type": "llama", "num_layers": 4,
        "num_parameters": 39, "num_elements": 1000, "names_sha256": "0" * 64,
    }  # fmt: skip
    of_methods = [
        {"method": method, "ratio": 0.05, "unit": unit, "chance": 0.03, "tasks": list(tasks)} for method in methods
    ]
    return StabilityFile.model_validate(
        {"model": model, "methods": of_methods, "reliability": {"math": 0.71, "code": 0.5}}
    )


def task(name: str, within: float, between: float, clear: bool) -> dict:
    return {
        "task": name, "within_tensors": within, "within_elements": within / 2, "between_tensors": between,
        "between_elements": between / 2, "highest_between": between + 0.05, "clear": clear,
    }  # fmt: skip


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_single_task_has_nothing_to_be_compared_with() -> None:
    alone = {"task": "math", "within_tensors": 0.9, "within_elements": 0.45}
    found = report(alone, methods=("lf",))
    assert "lf 5 % of tensors math 0.90 0.45 - - 0.03 -" in " ".join(squeezed(render_stability(found)))
    assert "!" not in render_stability(found)
    doubtful = report(task("math", 0.9, 0.3, True), task("code", 0.45, 0.52, False), methods=("lf",))
    text = " ".join(squeezed(render_stability(doubtful)))
    assert "lf 5 % of tensors math 0.90 0.45 0.30 0.15 0.03 yes" in text
    assert "code 0.45 against up to 0.57" in text.partition("! lf: ")[2]


def test_inspect_shows_the_same(tmp_path: Path) -> None:
    found = report(task("m" * 60, 0.9, 0.3, False), task("code", 0.45, 0.52, True))
    path, file = tmp_path / "stability.json", io.StringIO()
    path.write_text(to_json(found), "utf-8")
    draw(path, Console(file=file, width=100, color_system=None))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == render_stability(found).splitlines()
