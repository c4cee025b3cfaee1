"""Embeddings in padded batches against one text at a time, for families that pad, normalise and attend differently."""

import pytest
import torch

from trace_transfer.engine.loading import BaseModel
from trace_transfer.models.sources import ModelSource
from trace_transfer.represent.representing import embed_texts

LENGTHS = (9, 1, 23, 4, 4, 17, 2)
IDS = [torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in LENGTHS]


@pytest.fixture(params=["llama", "gemma3_text", "gpt2", "gpt_neox"])
def model(request, tiny):
    return BaseModel(ModelSource.parse(tiny(request.param))).load(torch.float32).eval()


def one_at_a_time(model, pool):
    """The last of all hidden states that the whole model gives, of one text without padding."""
    rows = []
    with torch.no_grad():
        for text in IDS:
            hidden = model(torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states[-1][0]
            rows.append(torch.stack(list(hidden.double())).mean(dim=0) if pool == "mean" else hidden[len(text) - 1])
    return torch.stack(rows).float()


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_batches_give_what_single_texts_give(model, pool):
    seen = []
    found = embed_texts(model, IDS, pool=pool, batch_size=3, advance=lambda: seen.append(1))
    expected = one_at_a_time(model, pool)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert len(seen) == 3
