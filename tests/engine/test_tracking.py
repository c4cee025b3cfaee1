"""Trackers: what TensorBoard shows, also after an interruption; any tracker that accelerate knows."""

import json
from pathlib import Path

import pytest
from accelerate import tracking as accelerates
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trace_transfer.engine.distributed import open_ranks
from trace_transfer.engine.tracking import open_trackers, require_trackers
from trace_transfer.errors import UserError


@pytest.fixture(autouse=True)
def _ranks():
    with open_ranks():
        yield


class Offline(accelerates.GeneralTracker):
    """A tracker of one's own, as people register them with accelerate."""

    name, requires_logging_directory = "offline", True

    def __init__(self, run_name: str, logging_dir: str):
        super().__init__()
        self.place, self.told = Path(logging_dir, f"told-{run_name}"), []

    @property
    def tracker(self):
        return self

    def start(self):
        print("greetings")
        if self.place.name == "told-refused":
            raise RuntimeError("api_key not configured (no-tty)\nrun login")

    def log(self, values, step=None, **options):
        self.told.append([step, values])

    def finish(self):
        self.place.write_text(json.dumps(self.told))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, "offline", Offline)


def shown(directory: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(directory)).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_and_a_tracker_of_ones_own(tmp_path, capfd, offline):
    trackers = open_trackers(("tensorboard", "offline"), tmp_path, "math")
    for step in (1, 2):
        trackers.log(step, {"loss": 4.0 / step, "learning_rate": 0.5 * step})
    expected = {"loss": [(1, 4.0), (2, 2.0)], "learning_rate": [(1, 0.5), (2, 1.0)]}
    assert shown(tmp_path / "tensorboard" / "math") == expected  # while it runs
    trackers.close()
    assert shown(tmp_path / "tensorboard" / "math") == expected
    told = json.loads((tmp_path / "tensorboard" / "told-math").read_text())
    assert told == [[1, {"loss": 4.0, "learning_rate": 0.5}], [2, {"loss": 2.0, "learning_rate": 1.0}]]
    assert capfd.readouterr().out == ""


def test_a_resumed_curve_has_no_step_twice(tmp_path):
    killed = open_trackers(("tensorboard",), tmp_path, "math")
    for step in range(1, 7):
        killed.log(step, {"loss": float(step)})  # never closed
    going_on = open_trackers(("tensorboard",), tmp_path, "math", first_step=4)
    going_on.log(4, {"loss": 40.0})
    going_on.log(5, {"loss": 50.0})
    going_on.close()
    assert shown(tmp_path / "tensorboard" / "math") == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]}


def test_what_cannot_be_used(tmp_path, offline, monkeypatch):
    with pytest.raises(UserError, match=r"--track offline: cannot be begun: api_key not configured .*\. Log in"):
        open_trackers(("tensorboard", "offline"), tmp_path, "refused")
    with pytest.raises(UserError, match="tensorbord: no such tracker; there are "):
        require_trackers(("tensorbord",))
    monkeypatch.setattr(accelerates, "_available_trackers", [])
    with pytest.raises(UserError, match="pip install comet_ml"):
        require_trackers(("comet_ml",))
