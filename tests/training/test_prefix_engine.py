"""The cached prefix through DeepSpeed: the same training as without it, also where ZeRO 3 holds parameters in parts."""

import pytest
import torch

from tests.training.made_up import make_task, settings
from trace_transfer.examples import collate, losses
from trace_transfer.masks import Mask, Slice
from trace_transfer.models import ModelSource
from trace_transfer.training import engine as engine_module
from trace_transfer.training.engine import open_engine
from trace_transfer.training.loading import BaseModel
from trace_transfer.training.meeting import open_ranks
from trace_transfer.training.prefix import fill, reusing_prefix
from trace_transfer.training.prefix_store import PrefixCache

MASK = Mask({
    "model.layers.2.mlp.down_proj.weight": None,
    "model.layers.3.self_attn.q_proj.weight": Slice(0, ((3, 40),)),
    "model.norm.weight": None,
})  # fmt: skip
DATA = make_task(12)


def steps():
    """Two epochs of a step with two micro-batches and one with one, of the texts that the cache computes together."""
    ordered = sorted(DATA.examples, key=lambda example: -len(example.input_ids))
    first, second, third = ordered[:4], ordered[4:8], ordered[8:]
    return [(third, first), (second,), (first, second), (third,)]


def train(engine, prefix, cache):
    """Loss and gradient norm of each step."""
    seen = []
    for micro_batches in steps():
        total = 0.0
        for examples in micro_batches:
            batch = collate(examples)
            if prefix is not None:
                prefix.set(cache.read(examples))
            loss = losses(engine.logits(batch), batch.targets_bt).sum() / 100
            engine.backward(loss, last=examples is micro_batches[-1])
            total += loss.item()
        seen.append((total, engine.step(1e-3)))
    return seen


def run(directory, cache_directory, dtype, cached, **options):
    with open_ranks() as ranks:
        model = BaseModel(ModelSource.parse(directory)).load(dtype)
        layers, head = model.get_submodule("model.layers"), model.get_output_embeddings()
        with open_engine(model, settings(micro_batch_size=4, **options), ranks, MASK) as engine:
            if not cached:
                return train(engine, None, None), dict(engine.values())
            cache = PrefixCache(cache_directory, {"model": "a"}, DATA.examples, 2, 48, dtype, 4, shard_bytes=1 << 12)
            assert fill(cache, layers, head, engine.logits, ranks) == len(cache.shards) > 1
            for parameter in (layers[0].mlp.up_proj.weight, head.weight):
                assert (parameter.numel() == 0) == (options["zero"] == 3)
            with reusing_prefix(layers, 2) as prefix:
                return train(engine, prefix, cache), dict(engine.values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero", [0, 3])
def test_the_same_bits_as_without_it(tiny, tmp_path, monkeypatch, zero, precision, checkpointing):
    monkeypatch.setattr(engine_module, "PERSISTENT", 0)  # so that ZeRO 3 takes each weight away after use
    dtype = getattr(torch, precision)
    options = {"zero": zero, "precision": precision, "gradient_checkpointing": checkpointing}
    expected, weights = run(tiny("llama"), tmp_path, dtype, False, **options)
    seen, values = run(tiny("llama"), tmp_path, dtype, True, **options)
    assert seen == expected
    assert expected[0][0] + expected[1][0] > expected[2][0] + expected[3][0]  # it learns
    assert values.keys() == weights.keys() == set(MASK.parts)
    assert [name for name in weights if not torch.equal(values[name], weights[name])] == []
