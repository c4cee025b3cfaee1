"""GPUs handed out to steps, with made-up GPUs: each has its own, as many as it asks for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.study.run_directories import write_run
from trace_transfer.errors import UserError
from trace_transfer.stopping import StopSignal
from trace_transfer.study import running
from trace_transfer.study.graph import build_graph
from trace_transfer.study.run_file import load_run
from trace_transfer.study.running import Here, check_plan, visible_gpus
from trace_transfer.study.status import StepStatus
from trace_transfer.study.steps import Resources, Step


@pytest.mark.parametrize(
    "named, count, found",
    [
        (None, 3, ("0", "1", "2")),
        ("5,3", 2, ("5", "3")),
        ("GPU-1ab2,-1,2", 1, ("GPU-1ab2",)),  # CUDA stops at the first that is none
    ],
)
def test_what_the_user_left_visible_under_his_names(monkeypatch, named, count, found):
    monkeypatch.setattr(running, "num_gpus", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found


class Pipe:
    """The events of a step that has ended."""

    def recv(self) -> tuple[str, str]:
        raise EOFError

    def close(self) -> None:
        return None


@pytest.fixture
def handed(monkeypatch, tiny, tmp_path):
    """`handed(kinds, ...)`: which GPUs each step is begun with, in rounds; at the end of each the first one ends."""

    file = write_run(tmp_path, tiny, methods=["sequential"], source=None)

    def run(kinds, jobs, processes, gpus, resources):
        steps = [Step(kind, {"number": number}) for number, kind in enumerate(kinds)]
        asked = {kind: Resources(**values) for kind, values in resources.items()}
        study = replace(load_run(file), jobs=jobs, processes=processes, resources=asked)
        graph = SimpleNamespace(run=study, steps=(), label=lambda step: step.kind)
        display = SimpleNamespace(begin=lambda *_: None, end=lambda *_: None)
        monkeypatch.setattr(running, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(running, "context", lambda: None)
        monkeypatch.setattr(running.connection, "wait", lambda found, timeout: found[:1])
        scheduler = Here(graph, [StepStatus(step, None) for step in steps], None, display, StopSignal())
        rounds = []

        def begin(step, gpus):
            rounds[-1].append((step.kind, gpus))
            process = SimpleNamespace(join=lambda: None, exitcode=0)
            return running._Running(step, process, Pipe(), gpus, ended=("done", ""))

        monkeypatch.setattr(scheduler, "_begin", begin)
        monkeypatch.setattr(scheduler, "_let_go", lambda *_: None)
        while scheduler.waiting or scheduler.running:
            rounds.append([])
            scheduler.start()
            scheduler.listen()
        return rounds

    return run


@pytest.mark.parametrize(
    "kinds, jobs, processes, gpus, resources, rounds",
    [
        (["train"] * 3, 3, 2, ("0", "1", "GPU-a", "GPU-b"), {},
         [[("train", ("0", "1")), ("train", ("GPU-a", "GPU-b"))], [("train", ("0", "1"))], []]),
        (["evaluate"] * 3, 2, 4, ("0", "1", "2", "3"), {},  # no more jobs than asked for
         [[("evaluate", ("0",)), ("evaluate", ("1",))], [("evaluate", ("0",))], []]),
        (["evaluate", "train", "evaluate"], 3, 2, ("0", "1"), {},  # a large step is not overtaken for ever
         [[("evaluate", ("0",))], [("train", ("0", "1"))], [("evaluate", ("0",))]]),
        (["train", "baseline", "evaluate"], 3, 1, ("0", "1", "2"), {"default": {"gpus": 0}, "train": {"gpus": 2}},
         [[("train", ("0", "1")), ("baseline", ()), ("evaluate", ())], [], []]),
        (["evaluate"], 1, 1, ("0", "1"), {}, [[("evaluate", None)]]),  # alone, it has the machine to itself
        (["train", "evaluate"], 1, 1, ("0", "1"), {"train": {"gpus": 2}},  # so do they one after another
         [[("train", ("0", "1"))], [("evaluate", ("0",))]]),
    ],
)  # fmt: skip
def test_who_gets_which(handed, kinds, jobs, processes, gpus, resources, rounds):
    assert handed(kinds, jobs=jobs, processes=processes, gpus=gpus, resources=resources) == rounds


def test_more_processes_than_gpus_are_refused_in_the_plan(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = {"processes: 3": {"processes": 3}, r"resources\.evaluate: 4": {"resources": {"evaluate": {"gpus": 4}}}}
    for told, changes in asked.items():
        graph = build_graph(load_run(write_run(tmp_path, tiny, methods=["sequential"], **changes)))
        with pytest.raises(UserError, match=f"{told}: one needs a GPU each, and this machine has 2"):
            check_plan(graph)
    check_plan(graph, elsewhere=True)
