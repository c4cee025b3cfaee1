"""Names that a terminal, a page or Markdown would obey: refused where they are not one line, else shown as they are."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests import commands
from tests.commands import run
from tests.core_files import write_core
from tests.run_files import edit, write_run
from tests.tiny_models import TEXTS
from trace_transfer.printable import OBEYED

MARKUP = "[bold]x[red]<img src=x onerror=alert(1)>&amp;`|*_{}${y}"
LONG = "m" * 150
OBEYING = ["a\x1b[2Jb", "a\u202eb\n"]


def done(*arguments) -> str:
    result = commands.done(*arguments)
    assert not OBEYED.search(result.stdout) and not OBEYED.search(result.stderr)
    return result.stdout


def is_safe(text: str) -> bool:
    """A page in which the picture of `MARKUP` is text, and no character is obeyed."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return "<img src=x" not in body and not OBEYED.search(body)


@pytest.mark.parametrize("name", OBEYING)
def test_names_in_files_are_one_line(tiny, tmp_path, name):
    """Tensors, methods, titles, the run: told with the file, before they stand in a table or a page."""
    core = write_core(tiny("llama"), tmp_path / "math.core.json")
    edit(core, lambda content: content["parameters"][0].update(name=name))
    result = run("inspect", core)
    assert result.exit_code == 2 and "expected one line" in result.stderr and not OBEYED.search(result.stderr)
    save_file({name: torch.ones(2)}, tmp_path / "x.safetensors")
    result = run("inspect", tmp_path / "x.safetensors")
    assert result.exit_code == 2 and "a tensor is called" in result.stderr and not OBEYED.search(result.stderr)
    study = write_run(tmp_path / "run", seeds=(0,), methods=("sequential", "random"))
    edit(study / "run.json", lambda content: content["methods"][0].update(title=name))
    result = run("report", study)
    assert result.exit_code == 2 and "methods.0.title" in result.stderr and not OBEYED.search(result.stderr)


def test_markup_is_shown_as_it_is_by_commands(tiny, tmp_path, monkeypatch):
    """Directories of such names, through `map` with its page, `plot`, `inspect` and `rules explain`."""
    monkeypatch.chdir(tmp_path)
    name = MARKUP + LONG
    for family in ("llama", "qwen3"):
        shutil.copytree(tiny(family), tmp_path / f"{family}{name}")
    source, target = f"llama{name}", f"qwen3{name}"
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    core = write_core(tmp_path / source, tmp_path / "math.core.json")
    out = tmp_path / "out"
    text = done(
        "map", "--src", source, "--dst", target, "--core", core, "--probe", "texts.txt", "--no-cache", "--out", out
    )
    assert f"{source[:20]}" in text
    for file in sorted(out.glob("*.json")):
        assert (source if "core" not in file.name else target)[:30] in done("inspect", file).replace("\n", "")
    done("rules", "explain", "--src", source, "--dst", target)
    done("plot", out / "math.core.json", "--out", out / "plots")
    for page in out.rglob("*.html"):
        assert is_safe(page.read_text("utf-8")), page
