"""Statistics of deltas are those of whole tensors in float64, however shards are split and stored."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tuned_models import tuned_copy, weights
from trace_transfer.families.anatomy import splits_of, transposed_names
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.deltas import gram_of, grams_of, plan_deltas, read_deltas
from trace_transfer.identification.scores import cosines_of
from trace_transfer.identification.scoring import averaged
from trace_transfer.models.sources import build_meta_model
from trace_transfer.progress import Silent


def read(base, tuned, with_units=False):
    registry = load_families()
    opened, models = open_model(base, registry), {task: open_model(path, registry) for task, path in tuned.items()}
    splits = None
    if with_units:
        transposed = transposed_names(build_meta_model(opened.config))
        splits = splits_of(opened.anatomy, opened.config, transposed.__contains__)
    return read_deltas(plan_deltas(opened, models), Silent(), splits), splits


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "phi3"])
def test_statistics_are_those_of_whole_tensors_in_float64(tiny, tmp_path, family):
    base = tiny(family)
    assert len(list(base.glob("*.safetensors"))) > 1  # the copies have one: split differently on both sides
    tuned = {"a": tuned_copy(base, tmp_path / "a", 1), "b": tuned_copy(base, tmp_path / "b", 2, dtype=torch.bfloat16)}
    deltas, splits = read(base, tuned, with_units=True)
    before, after = weights(base), [weights(path) for path in tuned.values()]
    on_disk = {name.removeprefix("transformer."): name for name in before}
    assert len(deltas.file.parameters) == len(open_model(base, load_families()).anatomy.inventory.shapes)
    assert set(deltas.units) == set(splits) != set()
    for parameter in deltas.file.parameters:
        name = on_disk[parameter.name.removeprefix("transformer.")]
        rows = [(one[name].double() - before[name].double()) for one in after] + [before[name].double()]
        a, b, base_values = (row.flatten() for row in rows)
        assert parameter.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
        assert parameter.base_norm == pytest.approx(float(base_values.norm()), rel=1e-6)
        assert parameter.cosines == (pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6),)
        assert parameter.unchanged == (int((a == 0).sum()), int((b == 0).sum()))
        if split := splits.get(parameter.name):
            parts = [row.split(split.size, dim=split.dim) for row in rows]
            expected = [[[float((x * y).sum()) for y in unit] for x in unit] for unit in zip(*parts, strict=True)]
            assert np.allclose(deltas.units[parameter.name].numpy(), expected, rtol=1e-5, atol=1e-9)


def test_chunks_cover_large_parameters(three, monkeypatch):
    monkeypatch.setattr("trace_transfer.models.sources.ELEMENTS_AT_ONCE", 100)
    small, _ = read(*three, with_units=True)
    monkeypatch.undo()
    whole, _ = read(*three, with_units=True)
    for one, other in zip(small.file.parameters, whole.file.parameters, strict=True):
        assert one.norms == pytest.approx(other.norms, rel=1e-6)
        assert one.unchanged == other.unchanged
    for name, units in small.units.items():
        assert torch.allclose(units, whole.units[name], rtol=1e-9)


def test_grams_come_back_from_norms_and_cosines(three):
    """Those of a zero delta, which has no cosine, as zeros."""
    base, tuned = three
    deltas, _ = read(base, {**tuned, "still": base})
    grams_PKK = grams_of(deltas.file)
    assert grams_PKK.shape == (len(deltas.file.parameters), 4, 4)
    assert np.allclose(np.sqrt(np.diagonal(grams_PKK, axis1=1, axis2=2)), [p.norms for p in deltas.file.parameters])
    assert cosines_of(grams_PKK)[0, 2, 1] == pytest.approx(deltas.file.parameters[0].cosines[2], rel=1e-12)
    assert deltas.file.parameters[0].cosines[3:] == (None,) * 3
    assert not grams_PKK[:, 3].any()


@given(st.integers(0, 1000))
def test_averaged_is_the_gram_matrix_of_means(seed):
    rows_PKE = np.random.default_rng(seed).normal(size=(3, 4, 7))
    groups = [(0, 2), (1,), (3,)]
    means_PGE = np.stack([rows_PKE[:, list(group)].mean(axis=1) for group in groups], axis=1)
    found = averaged(rows_PKE @ rows_PKE.transpose(0, 2, 1), groups)
    assert np.allclose(found, means_PGE @ means_PGE.transpose(0, 2, 1), rtol=1e-10)


@given(count=st.integers(1, 5000), num=st.integers(1, 4), exponent=st.integers(-28, 3), seed=st.integers(0, 2**16))
def test_gram_of_is_the_product_in_float64_at_any_size(count, num, exponent, seed):
    rows = torch.randn(num, count, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    exact = rows.double() @ rows.double().T
    scale = exact.diagonal().sqrt()
    assert ((gram_of(rows) - exact).abs() <= 1e-6 * scale[:, None] * scale[None, :]).all()
