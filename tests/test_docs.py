"""The documentation is true: its commands are given, its settings files are read, its Python is bound, the site builds.

Of each command it is told in the test's name how far it is given: `done` for real, `planned` (as `--dry-run`), or
`parsed` by the command line's own parser, for the reason in `ONLY_PARSED`, or because one with the same options is
planned. `make test-slow` does the tutorial for real.
"""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import trace_transfer as tt
from tests.doc_workspace import copy_workspace, make_workspace, write_settings
from tests.documents import PAGES, ROOT, Command, blocks, commands
from trace_transfer.cli import COMMANDS, main
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.formats import ARTEFACTS
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

DOCS = ROOT / "docs"
ALL = [command for page in PAGES for command in commands(page)]
OURS = list({tuple(command.ours): command for command in ALL if command.ours is not None}.values())  # each once
OTHERS = [command for command in ALL if command.ours is None]
# A part of a command → why a command with it is not given, only parsed.
ONLY_PARSED = {
    "deepspeed --hostfile": "starts other machines",
    "torchrun --nproc": "starts other processes; tests/test_launching.py does",
    "--suite paper --allow": "its data are on the hub",
    "--backend vllm": "vllm is not installed; tests/evaluation/test_backends.py plays it",
    "examples/quickstart/run.yaml": "its models come from packages; tests/data/test_examples.py plans it",
    "examples/small_to_large/": "its models come from packages; tests/test_small_to_large.py runs it in small",
    "examples/identify/tasks.yaml": "its run took half an hour; tests/data/test_examples.py runs it in small",
    "--within": "chooses from what another command has carried; tests/identification/test_at_base.py does",
    "--prior": "as --within",
    "--push-to-hub": "sends to the hub; tests of publishing do, to a server of their own",
    "me/core-sets:": "is on the hub",
    "llama3_to_qwen/": "at full size; tests/test_llama3_to_qwen.py plans it",
    "--cancel": "needs SLURM; tests/slurm have one",
    "trace-transfer report": "a run's directory; tests/cli/test_report.py writes one",
}
# What stands for something in a command that is a template.
PLACEHOLDERS = {"METHOD": "random", "RATE": "1e-4", "OUT": "out"}
IN_SMALL = {
    "map": ["--probe", "texts.txt"],
    "represent": ["--perplexity", "4"],
    "score": ["--max-length", "64", "--fisher-examples", "2"],
}


def arguments_of(command: Command) -> list[str]:
    """As they are given: without the marks of a template, and without what the shell would do with the output."""
    words = [word.strip("[]") for word in command.ours or () if word != "…"]
    words = words[: words.index(">")] if ">" in words else words
    return [PLACEHOLDERS.get(word, word) for word in words]


def is_whole(command: Command) -> bool:
    return "…" not in command.text


def resolved(arguments: list[str]) -> tuple[click.Command, str, list[str]]:
    """The innermost command that arguments name, its name, and what is left for it."""
    group: click.Command = main
    names = []
    while isinstance(group, click.Group):
        name, group, arguments = group.resolve_command(click.Context(group), arguments)
        assert name is not None and group is not None
        names.append(name)
    return group, " ".join(names), arguments


def how(command: Command) -> str:
    if any(part in command.text for part in ONLY_PARSED) or not is_whole(command) or "--version" in command.text:
        return "parsed"
    inner, name, rest = resolved(arguments_of(command))
    if all(parameter.name != "dry_run" for parameter in inner.params):
        return "done"
    options = frozenset(word for word in rest if word.startswith("--"))
    return "planned" if PLANNED.setdefault((name, options), command) is command else "parsed"


PLANNED: dict[tuple[str, frozenset[str]], Command] = {}  # of commands with the same options the first one


@pytest.fixture(scope="module")
def workspace(tiny, tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("docs") / "workspace", tiny)


@pytest.fixture
def here(workspace, tmp_path, monkeypatch, request):
    page, command = (request.node.callspec.params.get(name) for name in ("page", "command"))
    own = command and how(command) == "done"
    place = tmp_path / "here" if own else workspace.with_name((page or command.page).stem)
    monkeypatch.chdir(place if place.is_dir() else copy_workspace(workspace, place))
    return Path.cwd()


