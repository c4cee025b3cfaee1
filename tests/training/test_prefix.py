"""The cached prefix against the ordinary forward pass: every family, any boundary."""

import warnings
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.frozen_bottom import ALONE, FAMILIES, NO_DROPOUT, Opened
from trace_transfer.errors import TraceTransferError
from trace_transfer.examples import collate
from trace_transfer.masks import Mask
from trace_transfer.training.errors import TrainingError
from trace_transfer.training.prefix import computing_prefix, dropout_below, fill, reusing_prefix
from trace_transfer.training.reach import lowest_trained_layer


def inputs_one_by_one(opened, boundary):
    """The slow twin: each text alone through the ordinary forward pass, and what enters a layer."""
    found = []
    if boundary < len(opened.layers):
        hook = opened.layers[boundary].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    else:
        hook = opened.layers[-1].register_forward_hook(lambda _, args, output: found.append(output))
    with torch.no_grad():
        for example in opened.examples:
            opened.run(collate([example]))
    hook.remove()
    return [hidden_1td[0] for hidden_1td in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_boundary_is_where_gradients_end(tiny, family):
    """Of every parameter alone: the lowest layer whose output requires a gradient when it does."""
    opened = Opened(tiny, family)
    batch = collate(opened.examples[:1])
    needing = []
    for layer in opened.layers:
        layer.register_forward_hook(lambda _, args, output: needing.append(output.requires_grad))
    found = Counter()
    for name in opened.anatomy.inventory.shapes:
        opened.train_only([name])
        needing.clear()
        opened.run(batch)
        expected = needing.index(True) if True in needing else len(needing)
        assert lowest_trained_layer(opened.anatomy, Mask(dict.fromkeys([name]))) == expected, name
        found[expected] += 1
    assert set(found) == set(range(len(opened.layers) + 1))


def test_the_boundary_is_the_lowest_of_all(tiny):
    anatomy = Opened(tiny, "llama").anatomy
    norm, above, below = "model.norm.weight", "model.layers.3.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert lowest_trained_layer(anatomy, Mask(dict.fromkeys([norm, above, below]))) == 1
    assert lowest_trained_layer(anatomy, Mask(dict.fromkeys(["lm_head.weight", norm]))) == 4
    assert (
        lowest_trained_layer(anatomy, Mask(dict.fromkeys([above, "model.layers.3.lora_A.weight"]))) == 0
    )  # nobody knows where that is
    assert lowest_trained_layer(anatomy, Mask.everything(anatomy.inventory.shapes)) == 0
    tied = Opened(tiny, "qwen2").anatomy
    assert lowest_trained_layer(tied, Mask(dict.fromkeys(["lm_head.weight"]))) == 0


def test_dropout_below_the_boundary_is_told(tiny):
    def model(family, **changes):
        return AutoModelForCausalLM.from_pretrained(tiny(family, **changes))

    assert dropout_below(model("gpt2", **NO_DROPOUT), "transformer.h", 2) == []
    found = dropout_below(model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.25), "transformer.h", 2)
    assert found == ["transformer.h.0.attn.attn_dropout.p is 0.25", "transformer.h.1.attn.attn_dropout.p is 0.25"]
    assert dropout_below(model("gpt2", **{**NO_DROPOUT, "embd_pdrop": 0.5}), "transformer.h", 1) == [
        "transformer.drop.p is 0.5"
    ]
    llama = model("llama", attention_dropout=0.1)
    assert dropout_below(llama, "model.layers", 1) == ["model.layers.0.self_attn.attention_dropout is 0.1"]
    for family in FAMILIES:
        opened = Opened(tiny, family)
        assert dropout_below(opened.model, opened.anatomy.layer_path, len(opened.layers)) == [], family


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float32) for family in FAMILIES), ("llama", torch.bfloat16)]
)
def test_losses_and_gradients_are_those_without_it(tiny, tmp_path, family, dtype, checkpointing):
    opened = Opened(tiny, family, dtype)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name that older versions do not know
            opened.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for boundary in (1, 2, len(opened.layers)):
        names = opened.trained_from(boundary)
        assert lowest_trained_layer(opened.anatomy, Mask(dict.fromkeys(names))) == boundary
        cache = opened.cache(tmp_path / str(boundary), boundary)
        assert fill(cache, opened.layers, opened.head, opened.run, ALONE) == 1
        same, others = cache.shards[0][1], opened.examples[2:9]
        expected = [opened.loss_and_gradients(examples) for examples in (same, others)]
        with reusing_prefix(opened.layers, boundary) as prefix:
            found = []
            for examples in (same, others):
                prefix.set(cache.read(examples))
                found.append(opened.loss_and_gradients(examples))
        assert found[0][1].keys() == expected[0][1].keys() == set(names)
        assert torch.equal(found[0][0], expected[0][0])
        assert [name for name in names if not torch.equal(found[0][1][name], expected[0][1][name])] == []
        # Other texts share the padding: products of other shapes are rounded otherwise.
        atol = 1e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found[1][0], expected[1][0], rtol=1e-5 if dtype == torch.float32 else 1e-3, atol=0)
        for name in names:
            scale = expected[1][1][name].abs().max()
            assert (found[1][1][name] - expected[1][1][name]).abs().max() <= atol * scale, name
        again = opened.loss_and_gradients(same)
        assert torch.equal(again[0], expected[0][0])  # the layers are as they were
        assert not any("forward" in vars(layer) for layer in opened.layers)


