"""`trace-transfer plot`: what it writes, what it prints, what it refuses."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests import commands
from tests.core_files import write_core

run = partial(commands.run, "plot")


def of_epochs(file: Path, target: Path, epochs: int) -> Path:
    """A copy of a core file with another warm-start length."""
    data = json.loads(file.read_text("utf-8"))
    data["method"]["epochs"] = epochs
    target.write_text(json.dumps(data), "utf-8")
    return target


def test_writes_a_page_and_a_picture_and_prints_their_names(tiny, tmp_path: Path) -> None:
    math = write_core(tiny("qwen3"), tmp_path / "math.core.json")
    code = write_core(tiny("qwen3"), tmp_path / "code.core.json", task="code")
    longer = of_epochs(math, tmp_path / "longer.core.json", 3)
    result = run(math, code, longer, "--out", tmp_path / "a" / "b")
    assert result.exit_code == 0, result.output
    page, picture = tmp_path / "a" / "b" / "importance.html", tmp_path / "a" / "b" / "importance.png"
    assert result.stdout == f"{page}\n{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text("utf-8")
    for part in ("Parameter importance: qwen3", ">math</button>", ">code</button>", "3 epochs", "Q-Norm"):
        assert part in text
    again = run(math, code, longer, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    for file in (page, picture):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_refuses_two_models_and_names_the_files(tiny, tmp_path: Path) -> None:
    math = write_core(tiny("qwen3"), tmp_path / "math.core.json")
    code = write_core(tiny("llama"), tmp_path / "code.core.json", task="code")
    result = run(math, code, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "of 2 models, but one figure is of one" in result.stderr
    assert f"- {math}: " in result.stderr and f"- {code}: " in result.stderr
    assert "(qwen3, 5 layers, " in result.stderr and "(llama, 4 layers, " in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("same", ["math.core.json", "again.core.json"])
def test_refuses_one_task_twice(tiny, tmp_path: Path, same: str) -> None:
    math = write_core(tiny("llama"), tmp_path / "math.core.json")
    other = write_core(tiny("llama"), tmp_path / same, ratio=0.2)
    result = run(math, other, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{math}, {other}: task math, method lf, 1 epoch" in result.stderr


def test_refuses_what_is_no_core_file(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"format": "something"}', "utf-8")
    result = run(other, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: {other}: format 'something', expected trace-transfer/core" in result.stderr
    assert run("--out", tmp_path / "out").exit_code == 2
