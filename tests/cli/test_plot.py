"""`trace-transfer plot`: what it writes, what it prints, what it refuses."""

import json
from functools import partial
from pathlib import Path

from tests import commands
from tests.core_files import write_core

run = partial(commands.run, "plot")


def test_writes_a_page_and_a_picture_and_prints_their_names(tiny, tmp_path: Path) -> None:
    math = write_core(tiny("qwen3"), tmp_path / "math.core.json")
    code = write_core(tiny("qwen3"), tmp_path / "code.core.json", task="code")
    data = json.loads(math.read_text("utf-8"))
    data["method"]["epochs"] = 3
    (longer := tmp_path / "longer.core.json").write_text(json.dumps(data), "utf-8")
    result = run(math, code, longer, "--out", tmp_path / "a" / "b")
    assert result.exit_code == 0, result.output
    page, picture = tmp_path / "a" / "b" / "importance.html", tmp_path / "a" / "b" / "importance.png"
    assert result.stdout == f"{page}\n{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text("utf-8")
    for part in ("Parameter importance: qwen3", ">math</button>", ">code</button>", "3 epochs", "Q-Norm"):
        assert part in text


def test_refuses_two_models_and_one_task_twice(tiny, tmp_path: Path) -> None:
    math = write_core(tiny("llama"), tmp_path / "math.core.json")
    code = write_core(tiny("qwen3"), tmp_path / "code.core.json", task="code")
    again = write_core(tiny("llama"), tmp_path / "again.core.json", ratio=0.2)
    for files, message in (
        ((math, code), "of several models, but one figure is of one"),
        ((math, again), "give one:\n  - task math, method lf, 1 epoch"),
    ):
        result = run(*files, "--out", tmp_path / "out")
        assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()
