import errno
import math
from pathlib import Path

import pytest

from trace_transfer.engine.checkpointing import Log, Step, from_csv, to_csv
from trace_transfer.errors import TrainingError

STEPS = [Step(1, 1 / 3, 1e-5, 2.5, 100, 40), Step(2, math.pi, 3.3333333333333335e-06, 1e-300, 7, 1)]


def test_numbers_come_back_to_the_bit():
    assert from_csv(to_csv(STEPS)) == STEPS
    assert to_csv(STEPS).splitlines()[0] == "step,loss,learning_rate,grad_norm,tokens,supervised"
    with pytest.raises(ValueError, match="expected the columns step, loss"):
        from_csv("a,b\n1,2\n")


def test_a_log_begins_with_what_is_known(tmp_path):
    (tmp_path / "loss.csv").write_text("whatever a killed run lef")
    log = Log(tmp_path, STEPS[:1])
    log.add(STEPS[1])
    assert (tmp_path / "loss.csv").read_text() == to_csv(STEPS)
    assert log.steps == STEPS


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path, [])
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(TrainingError, match=r"loss.csv: cannot be written: No space left on device; make room"):
        log.add(STEPS[0])