# ---- commands


def expanded(arguments: list[str]) -> list[str]:
    """With the shell's wildcards."""
    found = []
    for argument in arguments:
        matches = sorted(str(file) for file in Path().glob(argument)) if "*" in argument else [argument]
        assert matches, f"{argument} matches nothing"
        found += matches
    return found


@pytest.mark.parametrize("command", OURS, ids=lambda command: f"{how(command)} {command}")
def test_a_command_does_what_its_page_says(command, here):
    write_settings(here, command.page)
    arguments = expanded(arguments_of(command))
    if "--version" in arguments:
        assert CliRunner().invoke(main, arguments).exit_code == 0
        return
    inner, name, rest = resolved(arguments)
    if not is_whole(command):
        rest = ["MODEL", *rest, "--stream", "stream.yaml"]  # the only one that leaves something out
    inner.make_context(name, list(rest))
    if how(command) == "parsed" or name == "rules draft":  # the tiny model's architecture has rules
        return
    small = [word for option, value in _pairs(IN_SMALL.get(name, [])) if option not in rest for word in (option, value)]
    arguments = [*arguments, *small]
    if how(command) == "planned":
        arguments = [word for word in arguments if word != "--prune"]
        arguments += [] if "--dry-run" in arguments else ["--dry-run"]
    if how(command) == "planned" or name.startswith("patch"):  # not one that the workspace has filled
        arguments = [f"{word}.new" if before == "--out" else word for before, word in pairwise(["", *arguments])]
    if name == "import":  # what the page exported just before
        exported = CliRunner().invoke(main, ["export", "math.core.json", "--to", rest[rest.index("--from") + 1]])
        Path(rest[0]).write_text(exported.stdout)
    if name == "verify" and "tuned.patch.safetensors" in rest:
        shutil.copy("math.patch.safetensors", "tuned.patch.safetensors")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def test_every_command_of_the_program_is_on_some_page():
    used = {resolved(arguments_of(command))[1].split()[0] for command in OURS if "--version" not in command.text}
    assert sorted(set(COMMANDS) - used) == ["warm-start"]  # a half of `identify`


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_commands_of_other_programs_name_what_there_is(command):
    match command.words:
        case ["make", target, *_]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["pip", "install", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(re.findall(r"\[(\w+)\]", what)) <= set(project["optional-dependencies"])
        case ["python", "-m", module, *rest]:
            source = Path(find_spec(module).origin).read_text("utf-8")
            assert "__main__" in source
            assert [word for word in rest if word.startswith("--") and f'"{word}"' not in source] == []
        case [_, *rest]:
            assert [word for word in rest if word.startswith("examples/") and not (ROOT / word).exists()] == []


# ---- settings files


@pytest.mark.parametrize("page", [page for page in PAGES if "```yaml" in page.read_text("utf-8")], ids=lambda p: p.name)
def test_settings_files_are_read(page, here):
    """Run files, tasks, streams, suites and rules of a page are accepted as they stand."""
    from trace_transfer.data.tasks_file import load_tasks
    from trace_transfer.evaluation.suite_file import load_suite
    from trace_transfer.families.registry import load_families
    from trace_transfer.study.run_file import load_run
    from trace_transfer.text_formats import read_yaml
    from trace_transfer.training.settings import load_stream

    readers = {
        "run.yaml": load_run, "tasks.yaml": load_tasks, "stream.yaml": load_stream, "mine.yaml": load_suite,
        "my_family.yaml": load_families, "train.yaml": lambda file: StreamSettings.of(**read_yaml(file)),
    }  # fmt: skip
    for name in write_settings(here, page):
        assert readers[name](here / name)


# ---- Python


SETTINGS = {
    "identify": IdentifySettings, "score": IdentifySettings, "map_models": MapSettings, "train": StreamSettings,
    "evaluate": EvaluateSettings,
}  # fmt: skip


def calls_in(text: str) -> list[tuple[str, ast.Call]]:
    """Calls of our functions, as `tt.NAME(…)` or by their names."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            is_ours = not isinstance(node.func, ast.Attribute) or ast.unparse(node.func.value) == "tt"
            if is_ours and name in tt.__all__ and name.islower():
                found.append((name, node))
    return found


def check_call(name: str, call: ast.Call) -> None:
    """Parameters are there, and settings have values that can be used."""
    signature = inspect.signature(getattr(tt, name))
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    signature.bind(*[ast.unparse(argument) for argument in call.args], **given)
    if name in SETTINGS:
        SETTINGS[name].of(**{one: given[one] for one in given if one in SETTINGS[name].names()})


def test_python_of_the_pages_calls_what_there_is():
    found = [
        (name, call)
        for page in PAGES
        if "```diff" not in page.read_text("utf-8")  # what it changes first is tried by a test of its own
        for block in blocks(page)
        if block.language == "python"
        for name, call in calls_in(block.text)
    ]
    for name, call in found:
        check_call(name, call)
    assert {name for name, _ in found} >= {"identify", "map_models", "train"}


# ---- the notebook


def test_the_notebook_calls_what_there_is():
    notebook = json.loads((ROOT / "examples/notebook/carry.ipynb").read_text("utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = [one for text in code for one in calls_in(text)]
    for name, call in found:
        inspect.signature(getattr(tt, name)).bind(*call.args, **{one.arg: one.value for one in call.keywords})
    assert {name for name, _ in found} >= {"identify", "map_models", "train", "evaluate"}


# ---- the site


def test_every_format_is_on_the_page_of_files():
    text = (DOCS / "reference" / "files.md").read_text("utf-8")
    assert [name for name in ARTEFACTS if f"`{name}`" not in text] == []


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    """With its own tool, from a copy, as `make docs` does; nothing comes from elsewhere when a page is looked at."""
    for name in ("docs", "examples", "rules", "trace_transfer", "mkdocs.yml"):
        source = ROOT / name
        if source.is_dir():
            heavy = ("models",) if name == "examples" else ()
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", *heavy))
        else:
            shutil.copy(source, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe" not in done.stderr and "arning" not in done.stdout + done.stderr, done.stderr
    pages = {
        file.relative_to(tmp_path / "site"): file.read_text("utf-8") for file in (tmp_path / "site").rglob("*.html")
    }
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    loads = (r'<(?:script|img|iframe)[^>]*src="(https?:[^"]+)', r'<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)')
    assert [found for text in pages.values() for pattern in loads for found in re.findall(pattern, text)] == []
    for page, text in pages.items():
        for picture in re.findall(r'<img[^>]*src="([^":#]+)', text):
            assert (tmp_path / "site" / page.parent / picture).is_file(), (page, picture)
    reference = pages[Path("reference/commands.html")]
    assert all(f"trace-transfer {name}" in reference for name in COMMANDS)
    assert re.search(r"^ +--tasks tasks.yaml --ratio", re.sub("<[^>]+>", "", reference), re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial(tmp_path, monkeypatch):
    """All of its commands, one after another, with the real models."""
    from examples.quickstart.prepare import prepare

    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("models"))
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "examples" / "quickstart" / "models")
    page = DOCS / "tutorial.md"
    said = []
    for command in commands(page):
        if command.ours is not None and "run.yaml" not in command.text:
            result = CliRunner().invoke(main, command.ours)
            assert result.exit_code == 0, (str(command), result.output)
            said.append(result.stdout)
    assert len(said) == 12
    shown = [block.text for block in blocks(page) if block.language == "text"]
    # What does not change from machine to machine.
    for line in ("core: 21 of 50 tensors (42.00%), 42,624 of 853,632 parameters (4.99%)", "no frozen tensor moved"):
        assert any(line in text for text in shown) and any(line in text for text in said), line
    first, second, third = (
        float(re.search(r"^sums .*token-accuracy +([0-9.]+)", text, re.MULTILINE)[1])
        for text in said
        if "token-accuracy" in text
    )
    assert first < third and first < second  # it learnt sums, and series did not undo it
