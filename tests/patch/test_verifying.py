"""Whether a bit moved is found wherever it lies."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.errors import FrozenMovedError, ModelError
from trace_transfer.models import sources as models
from trace_transfer.patch.model_state import write_model
from trace_transfer.patch.patching import require_frozen, verify
from trace_transfer.patch.records import Count
from trace_transfer.progress import Silent

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


def change(directory, name, alter):
    """Alter one tensor of a model on disk."""
    file = next(file for file in directory.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    tensors[name] = alter(tensors[name])
    save_file(tensors, file, {"format": "pt"})


def flip(*index):
    def alter(tensor):
        tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])[index] ^= 1
        return tensor

    return alter


def put(value, *index):
    return lambda tensor: tensor.index_put_(tuple(map(torch.tensor, index)), torch.tensor(value))


def result(base, tuned, parts):
    return verify(state_of(base), state_of(tuned), Mask(parts), Silent())


def by_hand(base, tuned, parts):
    """The slow twin: name → (core, core moved, frozen, frozen moved), element by element in numpy."""
    found = {}
    for name in base.shapes:
        one, other = (state.value(name) for state in (base, tuned))
        integers = {2: np.uint16, 4: np.uint32}[one.element_size()]
        bits = [t.view({2: torch.int16, 4: torch.int32}[t.element_size()]).numpy().view(integers) for t in (one, other)]
        core = np.zeros(one.shape, dtype=bool)
        if name in parts:
            part = parts[name]
            for index in np.ndindex(*core.shape):
                place = np.ravel_multi_index(index, core.shape)
                core[index] = (
                    place in part.indices
                    if isinstance(part, Chosen)
                    else part is None or any(a <= index[part.dim] < b for a, b in part.ranges)
                )
        moved = bits[0] != bits[1]
        found[name] = tuple(int(one.sum()) for one in (core, core & moved, ~core, ~core & moved))
    return found


@pytest.mark.parametrize(
    ("family", "dtype", "rows"),
    [("llama", torch.bfloat16, 200), ("gemma3_text", torch.float32, 1 << 18), ("gpt2", torch.float16, 200)],
)
def test_counts_are_those_of_single_elements(tiny, tmp_path, monkeypatch, family, dtype, rows):
    """Two stages moved two core sets; only the first is said, so that the second's tensors are found."""
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", rows)
    base = state_of(tiny(family, dtype=dtype))
    tuned = base
    for seed in range(2):
        tuned = tuned.apply(make_patch(tuned, tmp_path / str(seed), mask_of(base, seed=seed), seed))
    mask = tuned.patches[0].mask
    for parts in (dict(mask.parts), dict((mask | tuned.patches[1].mask).parts), {}):
        found = verify(base, tuned, Mask(parts), Silent())
        counts = {p.name: (p.core, p.core_moved, p.frozen, p.frozen_moved) for p in found.parameters}
        assert counts == by_hand(base, tuned, parts)
        assert found.ok == (len(parts) > len(mask.parts))
    assert found.counts["core moved"] == Count(0, 0)


@given(data=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bit_of_any_frozen_element(tiny, tmp_path_factory, data):
    base = tiny("llama", dtype=torch.bfloat16)
    state = state_of(base)
    name = data.draw(st.sampled_from(list(state.shapes)))
    index = tuple(data.draw(st.integers(0, size - 1)) for size in state.shapes[name])
    bit = data.draw(st.integers(0, 15))
    value = state.value(name)
    value.view(torch.int16)[index] ^= np.array(1 << bit, dtype=np.uint16).astype(np.int16).item()
    assume(value[index].isfinite())  # else the model is refused
    place = tmp_path_factory.mktemp("flipped")
    tensors = {other: state.value(other) for other in state.shapes} | {name: value}
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_bytes((base / "config.json").read_bytes())
    found = result(base, place, {other: None for other in state.shapes if other != name})
    assert [(p.name, p.frozen_moved) for p in found.broken] == [(name, 1)]
    with pytest.raises(FrozenMovedError, match=rf"1 tensors moved .*:\n  - {name}: 1 of .* frozen parameters$"):
        require_frozen(found)


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (1e-45, 0.0)])
def test_values_that_only_their_bits_tell_apart(copy_of, tiny, tmp_path, before, after):
    base = copy_of("llama")
    change(base, NORM, put(before, 3))
    write_model(state_of(base), tmp_path / "tuned", Silent())
    assert result(base, tmp_path / "tuned", {UP: None}).ok
    change(tmp_path / "tuned", NORM, put(after, 3))
    (broken,) = result(base, tmp_path / "tuned", {UP: None}).broken
    assert (broken.name, broken.frozen_moved) == (NORM, 1)


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_beside_the_trained_ones(tiny, copy_of, dim, monkeypatch):
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", 200)
    base, tuned = tiny("llama"), copy_of("llama")
    part = Slice(dim, ((2, 5), (9, 11)))
    for row in (2, 4, 9, 10):
        change(tuned, UP, flip(*((row, 7) if dim == 0 else (7, row))))
    found = result(base, tuned, {UP: part})
    assert found.ok
    assert found.counts["core moved"] == Count(1, 4)
    for row in (1, 5, 6, 30):
        change(tuned, UP, flip(*((row, 7) if dim == 0 else (7, row))))
    (broken,) = result(base, tuned, {UP: part}).broken
    assert broken.frozen_moved == 4 and broken.core_moved == 4
    assert (broken.moved_columns if dim else broken.moved_rows) == ((1, 2), (5, 7), (30, 31))
    assert broken.told.endswith(f" frozen parameters, in {('rows', 'columns')[dim]} 1, 5-6, 30")


def test_other_types_are_compared_by_value(tiny, tmp_path):
    base = state_of(tiny("llama", dtype=torch.bfloat16))
    mask = Mask({UP: Slice(0, ((0, 40),))})
    final = base.apply(make_patch(base, tmp_path / "p", mask, 1, save_dtype="float32"))
    write_model(final, tmp_path / "tuned", Silent())
    found = verify(base, state_of(tmp_path / "tuned"), mask, Silent())
    assert found.ok  # the other rows are stored in float32 now, and have the same values
    assert found.counts["core moved"].elements == 40 * 48
    float32, bfloat16 = tiny("llama"), tiny("llama", dtype=torch.bfloat16)
    rounded = result(float32, bfloat16, {NORM: None})
    assert len(rounded.broken) > 20
    assert rounded.broken[0].told.endswith("(float32 → bfloat16)")


def test_models_that_are_no_pair(tiny):
    with pytest.raises(ModelError, match=r"(?s)not of the names and shapes of .*: not there, in the base \["):
        result(tiny("llama"), tiny("olmo2"), {})
    with pytest.raises(ModelError, match=r"lacks tensors that were to be trained:\n  - other"):
        result(tiny("llama"), tiny("llama"), {"other": None})