@pytest.mark.parametrize("cached", [False, True])
def test_no_backward_below_the_boundary(tiny, tmp_path, cached):
    """And with the cache no forward: of the bottom only the layers themselves are called."""
    opened = Opened(tiny, "qwen3")
    opened.trained_from(3)
    cache = opened.cache(tmp_path, 3)
    fill(cache, opened.layers, opened.head, opened.run, ALONE)
    calls, saved, inside = Counter(), Counter(), []

    def leave(index, output):
        inside.clear()
        if output.requires_grad:
            output.register_hook(lambda _: calls.update([("backward", index)]))

    for index, layer in enumerate(opened.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: inside.append(index))
        layer.register_forward_hook(lambda _, args, output, index=index: leave(index, output))
        for module in layer.modules():
            if module is not layer:
                module.register_forward_hook(lambda *_, index=index: calls.update([("forward", index)]))

    def pack(tensor):
        saved.update(inside)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if cached:
            with reusing_prefix(opened.layers, 3) as prefix:
                prefix.set(cache.read(opened.examples[:2]))
                opened.loss_and_gradients(opened.examples[:2])
        else:
            opened.loss_and_gradients(opened.examples[:2])
    assert {index for what, index in calls if what == "backward"} == {3, 4}
    assert {index for what, index in calls if what == "forward"} == ({3, 4} if cached else {0, 1, 2, 3, 4})
    assert set(saved) == {3, 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_enters_the_layer(tiny, tmp_path, family):
    opened = Opened(tiny, family)
    for boundary in (1, len(opened.layers)):
        expected = inputs_one_by_one(opened, boundary)
        cache = opened.cache(tmp_path / str(boundary), boundary, shard_bytes=1 << 13)
        assert fill(cache, opened.layers, opened.head, opened.run, ALONE) == len(cache.shards) > 1
        found_btd = cache.read(opened.examples)
        assert found_btd.shape[:2] == collate(opened.examples).input_ids_bt.shape
        for found_td, expected_td in zip(found_btd, expected, strict=True):
            torch.testing.assert_close(found_td[: len(expected_td)], expected_td, rtol=1e-4, atol=1e-5)
            assert not found_td[len(expected_td) :].any()


def test_the_head_computes_nothing(tiny):
    opened = Opened(tiny, "llama")
    batch = collate(opened.examples)
    with computing_prefix(opened.layers, opened.head, 2) as prefix:
        assert opened.run(batch).shape == (10, 1, 48)
        assert prefix.take().shape == (*batch.input_ids_bt.shape, 48)
        with pytest.raises(TraceTransferError, match="no forward pass has come to the boundary"):
            prefix.take()


def test_states_must_be_given_for_each_pass_and_fit_it(tiny):
    opened = Opened(tiny, "llama")
    batch = collate(opened.examples[:2])
    hidden_btd = torch.zeros(*batch.input_ids_bt.shape, 48)
    with reusing_prefix(opened.layers, 2) as prefix:
        prefix.set(hidden_btd)
        opened.run(batch)
        with pytest.raises(TraceTransferError, match="a forward pass whose states below the boundary were not given"):
            opened.run(batch)
        prefix.set(hidden_btd[:, 1:])
        with pytest.raises(TraceTransferError, match=r"states of \[2, \d+, 48\] in torch.float32 were given for"):
            opened.run(batch)
        prefix.set(hidden_btd.bfloat16())
        with pytest.raises(TraceTransferError, match=r"in torch\.bfloat16 were given for a forward pass"):
            opened.run(batch)
    for boundary in (0, 5):
        with (
            pytest.raises(TraceTransferError, match=f"no prefix ends at layer {boundary} of 4"),
            reusing_prefix(opened.layers, boundary),
        ):
            pass


def test_models_that_a_cache_cannot_stand_for_are_refused(tiny, tmp_path):
    opened = Opened(tiny, "llama")
    with pytest.raises(TrainingError, match=r"in torch.float32, expected \[\d+, 48\] in torch.bfloat16; this model"):
        fill(opened.cache(tmp_path, 2, dtype=torch.bfloat16), opened.layers, opened.head, opened.run, ALONE)
    opened.layers[1].forward = lambda hidden_btd, **_: (hidden_btd,)
    with pytest.raises(TrainingError, match="layers of this model return a tuple, expected a tensor"):
        fill(opened.cache(tmp_path, 2), opened.layers, opened.head, opened.run, ALONE)
