"""`import trace_transfer as tt`: ten functions, named and defaulted as the commands, light to import, typed."""

import ast
import doctest
import inspect
import subprocess
import sys
import typing

import click
import pytest
from click.testing import CliRunner

import trace_transfer as tt
from tests.core_files import write_core
from tests.task_files import write_tasks
from tests.test_docs import check_call
from tests.tuned_models import tuned_copy
from trace_transfer.artefacts import CoreFile, read_artefact
from trace_transfer.cli import main
from trace_transfer.errors import ArtefactError
from trace_transfer.settings.evaluate import EvaluateSettings
from trace_transfer.settings.identify import IdentifySettings
from trace_transfer.settings.mapping import MapSettings
from trace_transfer.settings.stream import StreamSettings

FUNCTIONS = {name: getattr(tt, name) for name in tt.__all__ if inspect.isfunction(getattr(tt, name))}
# Function → its command, its settings in parts, and options that are the command line's alone, with the reason.
HUB = {"push_to_hub", "private"}  # sending is done with what was written: huggingface_hub has functions for it
COMMANDS = {
    "identify": ("identify", IdentifySettings(), {"dry_run", *HUB}),
    "score": ("score", IdentifySettings(), set()),
    "select": ("select", None, {"imported", "model", "task", "export", "rules"}),  # lists of others: `import`, `export`
    "map_models": ("map", MapSettings(), {"dry_run", "no_cache", *HUB}),  # cache=None
    "train": ("train", StreamSettings(), {"dry_run", "processes", *HUB}),  # starts other processes
    "evaluate": ("evaluate", EvaluateSettings(), {"dry_run"}),
    "verify": ("verify", None, {"json_file"}),  # what is returned can be written
    "run": ("run", None, {"dry_run", "prune"}),
    "report": ("report", None, set()),
}
NAMES = {"suite_name": "suite", "patches": "patch", "cores": "core"}  # of an option whose variable is called otherwise


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def settings_in(settings: object) -> dict[str, object]:
    """Name → default of every setting, those of its parts among them."""
    found: dict[str, object] = {}
    for name, value in vars(settings).items() if settings is not None else ():
        found |= settings_in(value) if hasattr(value, "__dataclass_fields__") else {name: value}
    return found


def test_there_are_ten_and_each_but_one_is_a_command():
    assert len(FUNCTIONS) == 10
    assert set(FUNCTIONS) - set(COMMANDS) == {"read"}  # what `inspect` does for the eye


@pytest.mark.parametrize("name", COMMANDS)
def test_names_and_defaults_are_those_of_the_command(name):
    command, settings, left_out = COMMANDS[name]
    signature, known = inspect.signature(FUNCTIONS[name]).parameters, settings_in(settings)
    context = click.Context(command_of(command))
    options = {option.name: option for option in context.command.params}
    assert left_out <= set(options)
    for option_name, option in options.items():
        if option_name not in left_out and option_name not in known:
            parameter = signature[NAMES.get(option_name, option_name)]
            if parameter.default not in (inspect.Parameter.empty, None, ()):
                assert str(parameter.default) == str(option.get_default(context)), option_name
    taken = set(options) | set(NAMES.values()) | {"reporter", "settings"}
    assert set(signature) <= taken


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_says_what_it_does_and_shows_it(name):
    """With every parameter, in an example whose call can be made."""
    text = inspect.getdoc(FUNCTIONS[name])
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters)
    assert [one for one in parameters if f"\n    {one}: " not in text] == []
    assert "\nRaises:\n" in text
    examples = doctest.DocTestParser().get_examples(text)
    calls = [node for one in examples for node in ast.walk(ast.parse(one.source)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func) == f"tt.{name}"]
    assert ours
    for call in ours:
        check_call(name, call)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_is_typed(name):
    """Every parameter and the result; nothing but `**settings` and what `read` finds is Any."""
    namespace = dict(vars(sys.modules["trace_transfer.api"])) | type_checking_names()
    hints = typing.get_type_hints(FUNCTIONS[name], globalns=namespace)
    signature = inspect.signature(FUNCTIONS[name])
    assert set(hints) == {*signature.parameters, "return"}
    assert {one for one, hint in hints.items() if hint is typing.Any} <= {"settings", *(["return"] * (name == "read"))}


