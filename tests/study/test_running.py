"""A run from data to scores: what is up to date is not run, and what was changed by hand is named."""

import multiprocessing
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import trace_transfer as tt
from tests.study.run_directories import TASKS, run_content, write_file, write_run
from tests.tuned_models import weights
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import TraceTransferError, UserError
from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation
from trace_transfer.evaluation.records import EvaluationFile, ScoreMatrix
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.files import LOCK, held, sha256_file
from trace_transfer.formats import read_any
from trace_transfer.progress import Silent
from trace_transfer.reporting.records import RunFile, StepFile
from trace_transfer.reporting.report import write_report
from trace_transfer.stopping import StopSignal
from trace_transfer.study.graph import build_graph
from trace_transfer.study.run_file import load_run
from trace_transfer.study.running import run_graph, run_to_the_end
from trace_transfer.study.show import Display
from trace_transfer.study.status import prune_steps, read_status
from trace_transfer.training.settings import StreamFile

METHODS = ["sequential", "transfer-lf"]


def run(file: Path, *, rebuild: bool = False, **changes) -> Counter:
    """Run what is not up to date; returns how many steps of each kind that was."""
    graph = build_graph(replace(load_run(file), **changes))
    status = read_status(graph, graph.run.out, rebuild=rebuild)
    run_graph(graph, status, graph.run.out, Display(), StopSignal())
    return Counter(one.step.kind for one in status if one.record is None)


@pytest.fixture(scope="module")
def _server() -> None:
    """Steps are forked from a server that has DeepSpeed imported, too: else each training takes seconds for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.study.preloaded"])
    first = context.Process(target=int)  # it is begun, and stays for all runs
    first.start()
    first.join()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory, _server) -> Path:
    """`run.yaml` of a finished run; not to be written to."""
    file = write_run(tmp_path_factory.mktemp("whole"), tiny, methods=METHODS)
    once = dict.fromkeys(("evidence", "identify", "match", "map", "baseline"), 1)
    assert run(file) == {"warm-start": 2, "train": 2, "evaluate": 2, **once}
    return file


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it that a test may change; models keep their times, which are part of what they are known by."""
    return Path(shutil.copytree(finished.parent, tmp_path / "copy")) / "run.yaml"


def cell(file: Path, method: str):
    record: RunFile = read_any(file.parent / "out" / "run.json", RunFile)
    steps = next(one.steps for one in record.cells if one.method == method)
    return {name: file.parent / "out" / place for name, place in steps.items()}


def test_a_finished_run(finished):
    """Scores of base and every stage, what each step cost, its log; large files of full training are let go."""
    total = sum(value.numel() for value in weights(finished.parent / "qwen3").values())
    trained = {}
    for method in METHODS:
        steps = cell(finished, method)
        matrix: ScoreMatrix = read_any(steps["evaluate"] / "scores.json", ScoreMatrix)
        assert [(stage.label, stage.learned) for stage in matrix.stages] == [
            ("base", ()), ("math", ("math",)), ("code", ("code",))
        ]  # fmt: skip
        base: EvaluationFile = read_any(steps["baseline"] / "evaluation.json", EvaluationFile)
        assert matrix.stages[0].scores == base.scores and matrix.of_task == {"math": "math", "code": "code"}
        values = [[score.value for score in stage.scores] for stage in matrix.stages]
        assert len({tuple(row) for row in values}) == 3  # each stage changed something
        record: StepFile = read_any(steps["train"] / "step.json", StepFile)
        assert record.cost.seconds > 0 and record.cost.peak_bytes > 1e8 and record.cost.bytes > 0
        trained[method] = record.cost.trained
    assert trained["sequential"] == total and 0 < trained["transfer-lf"] < total / 2
    directory = cell(finished, "sequential")["train"]
    removed = read_any(directory / "step.json", StepFile).removed
    assert {Path(name).parts[0] for name in removed} >= {f"{task}.patch.safetensors" for task in TASKS}
    assert not list(directory.glob("*.patch.safetensors")) and not (directory / "model").exists()
    assert len(list(cell(finished, "transfer-lf")["train"].glob("*.patch.safetensors"))) == 2
    assert re.search(r"training on math: step 2 of 2, 0:00:\d\d, loss \d", (directory / "log.txt").read_text())


def task_file(file: Path, data: Path, cores: Path | None = None) -> Path:
    """The run's tasks for a single command, each with its core file where there are some."""
    items = [{"name": task, "data": str(data / f"{task}.train.jsonl")} for task in TASKS]
    items = [{**item, **({"core": str(cores / f"{item['name']}.core.json")} if cores else {})} for item in items]
    file.write_text(yaml.safe_dump({"tasks": items}))
    return file


