"""One process: against the slow twin, masked, twice the same, stopped by NaN, and gone on from a checkpoint."""

import re
from contextlib import contextmanager

import pytest
import torch

from tests.engine.made_up import base_of, make_mask, make_task, run, settings, steps_of
from tests.reference.masked_loop import train_masked_slowly
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine import checkpointing
from trace_transfer.engine.batches import Plan
from trace_transfer.engine.checkpointing import read_csv
from trace_transfer.engine.engine import Engine
from trace_transfer.engine.loop import Run
from trace_transfer.engine.slices import gathered
from trace_transfer.errors import FrozenMovedError, TrainingError, UserError
from trace_transfer.stopping import StopRequested, StopSignal

MASK = ("model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.layers.2.self_attn.k_proj.weight")
WHOLE = Mask(dict.fromkeys(MASK))
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
SLOW = pytest.mark.slow
SLICED = {"llama": (), "gpt2": (), "gemma3_text": SLOW}  # and whether it is slow
WAYS = [
    (0, "float32"), (1, "bfloat16"), (3, "float32"), pytest.param(0, "bfloat16", marks=SLOW),
    pytest.param(2, "float32", marks=SLOW), pytest.param(3, "bfloat16", marks=SLOW),
]  # fmt: skip


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.notes, self.told = [], []

    @contextmanager
    def task(self, description, total):
        yield lambda status="": self.told.append(status)

    def note(self, message):
        self.notes.append(message)


def differing(values, others):
    assert values.keys() == others.keys()
    return [name for name in values if not torch.equal(values[name], others[name])]


def stop_after(monkeypatch, steps):
    """Checkpoints are written; after the one of a step the training fails."""
    write = checkpointing.write

    def write_and_stop(directory, identity, done, *rest):
        write(directory, identity, done, *rest)
        if len(done) == steps:
            raise TrainingError("stopped here")

    monkeypatch.setattr(checkpointing, "write", write_and_stop)


@pytest.mark.parametrize(
    ("family", "masked", "options"),
    [
        ("llama", False, {"micro_batch_size": 8}),
        ("llama", False, {"micro_batch_size": 3, "epochs": 2, "weight_decay": 0.1}),
        ("qwen2", False, {"micro_batch_size": 1, "max_grad_norm": None}),
        ("gemma2", False, {"micro_batch_size": 2, "max_grad_norm": 0.1, "gradient_checkpointing": True}),
        *(
            pytest.param(family, True, {"weight_decay": 0.1, "max_grad_norm": 0.3, "epochs": 2}, marks=marks)
            for family, marks in SLICED.items()
        ),
    ],
)
def test_same_as_the_slow_twin(tiny, tmp_path, family, masked, options):
    """Everything, or parts of some tensors."""
    model, data = tiny(family, **NO_DROPOUT.get(family, {})), make_task(21, vocabulary=300)
    mask = make_mask(base_of(model).inventory) if masked else None
    options = {"learning_rate": 1e-3, **options}
    chosen = settings(**options)
    losses, norms, weights = train_masked_slowly(model, steps_of(data, chosen), chosen, mask)
    result, values = run(model, tmp_path, data, mask=mask, **options)
    assert result.losses == pytest.approx(losses, rel=1e-6)
    assert values.keys() == weights.keys()
    for name, expected in weights.items():
        # AdamW divides by the gradient's size: where that is almost 0, rounding shows. 1 of 10^5 is above 1e-6.
        torch.testing.assert_close(values[name], expected, rtol=0, atol=3e-6 if mask is None else 1e-5, msg=name)
    moved = torch.cat([(values[name] - expected).abs().flatten() for name, expected in weights.items()])
    assert (moved > 1e-6).double().mean() < 1e-4 or mask is not None
    rows = read_csv(tmp_path / "loss.csv")
    assert [row.loss for row in rows] == list(result.losses)
    assert [row.grad_norm for row in rows] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 1.0 or min(norms) > 0.3  # so that clipping was at work
    assert sum(row.tokens for row in rows) == sum(len(e.input_ids) for e in data.examples) * chosen.epochs
    assert sum(row.supervised for row in rows) == sum(e.num_supervised for e in data.examples) * chosen.epochs
    assert [path.name for path in tmp_path.iterdir()] == ["loss.csv"]


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_bfloat16_masters_begin_at_the_base(tiny, tmp_path, zero):
    """A learning rate too small to move anything: what is handed over is the base, not the base rounded."""
    _, values = run(tiny("llama"), tmp_path, precision="bfloat16", zero=zero, learning_rate=1e-30, weight_decay=0.5)
    assert differing(values, dict(base_of(tiny("llama")).load(torch.float32).named_parameters())) == []


