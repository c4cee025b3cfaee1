"""Files written tensor by tensor are those of safetensors itself, or are not there at all."""

import errno
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trace_transfer.errors import ModelError
from trace_transfer.files import DiskFullError
from trace_transfer.models.tensors import TensorSpec, converted, differing, read_blocks, read_tensor, writing_tensors

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
METADATA = {"format": 'pt é " \\ \n 漢'}  # one entry: safetensors writes several in any order
NAMES = st.text('abz./é漢"', min_size=1, max_size=6)


def specs_of(tensors):
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(path, tensors, order=None):
    with writing_tensors(path, specs_of(tensors), METADATA) as writer:
        for name in order or tensors:
            writer.add(name, tensors[name])


@st.composite
def drawn_tensors(draw):
    shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
    specs = draw(st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), shapes), max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, (dtype, shape) in specs.items()}


@given(tensors=drawn_tensors(), seed=st.randoms(use_true_random=False))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_are_those_of_safetensors(tmp_path, tensors, seed):
    order = list(tensors)
    seed.shuffle(order)
    write(tmp_path / "ours", tensors, order)
    save_file(tensors, tmp_path / "theirs", METADATA)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert torch.equal(read_tensor(tmp_path / "ours", name), tensor)


def test_a_tensor_in_pieces_and_not_contiguous(tmp_path):
    tensor = torch.randn(7, 5).bfloat16()
    specs = {"a": TensorSpec(torch.bfloat16, (7, 5)), "b": TensorSpec(torch.bfloat16, (5, 7))}
    with writing_tensors(tmp_path / "f", specs, METADATA) as writer:
        writer.add_blocks("a", (tensor[start : start + 3].flatten() for start in range(0, 7, 3)))
        writer.add("b", tensor.t())
    found = load_file(tmp_path / "f")
    assert torch.equal(found["a"], tensor) and torch.equal(found["b"], tensor.t())
    blocks = list(read_blocks(tmp_path / "f", "a", [2, 0, 4, 1]))
    assert [len(block) for block in blocks] == [2, 0, 4, 1]
    assert torch.equal(torch.cat(blocks), tensor)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"a": torch.zeros(2, 3)}, r"never written: b"),
        ({"a": torch.zeros(3, 2)}, r"a: \[3, 2\] given, \[2, 3\] expected"),
        ({"a": torch.zeros(2, 3, dtype=torch.float64)}, r"a: torch.float64 given, torch.float32 expected"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4), "a ": None}, r"a: written before"),
    ],
)
def test_other_tensors_than_were_said(tmp_path, given_, message):
    specs = {"a": TensorSpec(torch.float32, (2, 3)), "b": TensorSpec(torch.float32, (4,))}
    with pytest.raises(ValueError, match=message), writing_tensors(tmp_path / "f", specs, METADATA) as writer:
        for name, tensor in given_.items():
            writer.add(name.strip(), torch.zeros(2, 3) if tensor is None else tensor)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt("x")])
def test_nothing_is_left_of_what_fails(tmp_path, error):
    (tmp_path / "f").write_text("the one before")
    expected = DiskFullError if isinstance(error, OSError) else type(error)
    with (
        pytest.raises(expected, match="the disk is full" if isinstance(error, OSError) else "x"),
        writing_tensors(tmp_path / "f", {"a": TensorSpec(torch.float32, (4, 2))}, METADATA) as writer,
    ):
        writer.add("a", torch.zeros(4, 2))
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "the one before"


def test_a_file_that_was_cut_short(tmp_path):
    write(tmp_path / "f", {"a": torch.randn(100)})
    with (tmp_path / "f").open("r+b") as stream:
        stream.truncate((tmp_path / "f").stat().st_size - 4)
    with pytest.raises(ModelError, match="f: cut short within a; have it made or downloaded again"):
        read_tensor(tmp_path / "f", "a")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bits_and_not_values(dtype):
    nan = torch.tensor([math.nan], dtype=dtype)
    other_nan = (nan.view(torch.uint8) ^ torch.tensor([1] + [0] * (dtype.itemsize - 1), dtype=torch.uint8)).view(dtype)
    assert other_nan.isnan().all()
    one = torch.cat([torch.tensor([1.0, 0.0, math.inf], dtype=dtype), nan, nan])
    other = torch.cat([torch.tensor([1.0, -0.0, math.inf], dtype=dtype), nan, other_nan])
    assert differing(one, other).tolist() == [False, True, False, False, True]
    assert not differing(one, one.clone()).any()
    assert not differing(one.expand(2, -1).t(), one.expand(2, -1).t().contiguous()).any()
    assert differing(torch.tensor(1.0), torch.tensor(2.0)).item()


def test_types_are_compared_after_widening():
    exact = torch.tensor([1.0, 0.5, -0.0, 3.140625])
    assert not differing(exact, exact.bfloat16()).any()
    assert not differing(exact.bfloat16(), exact.half()).any()
    assert differing(torch.tensor([1.001, -0.0]), torch.tensor([1.0, 0.0]).bfloat16()).tolist() == [True, True]


def test_conversions_that_lose_something():
    assert converted(torch.tensor([1.0, 0.5]), torch.bfloat16).dtype == torch.bfloat16
    assert converted(torch.tensor([1.001]), torch.bfloat16) is None
    assert converted(torch.tensor([1e30]).bfloat16(), torch.float16) is None
    assert converted(torch.tensor([1e30]).bfloat16(), torch.float32) is not None