def test_it_does_what_the_commands_do(finished, tmp_path):
    """Core sets, tuned weights and last scores are those of `identify`, `map`, `train` and `evaluate` by themselves."""
    where, settings = finished.parent, {"batch_size": 4, "learning_rate": 1e-3, "max_length": 64}
    tasks, found, carried = task_file(tmp_path / "tasks.yaml", where), tmp_path / "found", tmp_path / "map"
    tt.identify(where / "llama", tasks, ratio=0.2, out=found, **settings)
    cores = [found / f"{task}.core.json" for task in TASKS]
    tt.map_models(where / "llama", where / "qwen3", core=cores, probe=where / "probe.txt", cache=None, out=carried)
    steps = cell(finished, "transfer-lf")
    for task in TASKS:
        ours, theirs = (read_any(place / f"{task}.core.json", CoreFile) for place in (steps["map"], carried))
        assert ours.parameters == theirs.parameters
    stream = task_file(tmp_path / "stream.yaml", where, carried)
    done = tt.train(where / "qwen3", stream, epochs=1, zero=0, out=tmp_path / "tuned", **settings)
    ours = read_any(steps["train"] / "stream.json", StreamFile)
    assert [stage.losses for stage in ours.stages] == [stage.losses for stage in done.record.stages]
    base, tuned = weights(where / "qwen3"), weights(tmp_path / "tuned" / "model")
    moved = {name for name in base if bool((base[name] != tuned[name]).any())}
    assert moved == {p.name for task in TASKS for p in read_any(steps["map"] / f"{task}.core.json", CoreFile).core}
    asked = EvaluateSettings(max_length=64, save_samples=False)
    plan = plan_evaluation(tmp_path / "tuned" / "model", load_run(finished).suite, asked)
    matrix: ScoreMatrix = read_any(steps["evaluate"] / "scores.json", ScoreMatrix)
    scores = evaluate(plan, tmp_path / "scores", Silent()).scores
    assert [one.value for one in scores] == [one.value for one in matrix.stages[-1].scores]


def test_nothing_is_run_twice(copied):
    def files():
        found = sorted((copied.parent / "out").rglob("*"))
        kept = [file for file in found if file.is_file() and file.name not in (".seen.json", ".lock")]
        return {str(file): sha256_file(file) for file in kept}

    before = files()
    assert run(copied) == {}
    assert files() == before


def test_one_setting_reruns_what_depends_on_it(copied):
    train = {**run_content()["train"], "learning_rate": 5e-4}
    write_file(copied.parent, methods=["transfer-lf"], train=train)
    graph = build_graph(load_run(copied))
    status = read_status(graph, graph.run.out)
    assert {one.reason for one in status if one.step.kind == "train"} == {"learning_rate: 0.001 → 0.0005"}
    assert {one.reason for one in status if one.step.kind == "evaluate"} == {"train is another"}
    assert run(copied) == {"train": 1, "evaluate": 1}
    write_file(copied.parent, methods=METHODS)
    assert run(copied) == {}  # the old steps are still there
    assert len(prune_steps(build_graph(load_run(copied)), copied.parent / "out")) == 2
    assert run(copied) == {}


def test_what_was_removed_is_made_again_when_it_is_needed(copied):
    write_file(copied.parent, methods=["sequential"], evaluate={"max_length": 64, "limit": 2, "save_samples": False})
    assert run(copied) == {"train": 1, "baseline": 1, "evaluate": 1}
    write_file(copied.parent, methods=["transfer-lf"], keep="all")
    assert run(copied) == {}
    shutil.rmtree(cell(copied, "transfer-lf")["train"])
    assert run(copied) == {"train": 1}
    assert (cell(copied, "transfer-lf")["train"] / "model" / "config.json").is_file()


def test_files_edited_by_hand(copied):
    core = cell(copied, "transfer-lf")["map"] / "math.core.json"
    core.write_text(core.read_text().replace('"core": true', '"core": false', 1))
    scores = cell(copied, "sequential")["evaluate"] / "scores.json"
    scores.unlink()
    (scores.parent / "mine.txt").write_text("note")
    with pytest.raises(UserError, match="not as these made them") as caught:
        run(copied)
    told = str(caught.value)
    for expected in ("math.core.json: its hash is another", "scores.json: missing", "mine.txt: not there"):
        assert expected in told
    assert "--rebuild" in told
    (scores.parent / "mine.txt").unlink()
    assert run(copied, rebuild=True) == {"map": 1, "evaluate": 1, "train": 1}  # scoring needs patches that are gone
    assert run(copied) == {}


def test_who_may_run_here(copied):
    """Not a second process or another run; what a killed stage left is not of the step."""
    out = copied.parent / "out"
    (cell(copied, "sequential")["train"] / LOCK).write_text("12345\nnode-17\n")
    (cell(copied, "sequential")["evaluate"] / "1-math" / LOCK).touch()
    graph = build_graph(load_run(copied))
    status = read_status(graph, out)
    assert all(one.record is not None for one in status)

    def run_it():
        return run_to_the_end(graph, status, Display(), StopSignal())

    with held(out):
        for call in (run_it, lambda: prune_steps(graph, out), lambda: write_report(out)):
            with pytest.raises(UserError, match="another process is at work here"):
                call()
    assert run_it().record.name == "small"
    write_file(copied.parent, name="other", methods=METHODS)
    with pytest.raises(UserError, match="holds the results of another run, 'small'"):
        run(copied)


