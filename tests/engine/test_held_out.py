"""Evaluation while a model trains: it changes no bit, is exact, decides the same after a stop, and with two ranks."""

import itertools

import pytest
import torch

from tests.engine.made_up import base_of, make_task, run
from tests.engine.test_loop import WHOLE, Notes, differing
from trace_transfer.data.examples import collate, losses
from trace_transfer.engine import batches, checkpointing
from trace_transfer.engine.batches import Evaluation, HeldOut
from trace_transfer.engine.checkpointing import read_evaluations
from trace_transfer.engine.loop import Run
from trace_transfer.errors import TrainingError
from trace_transfer.stopping import StopRequested, StopSignal

OTHERS = (make_task(7, seed=11, name="law"), make_task(5, seed=12, name="math"))


def slowly(model, values, data):
    """The mean over supervised tokens, an example at a time, in plain torch."""
    loaded = base_of(model).load(torch.float32).eval()
    with torch.no_grad():
        for name, value in values.items():
            loaded.get_parameter(name).copy_(value)
        total = 0.0
        for example in data.examples:
            batch = collate([example])
            total += losses(loaded(input_ids=batch.input_ids_bt).logits, batch.targets_bt).double().sum().item()
    return total / sum(example.num_supervised for example in data.examples)


@pytest.mark.parametrize(("family", "zero"), [("gpt2", 0), ("llama", 3)])
def test_it_changes_no_bit_and_is_exact(tiny, tmp_path, family, zero):
    """gpt2 has dropout."""
    model, options = tiny(family), {"zero": zero, "batch_size": 5}
    plain, expected = run(model, tmp_path / "plain", **options)
    reporter = Notes()
    asked = HeldOut(OTHERS, every=2)
    found, values = run(model, tmp_path / "looked", held_out=asked, reporter=reporter, **options)
    assert differing(values, expected) == []
    assert (tmp_path / "plain/loss.csv").read_bytes() == (tmp_path / "looked/loss.csv").read_bytes()
    assert [one.step for one in found.evaluations] == [2, 4, 5]
    for data in OTHERS:
        assert found.evaluations[-1].losses[data.task] == pytest.approx(slowly(model, values, data), rel=1e-6)
    assert read_evaluations(tmp_path / "looked/eval.csv") == found.evaluations
    assert f"loss {found.losses[-1]:.3f} · held-out {found.evaluations[-1].loss:.3f} · " in reporter.told[-1]
    assert (found.kept, plain.evaluations) == (None, ())


def pretended(monkeypatch, course):
    """Evaluations that find these losses, one after the other, whatever the weights are."""
    real = batches.evaluate

    def find(*given):
        found, step = real(*given), given[-1]
        return Evaluation(step, dict.fromkeys(found.losses, course[step]), found.supervised)

    monkeypatch.setattr(batches, "evaluate", find)


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_the_best_is_kept_and_training_ends(tiny, tmp_path, monkeypatch, zero):
    """Stopped by SIGTERM after every step and gone on from: the same decisions, the same bits, the best never lost."""
    options = {"zero": zero, "batch_size": 5, "epochs": 3, "mask": WHOLE, "held_out": HeldOut(OTHERS, 1, 3, True)}
    course = {1: 3.0, 2: 2.5, 3: 2.0, 4: 2.5, 5: 2.0, 6: 2.1, 7: 1.0}
    pretended(monkeypatch, course)
    seen, find = {}, batches.evaluate
    with monkeypatch.context() as patched:
        patched.setattr(batches, "evaluate", lambda *a: (seen.update({a[-1]: dict(a[0].values())}), find(*a))[1])
        whole, kept = run(tiny("llama"), tmp_path / "whole", **options)
    assert (whole.kept, len(whole.losses)) == (3, 6)
    assert differing(kept, seen[3]) == [] and differing(kept, seen[6]) != []
    stop, one_step = StopSignal(), Run.one_step
    monkeypatch.setattr(Run, "one_step", lambda self, *a: (setattr(stop, "requested", True), one_step(self, *a))[1])
    for count in itertools.count(1):
        stop.requested = False
        try:
            again, resumed = run(tiny("llama"), tmp_path / "cut", stop=stop, **options)
            break
        except StopRequested:
            assert checkpointing.find(tmp_path / "cut").evaluations == whole.evaluations[:count]
    assert (count, again.losses, again.evaluations, again.kept) == (7, whole.losses, whole.evaluations, 3)
    assert differing(resumed, kept) == []
    assert (tmp_path / "cut/eval.csv").read_bytes() == (tmp_path / "whole/eval.csv").read_bytes()


def test_other_held_out_examples_or_no_best_are_not_gone_on_from(tiny, tmp_path):
    asked, place = HeldOut(OTHERS, 1, None, True), tmp_path / "checkpoint"
    with pytest.raises(OSError, match="no room"):
        run(tiny("llama"), tmp_path, held_out=asked, finish=lambda values: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(TrainingError, match=r"- held_out.every: 1 in the checkpoint, 2 now\n  - held_out.sha256"):
        run(tiny("llama"), tmp_path, held_out=HeldOut(OTHERS[:1], 2, None, True))
    best = checkpointing.find(tmp_path).path
    best.rename(place / "step-00000009")
    with pytest.raises(TrainingError, match=r"step-0000000\d, the best so far, is not there"):
        run(tiny("llama"), tmp_path, held_out=asked)