def type_checking_names() -> dict[str, object]:
    """What the module imports for type checkers only."""
    tree = ast.parse(inspect.getsource(sys.modules["trace_transfer.api"]))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    found: dict[str, object] = {"TypeVar": typing.TypeVar}
    exec(compile(ast.Module(block.body, []), "api", "exec"), found)
    return found


def test_importing_it_is_light():
    """Neither torch nor DeepSpeed, nor any other library, until a function is called."""
    code = "import sys; before = {*sys.modules}; import trace_transfer; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert "trace_transfer" in tops
    assert tops & {"torch", "transformers", "deepspeed", "numpy", "pydantic", "yaml", "click", "rich"} == set()


# ---- those that have no test of their own elsewhere


def test_read(tiny, tmp_path):
    file = write_core(tiny("llama"), tmp_path / "math.core.json")
    core = tt.read(file)
    assert core == tt.read(str(file), CoreFile) == read_artefact(file)
    assert core.task == "math"
    with pytest.raises(ArtefactError, match="expected trace-transfer/run"):
        from trace_transfer.artefacts.run import RunFile

        tt.read(file, RunFile)


def test_select_is_the_command(tiny, tmp_path):
    file = write_core(tiny("llama"), tmp_path / "math.core.json")
    (core,) = tt.select(file, ratio=0.3, unit="elements", out=tmp_path / "here")
    arguments = ["select", str(file), "--ratio", "0.3", "--unit", "elements", "--out", str(tmp_path / "there")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here" / "math.core.json").read_bytes() == (tmp_path / "there" / "math.core.json").read_bytes()
    assert core == tt.read(tmp_path / "here" / "math.core.json")
    assert tt.select(file) == (tt.read(file),)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["here", "math.core.json", "there"]


def test_evaluate_and_verify_are_the_commands(tiny, tmp_path):
    write_tasks(tmp_path, {"math": 4})
    suite = tmp_path / "mine.yaml"
    suite.write_text("evaluations: [{name: math, kind: loss, metric: loss, data: math.jsonl}]\n")
    ours = tt.evaluate(tiny("llama"), suite=suite, out=tmp_path / "ours", limit=3, max_length=64)
    command = ["evaluate", str(tiny("llama")), "--suite", str(suite), "--limit", "3", "--max-length", "64"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "theirs")])
    assert result.exit_code == 0, result.output
    theirs = tt.read(tmp_path / "theirs" / "evaluation.json")
    assert [score.value for score in ours.scores] == [score.value for score in theirs.scores]
    assert ours.scores[0].num_examples == 3

    core = write_core(tiny("llama"), tmp_path / "math.core.json")
    assert tt.verify(tiny("llama"), tiny("llama"), core=[core]).counts["frozen MOVED"].elements == 0
    other = tuned_copy(tiny("llama"), tmp_path / "tuned", seed=1)
    with pytest.raises(tt.FrozenMovedError, match="parameters moved that were to stay bit-identical"):
        tt.verify(tiny("llama"), other, core=[core])


def test_report_is_the_command(tmp_path):
    from tests.run_files import write_run

    run = write_run(tmp_path / "run", methods=("sequential", "random"), seeds=(0, 1, 2))
    reported = tt.report(run, out=tmp_path / "ours")
    result = CliRunner().invoke(main, ["report", str(run), "--out", str(tmp_path / "theirs")])
    assert result.exit_code == 0, result.output
    assert [file.name for file in reported.files] == ["report.html", "report.md"]
    for file in reported.files:
        assert file.read_bytes() == (tmp_path / "theirs" / file.name).read_bytes()
