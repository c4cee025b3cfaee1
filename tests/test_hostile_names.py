"""Names that a terminal, a page or Markdown would obey: refused where they are not one line, else shown as they are."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser

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


class Page(HTMLParser):
    """What a browser makes elements of, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside = ""
        self.images: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag == "img":
            self.images.append(dict(attributes).get("src") or "")
        assert not any(name.startswith("onerror") for name, _ in attributes), (tag, attributes)

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.texts.append(data)


def is_safe(text: str) -> bool:
    """A page without an image from elsewhere, and without a character that is obeyed."""
    page = Page(text)
    return not OBEYED.search("".join(page.texts)) and all(one.startswith("data:") for one in page.images)


@pytest.mark.parametrize("name", OBEYING)
def test_a_model_of_such_a_name_is_refused(tiny, tmp_path, name):
    model = shutil.copytree(tiny("llama"), tmp_path / name)
    result = run("rules", "explain", "--src", model, "--dst", tiny("llama"))
    assert result.exit_code == 2 and "a name with line breaks or control characters" in result.stderr
    assert result.stderr.count("\n") == 1 and not OBEYED.search(result.stderr)


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
