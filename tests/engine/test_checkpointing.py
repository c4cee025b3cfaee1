import math

import pytest
import torch

from trace_transfer.engine import checkpointing
from trace_transfer.engine.batches import Evaluation
from trace_transfer.engine.checkpointing import Step, add_step, evaluations_csv, read_csv, read_evaluations, to_csv
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


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_comes_back_as_it_was(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(checkpointing, "SHARD_BYTES", shard_bytes)
    assert checkpointing.find(tmp_path) is None
    path = checkpointing.write(tmp_path, IDENTITY, STEPS, 12.5, states())
    saved = checkpointing.find(tmp_path)
    assert (saved.path, saved.steps, saved.seconds) == (path, tuple(STEPS), 12.5)
    saved.require_same(IDENTITY)
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        found, expected = dict(saved.read(kind)), {name: kinds[kind] for name, kinds in states()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert len(list(path.glob("*.safetensors"))) == (1 if shard_bytes > 1000 else 3)


def test_the_newest_and_the_best_stay_and_leftovers_go(tmp_path):
    for count in range(1, 6):
        (tmp_path / "checkpoint" / f".step-0000000{count}.part").mkdir(parents=True)  # half written, or half removed
        steps = [Step(number + 1, 2.0, 1e-5, 1.0, 10, 5) for number in range(count)]
        checkpointing.write(tmp_path, IDENTITY, steps, 1.0, states(count), 2, best=2 if count > 1 else None)
    assert names(tmp_path) == [f"step-0000000{count}" for count in (2, 4, 5)]
    (tmp_path / "checkpoint" / "step-00000001").mkdir()  # not yet removed
    (tmp_path / "checkpoint" / ".step-00000003.part").mkdir()
    assert len(checkpointing.find(tmp_path).steps) == 5
    checkpointing.remove_leftovers(tmp_path)
    assert names(tmp_path) == [f"step-0000000{count}" for count in (1, 2, 4, 5)]
    checkpointing.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_differs_is_said(tmp_path):
    checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    other = {"task": "law", "settings": {"seed": 1, "max_grad_norm": None}, "num_steps": 3}
    told = "  - settings.seed: 0 in the checkpoint, 1 now\n  - task: 'math' in the checkpoint, 'law' now"
    with pytest.raises(TrainingError, match=told):
        checkpointing.find(tmp_path).require_same(other)


def test_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch):
    def fill(path, *_):
        path.write_bytes(b"half")
        raise DiskFullError("as `write_tensors` says it")

    checkpointing.write(tmp_path, IDENTITY, STEPS[:1], 1.0, states())
    monkeypatch.setattr(checkpointing, "write_tensors", fill)
    message = rf"{tmp_path}.*of step 2 cannot be written: as `write_tensors` .*step-00000001 is good"
    with pytest.raises(TrainingError, match=message):
        checkpointing.write(tmp_path, IDENTITY, STEPS, 2.0, states())
    assert names(tmp_path) == ["step-00000001"]
    assert dict(checkpointing.find(tmp_path).read("master")).keys() == dict(states()).keys()


def test_a_checkpoint_that_lacks_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "SHARD_BYTES", 1)
    path = checkpointing.write(tmp_path, IDENTITY, STEPS, 1.0, states())
    two = dict.fromkeys(["a.weight", "b/c.bias"], ("master", "exp_avg", "exp_avg_sq"))
    three = {**two, "z": two["a.weight"]}
    saved = checkpointing.find(tmp_path)
    saved.require_whole(three)
    with pytest.raises(TrainingError, match="z/master"):
        saved.require_whole(two)
    whole = (path / "00001.safetensors").read_bytes()
    (path / "00001.safetensors").write_bytes(whole[:-1])
    with pytest.raises(TrainingError, match=r"00001\.safetensors: damaged"):
        saved.require_whole(three)
    (path / "00001.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"(?s)lacks values.*b/c.bias/exp_avg.*b/c.bias/master"):
        saved.require_whole(three)


LOGGED = [Step(1, 1 / 3, 1e-5, 2.5, 100, 40), Step(2, math.pi, 3.3333333333333335e-06, 1e-300, 7, 1)]
EVALUATED = [Evaluation(2, {"law": 1 / 3, "math": 2.0}, {"law": 5, "math": 7}), Evaluation(4, {"law": 1.5}, {"law": 5})]


def test_numbers_come_back_to_the_bit(tmp_path):
    file = tmp_path / "loss.csv"
    file.write_text(to_csv(LOGGED[:1]))
    add_step(tmp_path, LOGGED[1])
    assert read_csv(file, 2) == LOGGED
    assert file.read_text().splitlines()[0] == "step,loss,learning_rate,grad_norm,tokens,supervised"
    (tmp_path / "eval.csv").write_text(evaluations_csv(EVALUATED))
    assert list(read_evaluations(tmp_path / "eval.csv")) == EVALUATED
    assert (tmp_path / "eval.csv").read_text().splitlines()[:2] == ["step,task,loss,supervised", f"2,law,{1 / 3},5"]
    assert read_evaluations(tmp_path / "none.csv") == ()


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: text.replace("2,3.14", "2,nan")])
def test_a_damaged_table(tmp_path, damage):
    (tmp_path / "loss.csv").write_text(damage(to_csv(LOGGED)))
    with pytest.raises(TrainingError, match=r"loss\.csv: damaged; expected whole lines of step, loss"):
        read_csv(tmp_path / "loss.csv")
