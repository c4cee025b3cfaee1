"""LoRA: what is wrapped, drawn, trained, written, carried on and merged, against peft's own ways."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.engine.made_up import base_of, make_task, run, settings
from trace_transfer.data.examples import collate, losses
from trace_transfer.engine.adapters import AdaptedModel
from trace_transfer.engine.batches import Plan
from trace_transfer.engine.optimizers import schedule
from trace_transfer.errors import ModelError

# Plain, transposed weights (square ones among them), fused ones.
FAMILIES = ("llama", "gpt2", "phi3")
quiet = pytest.mark.filterwarnings("ignore:.*(fan_in_fan_out|is_gradient_checkpointing)")


def adapted(directory, **options) -> AdaptedModel:
    return AdaptedModel(base_of(directory), **{"rank": 3, "alpha": 7.0, **options})


def made_up_values(model: AdaptedModel, seed: int = 5) -> dict[str, torch.Tensor]:
    """Adapters of which B is not 0."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in model.shapes.items()}


def plain(directory, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def pefts_own(directory, rank=3, alpha=7.0):
    """As anyone would wrap a model."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(plain(directory), config)


def logits(model) -> torch.Tensor:
    ids = torch.arange(1, 25).view(2, 12)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_wrapped_as_peft_wraps_it(tiny, family, capfd):
    own, base = pefts_own(tiny(family)), plain(tiny(family))
    capfd.readouterr()
    start = adapted(tiny(family))
    model = start.load(torch.float32)
    assert capfd.readouterr() == ("", "")
    trained = {name: tuple(p.shape) for name, p in own.named_parameters() if p.requires_grad}
    assert dict(start.shapes) == trained
    assert dict(start.mask.parts) == dict.fromkeys(trained)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in own.named_parameters()]
    for (name, parameter), theirs in zip(model.named_parameters(), own.parameters(), strict=True):
        if "lora_A" not in name:
            assert torch.equal(parameter, theirs), name
        else:  # another draw from the same distribution
            assert not torch.equal(parameter, theirs)
            bound = parameter.shape[1] ** -0.5
            assert 0.7 * bound < parameter.abs().max() <= bound
            assert abs(parameter.std() - bound / 3**0.5) < 0.2 * bound
    assert torch.equal(logits(model), logits(base))  # nothing has been learned yet


@quiet
@pytest.mark.parametrize(("family", "carried"), [("llama", False), ("gpt2", True)])
def test_one_at_a_time_is_the_same_as_loaded(tiny, tmp_path, family, carried):
    start = adapted(tiny(family))
    if carried:
        start.write(tmp_path, made_up_values(start).items())
        start = adapted(tiny(family), adapter=tmp_path)
    whole, low = start.load(torch.float32), start.load(torch.bfloat16)
    names = [name for name, _ in whole.named_parameters()]
    skeleton = start.skeleton(torch.bfloat16)
    assert [(n, p.shape, p.dtype) for n, p in skeleton.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in low.named_parameters()
    ]
    assert all(p.is_meta for p in skeleton.parameters()) and low.dtype == torch.bfloat16
    for dtype, model in ((torch.float32, whole), (torch.bfloat16, low)):
        found = list(start.values(names, dtype))
        assert [name for name, _ in found] == names
        for name, value in found:
            assert torch.equal(value, model.get_parameter(name)) and value.dtype == dtype, name
    if carried:
        assert all(torch.equal(whole.get_parameter(n), value) for n, value in made_up_values(start).items())


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_written_as_peft_reads_it_and_merged_as_peft_merges(tiny, tmp_path, family):
    start = adapted(tiny(family))
    values = made_up_values(start)
    start.write(tmp_path, values.items())
    theirs = PeftModel.from_pretrained(plain(tiny(family)), tmp_path)
    for name, value in values.items():
        assert torch.equal(theirs.get_parameter(name), value), name
    mine = adapted(tiny(family), adapter=tmp_path).load(torch.float32).eval()
    assert torch.equal(logits(mine), logits(theirs))
    base = plain(tiny(family))
    found = dict(start.merged(lambda name: base.get_parameter(name).detach(), tmp_path))
    assert len(found) == len(values) / 2
    expected = theirs.merge_and_unload()
    for name, parameter in expected.named_parameters():
        assert torch.equal(found.get(name, base.get_parameter(name)), parameter), name
    assert not torch.equal(logits(expected), logits(base))


def test_fingerprints(tiny, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    start = adapted(tiny("llama"))
    start.write(one, made_up_values(start, 1).items())
    start.write(other, made_up_values(start, 2).items())
    kinds = [
        start, adapted(tiny("llama"), rank=4), adapted(tiny("llama"), alpha=8.0), adapted(tiny("llama"), seed=1),
        adapted(tiny("llama"), adapter=one), adapted(tiny("llama"), adapter=other), adapted(tiny("llama", seed=1)),
    ]  # fmt: skip
    assert len({kind.identity["fingerprint"] for kind in kinds}) == len(kinds)
    drawn = [
        {n: p for n, p in kind.load(torch.float32).named_parameters() if "lora_A" in n} for kind in (start, kinds[3])
    ]
    assert not any(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    assert adapted(tiny("llama")).identity == start.identity
    assert adapted(tiny("llama"), adapter=one, seed=9).identity == kinds[4].identity
    assert start.identity["names_sha256"] == start.start.identity["names_sha256"]


def test_an_adapter_that_cannot_be_used(tiny, tmp_path):
    start = adapted(tiny("llama"), adapter=tmp_path)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: missing, cut short or damaged"):
        start.load(torch.float32)


def train_slowly(model, data, options) -> list[float]:
    """Whatever requires grad, in plain torch; the losses."""
    steps = Plan(data, options)
    share = schedule(options, steps.num_steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=0.0, weight_decay=options.weight_decay)
    found = []
    for number, batch in enumerate(steps.batches()):
        padded = collate(list(batch.examples))
        out = model(input_ids=padded.input_ids_bt, attention_mask=padded.attention_mask_bt, use_cache=False).logits
        loss = losses(out, padded.targets_bt).sum() / batch.num_supervised
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
        adamw.param_groups[0]["lr"] = options.learning_rate * share(number)
        adamw.step()
        found.append(float(loss.detach()))
    return found


@quiet
def test_trained_as_peft_is_by_hand(tiny, tmp_path):
    """Two tasks, one adapter carried through both."""
    options, theirs = {"epochs": 2, "weight_decay": 0.1, "learning_rate": 1e-2}, pefts_own(tiny("llama")).eval()
    start, tasks = adapted(tiny("llama")), [make_task(seed=seed, name=f"task-{seed}") for seed in (0, 1)]
    with torch.no_grad():
        for name, value in start.values(start.shapes, torch.float32):
            theirs.get_parameter(name).copy_(value)
    for data in tasks:
        kept: dict[str, torch.Tensor] = {}

        def finish(values, start=start, data=data, kept=kept):
            kept.update(values)
            start.write(tmp_path / data.task, kept.items())

        result, _ = run(start, tmp_path / f"of-{data.task}", data, finish=finish, mask=start.mask, **options)
        assert kept.keys() == start.shapes.keys()
        assert result.losses == pytest.approx(train_slowly(theirs, data, settings(**options)), rel=1e-4)
        for name, value in kept.items():
            torch.testing.assert_close(value, theirs.get_parameter(name).detach(), rtol=2e-3, atol=2e-4)
        start = adapted(tiny("llama"), adapter=tmp_path / data.task)
    before, after = adapted(tiny("llama")).load(torch.float32), start.load(torch.float32)
    for name, parameter in after.named_parameters():
        moved = not torch.equal(parameter, before.get_parameter(name))
        assert moved == (name in start.shapes), name


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_zero_3_trains_the_same_adapters(tiny, tmp_path, precision):
    start = adapted(tiny("llama"))
    (plain_, values_0), (partitioned, values_3) = (
        run(start, tmp_path / str(zero), zero=zero, precision=precision, micro_batch_size=8, mask=start.mask)
        for zero in (0, 3)
    )
    assert values_0.keys() == values_3.keys() == start.shapes.keys()
    assert partitioned.losses == pytest.approx(plain_.losses, rel=1e-5 if precision == "float32" else 1e-2)
    for name, value in dict(start.values(start.shapes, torch.float32)).items():
        assert not torch.equal(values_3[name], value), name  # the adapters moved
        if precision == "float32":
            torch.testing.assert_close(values_3[name], values_0[name], rtol=1e-3, atol=1e-5)
