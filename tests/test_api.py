"""`import trace_transfer as tt`: ten functions, named and defaulted as the commands, light to import, typed."""

import ast
import doctest
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import trace_transfer as tt
from tests.core_files import write_core
from tests.golden import make_keywords
from tests.task_files import write_tasks
from tests.test_docs import check_call
from tests.tuned_models import tuned_copy
from trace_transfer import api
from trace_transfer.cli import main
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.formats import read_any
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.reporting.records import RunFile
from trace_transfer.settings import singles
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

ROOT = Path(__file__).parents[1]
FUNCTIONS = {name: getattr(api, name) for name in tt.__all__ if inspect.isfunction(getattr(api, name, None))}
# Function → its command, its settings in parts, and options that are the command line's alone, with the reason.
HUB = {"push_to_hub", "private"}  # sending is done with what was written: huggingface_hub has functions for it
COMMANDS = {
    "identify": ("identify", IdentifySettings(), {"dry_run", *HUB}),
    "score": ("score", IdentifySettings(), set()),
    "select": ("select", None, set()),
    "map_models": ("map", MapSettings(), {"dry_run", "no_cache", *HUB}),  # cache=None
    "train": ("train", StreamSettings(), {"dry_run", "processes", *HUB}),  # starts other processes
    "evaluate": ("evaluate", EvaluateSettings(), {"dry_run"}),
    "verify": ("verify", None, {"json_file"}),  # what is returned can be written
    "run": ("run", None, {"dry_run", "prune", "looks", "cancel"}),
    "report": ("report", None, set()),
}
NAMES = {"suite_name": "suite", "patches": "patch", "cores": "core"}  # of an option whose variable is called otherwise


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def settings_in(settings: object) -> dict[str, object]:
    """Name → default of every setting, those of its parts among them."""
    return {} if settings is None else {one.name: one.default for one in singles(type(settings), settings)}


OF_THE_TERMINAL = {"help_all", "config"}  # options of every command that no function has


@pytest.mark.parametrize("name", COMMANDS)
def test_names_and_defaults_are_those_of_the_command(name):
    command, settings, left_out = COMMANDS[name]
    signature, known = inspect.signature(FUNCTIONS[name]).parameters, settings_in(settings)
    context = click.Context(command_of(command))
    options = {option.name: option for option in context.command.params if option.name not in OF_THE_TERMINAL}
    assert left_out <= set(options)
    for option_name, option in options.items():
        if option_name not in left_out and option_name not in known:
            parameter = signature[NAMES.get(option_name, option_name)]
            if parameter.default not in (inspect.Parameter.empty, None, ()):
                assert str(parameter.default) == str(option.get_default(context)), option_name
    assert set(signature) <= {*options, *NAMES.values(), *known, "reporter"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_has_an_example_whose_call_can_be_made(name):
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(FUNCTIONS[name]))
    calls = [node for one in examples for node in ast.walk(ast.parse(one.source)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func) == f"tt.{name}"]
    assert ours
    for call in ours:
        check_call(name, call)


# ---- typed


CALLS = """
import trace_transfer as tt
tt.map_models("a", "b", core=["x"], match="argmax", ratio=0.1, rules="mine.yaml", profile="paper")
tt.map_models("a", "b", match="argmin")
tt.map_models("a", "b", batchsize=3)
tt.train("a", "b", epochs="2")
tt.identify("a", "b", profile="papr")
moved: int = tt.verify("a", "b")
tt.run(3)
"""


@pytest.mark.slow
def test_a_type_checker_knows_names_values_and_results(tmp_path):
    """Without the settings, the functions and what they return checked anew; a minute where nothing is cached."""
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    command = [sys.executable, "-m", "mypy", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    lines = {int(line.split(":")[1]): line for line in told.splitlines() if ": error: " in line}
    assert sorted(lines) == [4, 5, 6, 7, 8, 9], told
    assert 'did you mean "batch_size"?' in lines[5] and 'expected "Literal[' in lines[4]


def test_the_keywords_are_the_settings():
    """Names, types and defaults: the file is what `tests.golden.make_keywords` writes."""
    assert make_keywords.module() == Path(sys.modules["trace_transfer.keywords"].__file__).read_text("utf-8")
    for name, (_, settings, _) in COMMANDS.items():
        parameters = inspect.signature(FUNCTIONS[name]).parameters
        assert set(settings_in(settings)) <= set(parameters)
        if "profile" in parameters:
            assert typing.get_args(parameters["profile"].annotation) == tuple(type(settings).PROFILES)


def test_a_notebook_completes_them():
    import jedi

    (found,) = jedi.Interpreter("tt.map_models('a', 'b', mat", [{"tt": tt}]).complete()
    assert found.name == "match="


# ---- those that have no test of their own elsewhere


def test_read(tiny, tmp_path):
    file = write_core(tiny("llama"), tmp_path / "math.core.json")
    core = tt.read(file)
    assert core == tt.read(str(file), CoreFile) == read_any(file)
    assert core.task == "math"
    with pytest.raises(ArtefactError, match="expected trace-transfer/run"):
        tt.read(file, RunFile)


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
    with pytest.raises(tt.FrozenMovedError, match="tensors moved that were to stay bit-identical"):
        tt.verify(tiny("llama"), other, core=[core])


# ---- arguments


def test_settings_that_cannot_be_used_are_named():
    with pytest.raises(tt.UserError, match=r"mtach: no such setting; did you mean match\?"):
        tt.map_models("a", "b", mtach="argmax")
    with pytest.raises(tt.UserError, match=r"cores: no such setting; did you mean core\?"):
        tt.map_models("a", "b", cores=["x"])
    with pytest.raises(tt.UserError, match=r"(?s)profile: 'papr' is none of .*did you mean paper.*epochs: found 0"):
        tt.identify("a", "t.yaml", profile="papr", epochs=0)


def test_one_file_or_several(tiny, tmp_path):
    one, two = (write_core(tiny("llama"), tmp_path / f"{task}.core.json", task) for task in ("math", "law"))
    both = tt.select(one, two, ratio=0.2)
    assert [core.task for core in both] == ["math", "law"]
    assert tt.select([one, two], ratio=0.2) == tt.select((str(one), two), ratio=0.2) == both
    assert tt.select(tmp_path.glob("math.*"), ratio=0.2) == tt.select(str(one), ratio=0.2) == both[:1]
    with pytest.raises(tt.UserError, match=r"(?s)files that cannot be used:.*a\.json: cannot be read.*b\.json: cannot"):
        tt.select(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(tt.UserError, match="is an input as well"):
        tt.select(one, ratio=1, out=tmp_path)
    for ratio in (0, 2, float("nan")):
        with pytest.raises(tt.UserError, match="ratio: found "):
            tt.select(one, ratio=ratio, out=tmp_path / "out")