def test_a_step_that_fails(copied):
    """Others that do not need it were finished; the message says for which cells it was."""
    train = {**run_content()["train"], "learning_rate": 1e30}
    write_file(copied.parent, methods=["sequential"], train=train)
    with pytest.raises(TraceTransferError, match=r"train \(sequential, seed 0\): .*loss"):
        run(copied)
    with pytest.raises(UserError, match=r"nothing to report yet; steps not finished: 2$"):
        write_report(copied.parent / "out")


def test_learning_rates_are_chosen_on_other_seeds(copied):
    """On the tuning's seeds alone; a rate that is added, or reported too, makes only what is new."""
    out = copied.parent / "out"

    def tuned(**tuning) -> tuple[RunFile, Counter]:
        before = {step.parent for step in out.glob("steps/*/step.json")}
        write_file(copied.parent, methods=["sequential"], source=None, tuning={"seeds": [7], **tuning})
        run(copied)
        new = {step.parent for step in out.glob("steps/*/step.json")} - before
        return read_any(out / "run.json", RunFile), Counter(step.name.rpartition("-")[0] for step in new)

    def scores(steps) -> float:
        matrix: ScoreMatrix = read_any(out / steps["evaluate"] / "scores.json", ScoreMatrix)
        return sum(score.value for score in matrix.stages[-1].scores)

    record, made = tuned(rates={"sequential": [1e-5, 3e-2]})
    losses = {cell.value: scores(cell.steps) for cell in record.cells if cell.axis == "tuning"}
    best = min(losses, key=losses.get)
    assert record.tuning.chosen == {"sequential": best} and made == {"train": 3, "evaluate": 3}
    assert [(cell.seed, cell.axis) for cell in record.cells] == [(0, None), (7, "tuning"), (7, "tuning")]
    step: StepFile = read_any(out / record.cells[0].steps["train"] / "step.json", StepFile)
    assert (step.settings["learning_rate"], step.settings["seed"]) == (best, 0)
    record, made = tuned(rates={"sequential": [1e-5, 3e-2]}, front="all")
    assert made == {"train": 1, "evaluate": 1} and len(record.cells) == 5
    tuning = {"seeds": [7], "rates": {"sequential": [1e-6, 1e-5, 3e-2]}}
    graph = build_graph(load_run(write_file(copied.parent, methods=["sequential"], source=None, tuning=tuning)))
    new = [one.step for one in read_status(graph, out) if one.record is None]
    assert [(step.kind, step.settings.get("learning_rate")) for step in new] == [("train", 1e-6), ("evaluate", None)]
    assert graph.waiting == ("sequential",)
    with pytest.raises(UserError, match="learning rates of sequential are not chosen yet"):
        prune_steps(graph, out)


def test_scores_at_the_base_are_those_of_identify(copied, tmp_path):
    methods = ["trace-snr-parameters", "random-within-rows"]
    write_file(copied.parent, methods=methods, source=None)
    assert run(copied) == {"identify": 2, "train": 2, "evaluate": 2}
    trained = [read_any(cell(copied, one)["train"] / "step.json", StepFile).cost.trained for one in methods]
    assert trained[0] == pytest.approx(trained[1], rel=0.1)
    tasks = task_file(tmp_path / "tasks.yaml", copied.parent)
    asked = {"method": "snr", "unit": "rows", "ratio": 0.2, "max_length": 64}
    found = tt.identify(copied.parent / "qwen3", tasks, out=tmp_path / "found", **asked)
    for core in found.cores:
        ours: CoreFile = read_any(cell(copied, "random-within-rows")["identify"] / f"{core.task}.core.json", CoreFile)
        assert ours.parameters == core.parameters


def test_the_targets_own_gradients_choose_by_what_was_carried(copied, tmp_path):
    write_file(copied.parent, methods=["transfer-lf", "transfer-snr-rows", "prior-snr-rows"])
    assert run(copied) == {"map": 1, "identify": 2, "train": 2, "evaluate": 2}
    tasks = task_file(tmp_path / "tasks.yaml", copied.parent)
    for method, how in (("transfer-snr-rows", "within"), ("prior-snr-rows", "prior")):
        steps = cell(copied, method)
        asked = {"method": "snr", "unit": "rows", "ratio": 0.2, "max_length": 64, how: steps["map"]}
        for core in tt.identify(copied.parent / "qwen3", tasks, out=tmp_path / how, **asked).cores:
            ours, carried = (read_any(steps[name] / f"{core.task}.core.json", CoreFile) for name in ("refine", "map"))
            assert ours.parameters == core.parameters
            assert ours.core and (how == "prior" or {p.name for p in ours.core} <= {p.name for p in carried.core})


def test_several_at_a_time(copied, finished):
    for method in METHODS:
        for kind in ("train", "evaluate"):
            shutil.rmtree(cell(copied, method)[kind])
    assert run(copied, jobs=2) == {"train": 2, "evaluate": 2}
    places = [cell(one, "transfer-lf")["evaluate"] / "scores.json" for one in (copied, finished)]
    ours, theirs = (read_any(place, ScoreMatrix) for place in places)
    for mine, other in zip(ours.stages, theirs.stages, strict=True):
        assert [s.value for s in mine.scores] == pytest.approx([s.value for s in other.scores], rel=1e-4)
