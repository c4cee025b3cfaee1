"""A run that is stopped anywhere and started again ends with the same numbers, and the same report but for times."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.test_report import without_varying
from tests.study.run_directories import run_content, write_file, write_run

COMMAND = [sys.executable, "-m", "trace_transfer", "run"]


def start(file: Path, out: Path) -> subprocess.Popen:
    with (out.parent / "log.txt").open("ab") as log:
        command = [*COMMAND, str(file), "--out", str(out)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(file: Path, out: Path) -> None:
    assert start(file, out).wait() == 0, (out.parent / "log.txt").read_text()[-2000:]


def without_times(value):
    """JSON without what was measured of times and memory."""
    if isinstance(value, dict):
        left = ("seconds", "cost", "costs", "notes")
        return {key: without_times(one) for key, one in value.items() if key not in left}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, object]:
    """What a run leaves: hashes of all that steps wrote, but for files with times in them; numbers; the report."""
    found: dict[str, object] = {}
    for file in sorted(out.glob("steps/*/*.json")):
        content = without_times(json.loads(file.read_text()))
        if file.name == "step.json":
            timed = ("scores.json", "evaluation.json")
            content["files"] = {
                name: digest for name, digest in content["files"].items()
                if not name.endswith(timed) and "finished/" not in name
            }  # fmt: skip
        if not file.name.startswith("."):
            found[str(file.relative_to(out))] = content
    found["run"] = json.loads((out / "run.json").read_text())
    found["summary"] = without_times(json.loads((out / "summary.json").read_text()))
    found["report"] = [without_varying((out / name).read_text("utf-8")) for name in ("report.html", "report.md")]
    return found


def differing(ours: dict[str, object], theirs: dict[str, object]) -> set[str]:
    return {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}


def processes_of(group: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if line.strip()]


def ended(process: subprocess.Popen, log: Path) -> int:
    """The exit code of a run that was told to stop."""
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        left = processes_of(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"a run goes on after it was told to stop: {left}\n{log.read_text()[-2000:]}")


def log_of(out: Path, kind: str) -> str:
    return "".join(file.read_text() for file in out.glob(f"steps/{kind}-*/log.txt"))


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)


WAYS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (0, "stopped by SIGTERM"), signal.SIGKILL: (-9, "")}


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT,), pytest.param((signal.SIGKILL, signal.SIGTERM), marks=pytest.mark.slow)]
)
def test_stopped_killed_and_finished(tiny, tmp_path, numbers):
    """Each way ends as it should and leaves nobody behind, however long the step would go on; then it goes on."""
    endless = {**run_content()["train"], "epochs": 100_000}
    file = write_run(tmp_path / "run", tiny, methods=["sequential"], source=None, train=endless)
    out, log = tmp_path / "out", tmp_path / "log.txt"
    for count, number in enumerate(numbers, start=1):
        code, said = WAYS[number]
        process = start(file, out)
        wait_for(lambda count=count: log_of(out, "train").count(" begins, process ") == count, log)
        time.sleep(1.0)
        os.kill(process.pid, number)
        assert ended(process, log) == code and said in log.read_text(), log.read_text()[-2000:]
        wait_for(lambda process=process: processes_of(process.pid) == [], log, 10)
    assert not (out / "report.html").exists()
    if signal.SIGTERM in numbers:
        finish(write_file(file.parent, methods=["sequential"], source=None), out)
        assert (out / "report.html").is_file()


@pytest.mark.slow
def test_stopped_at_ten_drawn_moments(tiny, tmp_path):
    """By SIGKILL, SIGTERM and Ctrl-C in turn; about five minutes."""
    file = write_run(tmp_path / "run", tiny, methods=["sequential", "transfer-lf", "random"], seeds=[0, 1])
    began = time.monotonic()
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    finish(file, out)
    whole = time.monotonic() - began
    out.rename(undisturbed)  # the same place for both: files say where they were made
    drawn, stopped = random.Random(5), []
    while len(stopped) < 10:
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[len(stopped) % 3]
        process = start(file, out)
        try:
            assert process.wait(drawn.uniform(5, max(8.0, whole / 6))) == 0
            break  # it was done before
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        code = ended(process, tmp_path / "log.txt")
        expected = {signal.SIGKILL: (-9,), signal.SIGTERM: (0, -15), signal.SIGINT: (130, -2)}[number]
        assert code in expected, (number, code, (tmp_path / "log.txt").read_text()[-2000:])
        stopped.append(number)
    print(f"stopped {len(stopped)} times, {whole:.0f} s undisturbed")
    finish(file, out)
    assert len(stopped) >= 5
    assert differing(results(out), results(undisturbed)) == set()


@pytest.mark.slow
def test_several_processes_are_told_to_stop(tiny, tmp_path):
    """A training that its processes have saved is not taken for one that is finished."""
    long = {**run_content()["train"], "epochs": 30, "micro_batch_size": 2}
    file = write_run(tmp_path / "run", tiny, methods=["sequential"], source=None, processes=2, train=long)
    out = tmp_path / "out"
    process = start(file, out)
    wait_for(lambda: any(out.glob("steps/train-*/stages/1-*/loss.csv")), tmp_path / "log.txt")
    process.send_signal(signal.SIGTERM)
    assert ended(process, tmp_path / "log.txt") == 0
    told = "SIGTERM: stops once these have saved or finished what they do: train (sequential, seed 0)"
    assert told in (tmp_path / "log.txt").read_text()
    assert not list(out.glob("steps/train-*/step.json"))
    finish(file, out)
    assert log_of(out, "train").count(" begins, process ") == 2
    disturbed = results(out)
    shutil.rmtree(out)
    finish(file, out)
    assert differing(disturbed, results(out)) == set()
