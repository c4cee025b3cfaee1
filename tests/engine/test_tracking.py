"""Trackers: what TensorBoard shows, also after an interruption; W&B and Comet by stand-ins for their packages."""

import json
import os
import sys
from pathlib import Path

import pytest

from trace_transfer.engine import tracking
from trace_transfer.engine.distributed import open_ranks
from trace_transfer.engine.tracking import NoTracker, open_tracker, require_trackers
from trace_transfer.errors import UserError

WANDB = """
import json, os
events = []
def note(kind, **values):
    events.append([kind, values])
    with open(os.environ["STAND_IN"], "w") as file:
        json.dump(events, file)
def init(**options):
    print("wandb: greetings")
    if os.environ.get("FAILS"):
        raise RuntimeError("api_key not configured (no-tty)\\nrun wandb login")
    note("init", options=options, seen={k: v for k, v in os.environ.items() if k.startswith("WANDB_")})
def log(data, step=None, commit=None):
    note("log", data=data, step=step)
def finish(**options):
    note("finish")
"""
COMET = """
import json, os
__version__ = "3.50.0"
events = []
class Experiment:
    def set_name(self, name): events.append(["name", name])
    def __internal_api__log_metric__(self, **values): events.append(["log", values])
    def end(self):
        with open(os.environ["STAND_IN"], "w") as file:
            json.dump(events, file)
def start(**options):
    events.append(["start", options])
    return Experiment()
"""


@pytest.fixture(autouse=True)
def _ranks():
    with open_ranks():
        yield


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`stand_in(name, code)`: put a package of that name where it is found; returns the file of what it was told."""

    def put(name: str, code: str) -> Path:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("STAND_IN", str(tmp_path / "told.json"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path / "told.json"

    yield put
    for name in ("wandb", "comet_ml"):
        sys.modules.pop(name, None)


def shown(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory)).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_shows_what_was_logged(tmp_path, capfd):
    tracker = open_tracker(("tensorboard",), tmp_path, "math")
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 4.0 / step, "learning_rate": 0.5 * step})
    expected = {
        "loss": [(1, 4.0), (2, 2.0), (3, pytest.approx(4 / 3))],
        "learning_rate": [(1, 0.5), (2, 1.0), (3, 1.5)],
    }
    assert shown(tmp_path / "tensorboard" / "math") == expected  # while it runs
    tracker.close()
    tracker.close()
    assert shown(tmp_path / "tensorboard" / "math") == expected
    assert capfd.readouterr() == ("", "")


def test_a_resumed_curve_has_no_step_twice(tmp_path):
    killed = open_tracker(("tensorboard",), tmp_path, "math")
    for step in range(1, 7):
        killed.log(step, {"loss": float(step)})  # never closed
    going_on = open_tracker(("tensorboard",), tmp_path, "math", first_step=4)
    going_on.log(4, {"loss": 40.0})
    going_on.log(5, {"loss": 50.0})
    going_on.close()
    assert shown(tmp_path / "tensorboard" / "math") == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]}
    killed.close()


def test_wandb(tmp_path, stand_in, monkeypatch, capfd):
    told = stand_in("wandb", WANDB)
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = open_tracker(("wandb", "tensorboard"), tmp_path, "math")
    tracker.log(7, {"loss": 1.5, "learning_rate": 0.1})
    tracker.close()
    (start, told_first), *logged, end = json.loads(told.read_text())
    assert (start, end[0]) == ("init", "finish")
    assert told_first["options"] == {"project": "trace-transfer", "group": None, "entity": None}
    seen = told_first["seen"]
    assert (seen["WANDB_NAME"], seen["WANDB_MODE"], seen["WANDB_RESUME"]) == ("mine", "offline", "allow")
    assert (seen["WANDB_DIR"], len(seen["WANDB_RUN_ID"])) == (str(tmp_path), 32)
    assert [values for _, values in logged] == [
        {"data": {"loss": 1.5}, "step": 7}, {"data": {"learning_rate": 0.1}, "step": 7},
    ]  # fmt: skip
    assert shown(tmp_path / "tensorboard" / "math")["loss"] == [(7, 1.5)]
    assert {name for name in os.environ if name.startswith("WANDB_")} == {"WANDB_NAME", "WANDB_MODE"}
    assert capfd.readouterr().out == ""
    open_tracker(("wandb",), tmp_path, "math").close()
    assert json.loads(told.read_text())[-2][1]["seen"]["WANDB_RUN_ID"] == seen["WANDB_RUN_ID"]
    open_tracker(("wandb",), tmp_path, "law").close()
    assert json.loads(told.read_text())[-2][1]["seen"]["WANDB_RUN_ID"] != seen["WANDB_RUN_ID"]


def test_comet(tmp_path, stand_in):
    told = stand_in("comet_ml", COMET)
    tracker = open_tracker(("comet",), tmp_path, "math")
    for step in (1, 2):
        tracker.log(step, {"loss": 0.5 * step})
    tracker.close()
    (_, options), name, *logged = json.loads(told.read_text())
    assert name == ["name", "math"]
    assert (options["project"], options["mode"], len(options["experiment_key"])) == (
        "trace-transfer", "get_or_create", 32,
    )  # fmt: skip
    assert [(values["name"], values["value"], values["step"]) for _, values in logged] == [
        ("loss", 0.5, 1), ("loss", 1.0, 2),
    ]  # fmt: skip


def test_one_that_cannot_be_begun(tmp_path, stand_in, monkeypatch):
    stand_in("wandb", WANDB)
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(UserError, match=r"--track wandb: cannot be begun: api_key not configured \(no-tty\)\. Log in"):
        open_tracker(("wandb",), tmp_path, "math")
    assert "WANDB_RUN_ID" not in os.environ


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track: these need a package that is not installed") as refused:
        require_trackers(("tensorboard", "wandb", "comet"))
    for hint in (
        "tensorboard: pip install 'tensorboard>=2.17'",
        "wandb: pip install 'wandb'",
        "comet: pip install 'comet_ml>=3.41'",
    ):
        assert hint in str(refused.value)
    assert tracking.PACKAGES["tensorboard"][1] in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    with pytest.raises(UserError, match="tensorboard: pip install"):
        open_tracker(("tensorboard",), tmp_path, "math")


def test_nobody_listens(tmp_path, monkeypatch):
    assert isinstance(open_tracker((), tmp_path, "math"), NoTracker)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)
    other = open_tracker(("tensorboard",), tmp_path, "math")
    other.log(1, {"loss": 1.0})
    other.close()
    assert list(tmp_path.iterdir()) == []
