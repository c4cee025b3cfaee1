"""The loss in chunks against all logits at once, in float32: values, gradients, and what the head is given."""

import pytest
import torch

from tests.engine.made_up import make_task
from tests.tiny_models import REPRESENTATIVES
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.data.examples import collate, losses
from trace_transfer.engine import settings, supervised_loss
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.slices import freeze
from trace_transfer.models.sources import ModelSource

TOKENS_AT_ONCE = 7


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(settings, "LOGITS_AT_ONCE", TOKENS_AT_ONCE * 512 + 511)
    monkeypatch.setattr(supervised_loss, "_most", lambda mine, device: mine + 2)  # another rank has more


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def note_most(head):
    """A list that grows by the number of tokens of each call."""
    given = []
    head.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].shape[1]))
    return given


def masks(model):
    """All; rows of the head alone; the body alone."""
    head = model.get_output_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is head)
    body = {name: None for name, parameter in model.named_parameters() if parameter is not head}
    return Mask(body | {name: None}), Mask({name: Slice(0, ((3, 9), (100, 300)))}), Mask(body)


@pytest.mark.parametrize(
    ("family", "partitioned"),
    [*((family, False) for family in (*REPRESENTATIVES, "granite", "cohere", "gptj")), ("llama", True), ("gptj", True)],
)
def test_is_that_of_all_logits(tiny, family, partitioned):
    batch = collate(make_task().examples[:5])
    inputs = {"input_ids": batch.input_ids_bt, "attention_mask": batch.attention_mask_bt, "use_cache": False}
    for number in range(3):
        model = BaseModel(ModelSource.parse(tiny(family))).load(torch.float32).eval()
        freeze(model, masks(model)[number])
        expected = losses(model(**inputs).logits, batch.targets_bt).sum() * 0.25
        slow = gradients(model, expected)
        most = note_most(model.get_output_embeddings())
        supervised_loss.give_loss(model, partitioned=partitioned)
        found = model(**inputs, targets_bt=batch.targets_bt, weight=0.25)
        fast = gradients(model, found)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert fast.keys() == slow.keys()
        for name, gradient in slow.items():
            torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=2e-5, msg=name)
        assert max(most) <= TOKENS_AT_ONCE
        with torch.no_grad():
            assert model(**inputs, targets_bt=batch.targets_bt).item() == pytest.approx(4 * expected.item(), rel=1e-6)
        assert model(**inputs).logits.shape == (*batch.targets_bt.shape, 512)
