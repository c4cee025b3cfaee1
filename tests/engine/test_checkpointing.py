import errno
import json
import math
from pathlib import Path

import pytest
import torch

from trace_transfer.engine import checkpointing
from trace_transfer.engine.checkpointing import Log, Step, from_csv, to_csv
from trace_transfer.errors import TrainingError
from trace_transfer.files import DiskFullError

IDENTITY = {"task": "math", "settings": {"seed": 0, "max_grad_norm": None}, "num_steps": 3}
STEPS = [Step(1, 2.0, 1e-5, 1.0, 10, 5), Step(2, 1.5, 1e-5, 1.0, 12, 6)]


def states(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for name in ("a.weight", "b/c.bias", "z"):
        yield name, {kind: torch.randn(7, 3, generator=generator) for kind in ("master", "exp_avg", "exp_avg_sq")}


def names(directory):
    return sorted(path.name for path in (directory / "checkpoint").iterdir())


@pytest.mark.parametrize("shard_bytes", [1, 200, 1 << 20])
def test_comes_back_as_it_was(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(checkpointing, "SHARD_BYTES", shard_bytes)
    assert checkpointing.find(tmp_path) is None
    path = checkpointing.write(tmp_path, IDENTITY, STEPS, 12.5, states())
    saved = checkpointing.find(tmp_path)
    assert (saved.path, saved.steps, saved.seconds) == (path, tuple(STEPS), 12.5)
    checkpointing.require_same(saved, IDENTITY)
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        found, expected = dict(saved.read(kind)), {name: kinds[kind] for name, kinds in states()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert len(list(path.glob("*.safetensors"))) == (1 if shard_bytes > 1000 else 3)


def test_the_newest_stays_and_leftovers_go(tmp_path):
    checkpointing.write(tmp_path, IDENTITY, STEPS[:1], 1.0, states())
    checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states(1))
    assert names(tmp_path) == ["step-00000002"]
    (tmp_path / "checkpoint" / "step-00000001").mkdir()  # half removed
    (tmp_path / "checkpoint" / ".step-00000003.part").mkdir()  # half written
    assert len(checkpointing.find(tmp_path).steps) == 2
    checkpointing.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000002"]
    checkpointing.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_some_are_kept(tmp_path):
    for count in range(1, 5):
        steps = [Step(number + 1, 2.0, 1e-5, 1.0, 10, 5) for number in range(count)]
        checkpointing.write(tmp_path, IDENTITY, steps, 1.0, states(count), 3)
    assert names(tmp_path) == [f"step-0000000{count}" for count in (2, 3, 4)]
    (tmp_path / "checkpoint" / ".step-00000001.part").mkdir()  # half removed
    checkpointing.remove_leftovers(tmp_path, 2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    assert len(checkpointing.find(tmp_path).steps) == 4


def test_everything_that_differs_is_said(tmp_path):
    checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    other = {"task": "law", "settings": {"seed": 1, "max_grad_norm": None}, "num_steps": 3}
    with pytest.raises(TrainingError, match="a training of 2 steps was stopped here") as caught:
        checkpointing.require_same(checkpointing.find(tmp_path), other)
    message = str(caught.value)
    assert "a training of 2 steps was stopped here" in message
    assert "  - settings.seed: 0 in the checkpoint, 1 now\n  - task: 'math' in the checkpoint, 'law' now" in message
    assert message.count("  - ") == 2


def test_what_earlier_versions_recorded_beside_it_does_not_matter(tmp_path):
    now = {"task": "math", "settings": {"epochs": 3}}
    checkpointing.write(tmp_path, {**now, "prefix": 2, "settings": {"epochs": 3, "cache_prefix": "auto"}}, [], 0.0, [])
    checkpointing.require_same(checkpointing.find(tmp_path), now)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        DiskFullError("as `write_tensors` says it"),
    ],
)
def test_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch, failure):
    def fill(path, *_):
        path.write_bytes(b"half")
        raise failure

    checkpointing.write(tmp_path, IDENTITY, STEPS[:1], 1.0, states())
    monkeypatch.setattr(checkpointing, "write_tensors", fill)
    message = rf"{tmp_path}.*of step 2 cannot be written: the disk is full\. .*step-00000001 is good"
    with pytest.raises(TrainingError, match=message):
        checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    assert names(tmp_path) == ["step-00000001"]
    assert dict(checkpointing.find(tmp_path).read("master")).keys() == dict(states()).keys()


def test_interrupted_while_writing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointing, "write_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    assert names(tmp_path) == []


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    record = path / "checkpoint.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 9}))
    with pytest.raises(TrainingError, match=r"(?s)not a checkpoint of this .*version: Input should be 1; found 9"):
        checkpointing.find(tmp_path)


def test_a_checkpoint_that_lacks_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "SHARD_BYTES", 1)
    path = checkpointing.write(tmp_path, IDENTITY, STEPS, 1.0, states())
    two = dict.fromkeys(["a.weight", "b/c.bias"], ("master", "exp_avg", "exp_avg_sq"))
    three = {**two, "z": two["a.weight"]}
    saved = checkpointing.find(tmp_path)
    saved.require_whole(three)
    with pytest.raises(TrainingError, match="z/master: is of nothing that is trained"):
        saved.require_whole(two)
    whole = (path / "00001.safetensors").read_bytes()
    (path / "00001.safetensors").write_bytes(whole[:-1])
    with pytest.raises(TrainingError, match=r"00001\.safetensors: damaged"):
        saved.require_whole(three)
    (path / "00001.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"(?s)b/c.bias/exp_avg: is not there.*b/c.bias/master: is not there"):
        saved.require_whole(three)


LOGGED = [Step(1, 1 / 3, 1e-5, 2.5, 100, 40), Step(2, math.pi, 3.3333333333333335e-06, 1e-300, 7, 1)]


def test_numbers_come_back_to_the_bit():
    assert from_csv(to_csv(LOGGED)) == LOGGED
    assert to_csv(LOGGED).splitlines()[0] == "step,loss,learning_rate,grad_norm,tokens,supervised"
    with pytest.raises(ValueError, match="expected the columns step, loss"):
        from_csv("a,b\n1,2\n")


def test_a_log_begins_with_what_is_known(tmp_path):
    (tmp_path / "loss.csv").write_text("whatever a killed run lef")
    log = Log(tmp_path, LOGGED[:1])
    log.add(LOGGED[1])
    assert (tmp_path / "loss.csv").read_text() == to_csv(LOGGED)
    assert log.steps == LOGGED


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path, [])
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(TrainingError, match=r"loss.csv: cannot be written: No space left on device; make room"):
        log.add(LOGGED[0])
