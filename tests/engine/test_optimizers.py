"""Optimizers and schedules by name: what their libraries do, masked and in rows, and the same bits after a stop."""

import pytest
import torch
import transformers

from tests.engine.made_up import base_of, make_task, run, settings, steps_of
from tests.engine.test_loop import differing, stop_after
from tests.reference.masked_loop import train_masked_slowly
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine.optimizers import OPTIMIZERS, SCHEDULES, require_known, schedule
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import TrainingError, UserError
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families

DOWN, UP = "model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.up_proj.weight"
EMBEDDING, NORM, QUERY = "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
MASK = Mask({EMBEDDING: None, QUERY: None, DOWN: Slice(1, ((3, 20), (40, 41))), UP: Slice(0, ((0, 30),)), NORM: None})
OPTIONS = {
    "learning_rate": 1e-3, "learning_rate_of": {"mlp": 3e-3, EMBEDDING: 1e-4}, "weight_decay": 5.0,
    "no_decay": ("norm", "embedding"), "batch_size": 5, "max_grad_norm": 0.5,
}  # fmt: skip
HIGHEST = {EMBEDDING: 1e-4, QUERY: 1e-3, DOWN: 3e-3, UP: 3e-3, NORM: 1e-3}
ARGS = {
    "adamw_torch": {"betas": [0.8, 0.95], "amsgrad": True},
    "adamw_torch_fused": {"betas": [0.8, 0.95]},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adafactor": {"beta1": 0.8, "scale_parameter": True},
    "muon": {"ns_steps": 4},
    "adamw_8bit": {"min_8bit_size": 512},
    "lion_8bit": {"min_8bit_size": 512},
}
ROUGH = {"muon": 1e-5, "adamw_8bit": 1e-4, "lion_8bit": 1e-4}  # of losses: bfloat16, 8 bits
NEEDS = {"adamw_8bit": "bitsandbytes", "lion_8bit": "bitsandbytes"}
FAST = {("adamw_torch", 2), ("adamw_torch_fused", 0), ("sgd", 3), ("adafactor", 0), ("muon", 0), ("adamw_8bit", 0)}
WAYS = [
    (name, zero, precision)
    for name in ARGS
    for zero, precision in ((0, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "float32"), (3, "float32"))
    if not (zero and OPTIMIZERS[name].whole)
]


def marked(ways):
    """Each optimizer in one way; the others are slow."""
    return [
        pytest.param(*way, marks=[] if way[:2] in FAST and "bfloat16" not in way else [pytest.mark.slow])
        for way in ways
    ]  # fmt: skip


def by_hand(name, leaves):
    """The library's own optimizers, each tensor a group with its rate and decay."""

    def groups(names):
        return [
            {"params": [leaves[one]], "lr": HIGHEST[one], "weight_decay": 0.0 if one in (NORM, EMBEDDING) else 5.0}
            for one in names
        ]  # fmt: skip

    args = {key: tuple(value) if isinstance(value, list) else value for key, value in ARGS[name].items()}
    if name == "muon":
        matrices = [one for one in leaves if one not in (NORM, EMBEDDING)]
        rest = [one for one in leaves if one in (NORM, EMBEDDING)]
        own = torch.optim.Muon(groups(matrices), adjust_lr_fn="match_rms_adamw", **args)
        return [own, torch.optim.AdamW(groups(rest))]
    if name == "adafactor":
        return [transformers.Adafactor(groups(leaves), relative_step=False, **args)]
    if name in NEEDS:
        library = pytest.importorskip("bitsandbytes").optim
        return [{"adamw_8bit": library.AdamW8bit, "lion_8bit": library.Lion8bit}[name](groups(leaves), **args)]
    return [(torch.optim.SGD if name == "sgd" else torch.optim.AdamW)(groups(leaves), **args)]


def described(model):
    return anatomy_of(base_of(model).inventory, load_families()).describe


@pytest.mark.parametrize(("name", "zero"), marked([way[:2] for way in WAYS if "float32" in way]))
def test_what_its_library_does(tiny, tmp_path, name, zero):
    """With rows, a rate and a decay for some tensors, clipped."""
    pytest.importorskip(NEEDS.get(name, "torch"))
    model, options = tiny("llama"), {**OPTIONS, "optimizer": name, "optimizer_args": ARGS[name]}
    chosen = settings(**options)
    losses, _, expected = train_masked_slowly(
        model, steps_of(make_task(), chosen), chosen, MASK, lambda leaves: by_hand(name, leaves)
    )
    result, values = run(model, tmp_path, mask=MASK, describe=described(model), zero=zero, **options)
    assert result.losses == pytest.approx(losses, rel=ROUGH.get(name, 1e-6))
    moved = torch.cat([(values[one] - expected[one]).abs().flatten() for one in expected])
    # Where a gradient is almost 0, its sign, which rounding decides, makes a whole step; in 8 bits a rounding, too.
    assert (moved > (1e-4 if name == "muon" else 1e-5)).double().mean() < (0.02 if name in NEEDS else 1e-3), moved.max()


@pytest.mark.parametrize(("name", "zero", "precision"), marked(WAYS))
def test_going_on_gives_the_same_bits(tiny, tmp_path, monkeypatch, name, zero, precision):
    pytest.importorskip(NEEDS.get(name, "torch"))
    model = tiny("llama")
    options = {
        **OPTIONS, "optimizer": name, "optimizer_args": ARGS[name], "zero": zero, "precision": precision, "mask": MASK,
        "describe": described(model),
    }  # fmt: skip
    _, undisturbed = run(model, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(TrainingError, match="stopped here"):
            run(model, tmp_path / "cut", checkpoint_minutes=0, **options)
    _, resumed = run(model, tmp_path / "cut", **options)
    assert differing(resumed, undisturbed) == []
    assert (tmp_path / "cut/loss.csv").read_bytes() == (tmp_path / "whole/loss.csv").read_bytes()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_moves_something_in_a_single_step(name):
    args = {"num_decay_steps": 1} if name == "warmup_stable_decay" else {"min_lr_rate": 0.1} if "min_lr" in name else {}
    assert schedule(settings(schedule=name, schedule_args=args), 1)(0) > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"optimizer": "muon", "zero": 3}, "muon reads each tensor as a matrix, and ZeRO 3 cuts .*use zero 0"),
        ({"optimizer_args": {"beta": [0.9, 0.9]}}, r"beta: no such setting; did you mean betas\? \(of optimizer adamw"),
        ({"schedule_args": {"num_cycle": 2}}, r"num_cycle: no such setting; did you mean num_cycles\?"),
    ],
)
def test_what_contradicts(given, told):
    with pytest.raises(UserError, match=told):
        TrainSettings(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"learning_rate_of": {"atention": 1e-4}}, r"mean no tensor(.|\n)*- atention\n(.|\n)* attention.query, "),
        ({"learning_rate_of": {"*.norm.*": 1e-4, "model.norm.*": 1e-5}}, "norm.weight: 0.0001 by '.*norm.*', 1e-05 by"),
    ],
)
def test_keys_that_mean_nothing_or_one_tensor_twice(tiny, given, told):
    anatomy = anatomy_of(base_of(tiny("llama")).inventory, load_families())
    with pytest.raises(UserError, match=told):
        require_known(TrainSettings(**given), anatomy)
    require_known(TrainSettings(no_decay=("bias", "norm", "mlp.router")), anatomy)  # of other models
