"""Optimizers and schedules by name: what their libraries do, masked and in rows, and the same bits after a stop."""

import math

import pytest
import torch
import transformers

from tests.engine.made_up import base_of, make_task, run, settings, steps_of
from tests.engine.test_loop import differing, stop_after
from tests.reference.masked_loop import train_masked_slowly
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine.distributed import open_ranks
from trace_transfer.engine.engine import open_engine
from trace_transfer.engine.optimizers import OPTIMIZERS, SCHEDULES, require_known, schedule, treatments
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
    anatomy = anatomy_of(base_of(model).inventory, load_families())
    return anatomy.describe


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


@pytest.mark.parametrize("name", ARGS)
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_its_state_is_what_is_told_of_it(tiny, name, precision):
    """So that memory is counted, and a checkpoint has all of it."""
    pytest.importorskip(NEEDS.get(name, "torch"))
    place = tiny("llama")
    chosen = settings(**OPTIONS, optimizer=name, optimizer_args=ARGS[name])
    with open_ranks() as ranks:
        start = base_of(place)
        trained = MASK.trained_shapes(start.inventory.shapes)
        treated = treatments(trained, chosen, described(place))
        with open_engine(start.load(getattr(torch, precision)), chosen, ranks, MASK, treated) as built:
            for kept in built.deepspeed.basic_optimizer.state.values():  # DeepSpeed took a step while it was built
                assert not any(kept[kind].any() for kind in kept if kind[:4] not in ("qmap", "step", "RMS"))
                assert float(kept.get("step", 0)) == 0
            built.set_steps(3)
            for one, master in built._plain.items():
                kept = built.deepspeed.basic_optimizer.state[master]
                found = {
                    kind: value.nbytes for kind, value in kept.items()
                    if isinstance(value, torch.Tensor) and value.dim() and not kind.startswith("qmap")
                }  # fmt: skip
                assert found == treated[one].state(trained[one], chosen)
                assert float(kept.get("step", 3)) == 3


ARGS_OF_SCHEDULES = {
    "cosine_with_restarts": {"num_cycles": 2}, "polynomial": {"power": 2.0, "lr_end": 1e-6},
    "cosine_with_min_lr": {"min_lr_rate": 0.1}, "cosine_warmup_with_min_lr": {"min_lr": 1e-6, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("num_steps", "warmup"), [(2, 0.1), (10, 0.0), (40, 0.33)])
def test_rates_are_those_of_transformers(name, num_steps, warmup):
    args = ARGS_OF_SCHEDULES.get(name, {})
    chosen = settings(schedule=name, schedule_args=args, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=chosen.learning_rate)
    scheduler = transformers.get_scheduler(name, optimizer, math.ceil(warmup * num_steps), num_steps, args)
    share = schedule(chosen, num_steps)
    for step in range(num_steps):
        assert chosen.learning_rate * share(step) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_a_single_step_moves_something():
    assert schedule(settings(warmup=0.5), 1)(0) == 1.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"optimizer": "muon", "zero": 3}, "muon reads each tensor as a matrix, and ZeRO 3 cuts .*use zero 0, or"),
        ({"optimizer": "adamw_8bit", "zero": 1}, "keeps a scale for each 256 elements"),
        ({"optimizer_args": {"beta": [0.9, 0.9]}}, r"beta: no such setting; did you mean betas\? \(of optimizer adamw"),
        ({"schedule_args": {"num_cycle": 2}}, r"num_cycle: no such setting; did you mean num_cycles\?"),
        ({"optimizer": "adamw"}, "optimizer: 'adamw' is none of .*; did you mean adamw_"),
        ({"learning_rate_of": {"mlp": 0}}, r"learning_rate_of\['mlp'\]: found 0, expected greater than 0"),
    ],
)
def test_what_contradicts(given, told):
    with pytest.raises(UserError, match=told):
        TrainSettings(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"learning_rate_of": {"atention": 1e-4}}, r"mean no tensor(.|\n)*- atention\n(.|\n)* attention.query, "),
        ({"no_decay": ("model.layers.9.*",)}, r"mean no tensor(.|\n)*- model.layers.9.\*\n"),
        (
            {"learning_rate_of": {"*.norm.*": 1e-4, "model.norm.*": 1e-5}},
            "norm.weight: 0.0001 by '.*norm.*', 1e-05 by 'm",
        ),
    ],
)
def test_keys_that_mean_nothing_or_one_tensor_twice(tiny, given, told):
    anatomy = anatomy_of(base_of(tiny("llama")).inventory, load_families())
    with pytest.raises(UserError, match=told):
        require_known(TrainSettings(**given), anatomy)
    require_known(TrainSettings(no_decay=("bias", "norm", "mlp.router")), anatomy)  # of other models


def test_the_closest_key_wins():
    keys = ["attention", "attention.query", "bias", "model.layers.0.*", "model.layers.0.self_attn.q_proj.bias"]
    given = {key: 10.0**-number for number, key in enumerate(keys)}
    for number, name in enumerate(["k", "q", "q.bias", "model.layers.0.q.bias", *keys[4:]]):
        component = "attention.key" if number == 0 else "attention.query"
        chosen = TrainSettings(learning_rate_of=given)
        found = treatments({name: (2,)}, chosen, lambda name, component=component: (name, (component,)))
        assert found[name].learning_rate == given[keys[number]]
