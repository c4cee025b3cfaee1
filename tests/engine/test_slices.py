import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.engine.made_up import base_of, make_task, run
from tests.reference.masked_loop import put_together, trained_part
from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.engine.slices import places_of, put, splice, taken


@st.composite
def drawn(draw):
    """A shape of one to three dimensions, and a slice or single parameters of it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    if draw(st.booleans()):
        return shape, Chosen(np.array(sorted(draw(st.sets(st.integers(0, math.prod(shape) - 1), min_size=1)))))
    dim = draw(st.integers(0, len(shape) - 1))
    bounds = sorted(draw(st.sets(st.integers(0, shape[dim]), min_size=2, max_size=6)))
    bounds = bounds[: len(bounds) // 2 * 2]
    return shape, Slice(dim, tuple(zip(bounds[::2], bounds[1::2], strict=True)))


@given(drawn())
def test_taken_put_and_spliced_as_row_by_row(case):
    shape, part = case
    frozen, new = torch.randn(shape), torch.randn(shape)
    values = taken(new, part)
    assert torch.equal(values, trained_part(new, part))
    assert values.numel() == math.prod(part.shape(shape))
    expected = put_together(frozen, part, values)
    module = nn.Module()
    module.weight = nn.Parameter(frozen.clone(), requires_grad=False)
    splice(places_of(module)["weight"], part, nn.Parameter(values))
    assert torch.equal(module.weight, expected)
    gradient = torch.randn(shape)
    (module.weight * gradient).sum().backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in trained] == [tuple(values.shape)]
    assert torch.equal(trained[0].grad, trained_part(gradient, part))
    put(frozen, part, values)
    assert torch.equal(frozen, expected)


@pytest.mark.parametrize("padding", [None, 3])
def test_rows_that_stay_in_memory_have_the_gradients_of_copied_ones(padding):
    """Of an embedding and of a head tied to it; row 3 is trained, and may be padding."""
    found = []
    for resident in (False, True):
        torch.manual_seed(0)
        embedding, head = nn.Embedding(9, 4, padding_idx=padding), nn.Linear(4, 9, bias=False)
        head.weight = embedding.weight
        model = nn.ModuleList([embedding, head]).requires_grad_(False)
        values = nn.Parameter(torch.randn(4, 4))
        splice(places_of(model)["0.weight"], Slice(0, ((2, 5), (7, 8))), values, resident)
        logits = head(embedding(torch.tensor([[0, 3, 3, 7], [8, 2, 3, 1]])).tanh())
        logits.square().sum().backward()
        found.append((logits, values.grad))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert (model[0].forward.__name__, model[1].forward.__name__) == ("_embedding", "_linear")


@pytest.mark.parametrize(
    ("zero", "precision"),
    [(0, "float32"), (1, "bfloat16"), (3, "bfloat16"), pytest.param(3, "float32", marks=pytest.mark.slow)],
)
def test_all_rows_are_the_whole_parameter(tiny, tmp_path, zero, precision):
    """Everything through slices of all rows or columns: full fine-tuning, bit for bit."""
    model = tiny("gemma3_text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    shapes = base_of(model).inventory.shapes
    parts = {name: Slice(len(shape) - 1, ((0, shape[-1]),)) for name, shape in shapes.items()}
    options = {"zero": zero, "precision": precision, "weight_decay": 0.1}
    full, whole = run(model, tmp_path / "full", make_task(13), **options)
    sliced, values = run(model, tmp_path / "sliced", make_task(13), mask=Mask(parts), **options)
    assert sliced.losses == full.losses and values.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, values[name]), name