@pytest.mark.parametrize(("zero", "precision"), WAYS)
def test_going_on_gives_the_same_bits(tiny, tmp_path, monkeypatch, zero, precision):
    model = tiny("llama", num_hidden_layers=2)
    options = {"zero": zero, "precision": precision, "batch_size": 5, "weight_decay": 0.1}
    _, undisturbed = run(model, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(TrainingError, match="stopped here"):
            run(model, tmp_path / "cut", checkpoint_minutes=0, **options)
    with (tmp_path / "cut" / "loss.csv").open("a") as stream:
        stream.write("4,0.1,half a l")
    reporter = Notes()
    result, resumed = run(model, tmp_path / "cut", reporter=reporter, **options)
    assert differing(resumed, undisturbed) == []
    assert (tmp_path / "cut" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()
    assert reporter.notes[0] == "made-up: going on after step 3 of 5"
    assert len(result.steps) == len(reporter.told) == 5
    assert re.fullmatch(rf"loss {result.losses[-1]:.3f} · [\d,]+ tokens/s", reporter.told[-1])


@pytest.mark.parametrize("zero", [0, 3])
def test_told_to_stop(tiny, tmp_path, monkeypatch, zero):
    """SIGTERM: a checkpoint, and no more than one; the same command goes on. The same again before a step is done."""

    model = tiny("llama", num_hidden_layers=2)
    stop, one_step, written, write = StopSignal(), Run.one_step, [], checkpointing.write
    options = {"zero": zero, "batch_size": 5, "keep_checkpoints": 2}

    def step_and_be_told(self, number, batch):
        stop.requested = number == 2
        return one_step(self, number, batch)

    def note_and_write(directory, identity, done, *rest):
        written.append(len(done))
        return write(directory, identity, done, *rest)

    _, undisturbed = run(model, tmp_path / "whole", **options)
    monkeypatch.setattr(checkpointing, "write", note_and_write)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "one_step", step_and_be_told)
        with pytest.raises(StopRequested, match="stopped by SIGTERM after step 3 of 5; the same command goes on"):
            run(model, tmp_path / "cut", stop=stop, checkpoint_minutes=0, **options)
    assert written == [1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "cut/checkpoint").iterdir()) == ["step-00000002", "step-00000003"]
    with pytest.raises(StopRequested, match="after step 3 of 5"):
        run(model, tmp_path / "cut", stop=StopSignal(True), **options)
    assert written == [1, 2, 3]
    _, resumed = run(model, tmp_path / "cut", stop=StopSignal(), **options)
    assert differing(resumed, undisturbed) == []


def test_dropout_is_drawn_anew_in_each_step(tiny, tmp_path, monkeypatch):
    """GPT-2 has dropout: twice the same, the same after an interruption, and the caller's random numbers are left."""
    model = tiny("gpt2")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    _, first = run(model, tmp_path / "first")
    assert torch.equal(torch.rand(1), expected)
    stop_after(monkeypatch, 2)
    with pytest.raises(TrainingError, match="stopped here"):
        run(model, tmp_path / "second", checkpoint_minutes=0)
    _, second = run(model, tmp_path / "second")
    assert differing(first, second) == []
    assert len(differing(first, run(model, tmp_path / "other", seed=1)[1])) == len(first)


def test_another_training_is_not_gone_on_from(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(TrainingError, match="stopped here"):
            run(tiny("llama"), tmp_path, checkpoint_minutes=0)
    with pytest.raises(TrainingError, match=r"\n  - data_sha256: .*\n  - settings.seed: 0 in the checkpoint, 3 now\n"):
        run(tiny("llama"), tmp_path, make_task(seed=5), seed=3)
    with pytest.raises(TrainingError, match=r"- model.fingerprint: (.|\n)*- trained.num_parameters: 39 .* 1 now\n"):
        run(tiny("llama", tie_word_embeddings=True), tmp_path, mask=Mask({"model.norm.weight": None}))
    result, _ = run(tiny("llama"), tmp_path, make_task())
    assert len(result.steps) == 3


@pytest.mark.parametrize("zero", [0, 3])
def test_nan_stops_before_the_step(tiny, tmp_path, monkeypatch, zero):
    """An example of the second step has a loss of NaN."""
    data, loss = make_task(24), Engine.loss
    second = list(Plan(data, settings()).batches())[1]
    culprit = second.micro_batches[1][0]

    def loss_with_nan(self, examples, weight=1.0):
        return loss(self, examples, weight) * (float("nan") if culprit in examples else 1.0)

    monkeypatch.setattr(Engine, "loss", loss_with_nan)
    with pytest.raises(TrainingError, match="NaN or infinite") as caught:
        run(tiny("llama"), tmp_path, data, checkpoint_minutes=0, zero=zero)
    message = str(caught.value)
    assert "task 'made-up', step 2 of 3: the loss of these examples is NaN or infinite" in message
    assert ", ".join(example.id for example in second.micro_batches[1]) in message
    assert second.micro_batches[0][0].id not in message
    assert all(value.isfinite().all() for name, value in checkpointing.find(tmp_path).read("exp_avg"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_infinite_gradient_stops(tiny, tmp_path, monkeypatch, precision):
    loss = Engine.loss
    monkeypatch.setattr(Engine, "loss", lambda *given: ((one := loss(*given)) - one.detach()).sqrt())
    with pytest.raises(TrainingError, match=r"step 1 of 3: the gradient .*\n(.|\n)*no checkpoint had been written yet"):
        run(tiny("llama"), tmp_path, precision=precision)


NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("name", [NORM, UP])
def test_one_bit_of_a_frozen_weight(tiny, tmp_path, monkeypatch, zero, name):
    """Of a whole tensor, and of the frozen rows of a sliced one."""
    handed, one_step = [], Run.one_step
    mask = Mask({"model.layers.1.mlp.down_proj.weight": None, UP: Slice(0, ((0, 2),))})

    options = {"data": make_task(6), "zero": zero, "finish": handed.extend, "mask": mask}
    run(tiny("llama"), tmp_path / "undisturbed", **options)
    assert len(handed) == 2

    def step_and_move(self, number, batch):
        parameter = self.engine.frozen[name]
        with torch.no_grad(), gathered(parameter, modify=True):
            parameter[-1] = torch.nextafter(parameter[-1], torch.full_like(parameter[-1], 9.0))
        return one_step(self, number, batch)

    monkeypatch.setattr(Run, "one_step", step_and_move)
    with pytest.raises(FrozenMovedError, match=f"(?s)nothing of this stage is kept.*{name}"):
        run(tiny("llama"), tmp_path / "moved", **options)
    assert len(handed) == 2


@pytest.mark.parametrize(
    ("family", "zero", "precision"),
    [("llama", 3, "float32"), ("llama", 0, "bfloat16"), ("gemma2", 0, "float32"), ("deepseek_v3", 0, "float32")],
)
def test_packed_texts_do_not_see_each_other(tiny, tmp_path, family, zero, precision):
    options = {"zero": zero, "precision": precision, "micro_batch_size": 4}
    model = tiny(family, **NO_DROPOUT.get(family, {}))
    padded, values = run(model, tmp_path / "padded", **options)
    found, others = run(model, tmp_path / "packed", packing=True, **options)
    assert found.losses == pytest.approx(padded.losses, rel=1e-5 if precision == "float32" else 0.02)
    moved = torch.cat([(values[name] - others[name]).abs().flatten() for name in values])
    assert precision == "bfloat16" or (moved > 1e-5).double().mean() < 5e-3


@pytest.mark.parametrize(("family", "precision"), [("bloom", "float32"), ("gpt_oss", "bfloat16")])
def test_a_model_that_reads_across_texts_is_not_packed(tiny, tmp_path, family, precision):
    with pytest.raises(UserError, match=rf"--packing: {family} cannot be trained so: .* differ by \d+\.\d%"):
        run(tiny(family), tmp_path, packing=True, precision=precision)
