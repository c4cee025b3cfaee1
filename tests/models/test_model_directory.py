"""Directories of models: sharded as transformers reads them, and whole or not there, whatever happens."""

import errno
import json
import shutil

import pytest
import torch

from tests.killed_writes import killed_at_each_operation
from tests.patch_files import bits, loaded, make_patch, mask_of, state_of
from trace_transfer.files import DiskFullError
from trace_transfer.models import model_directory
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.model_directory import write_model_directory
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.tensors import TensorWriter
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent


def write(state, directory, **options):
    specs = {name: state.spec(name) for name in state.shapes}
    values = ((name, (state.value(name),)) for name in specs)
    write_model_directory(state.source, state.config, specs, values, directory, model=state.base.meta_model, **options)


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("shard_bytes", [1, 40_000, 10**9])
def test_shards_and_their_index(tiny, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(model_directory, "SHARD_BYTES", shard_bytes)
    state = state_of(tiny("gemma3_text", dtype=torch.bfloat16))
    write(state, tmp_path / "model")
    write(state, tmp_path / "again")
    assert files(tmp_path / "model") == files(tmp_path / "again")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert {1: len(state.shapes), 10**9: 1}.get(shard_bytes, len(shards)) == len(shards)
    assert [file.name for file in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    largest = max(state.spec(name).num_bytes for name in state.shapes)
    assert all(file.stat().st_size < max(shard_bytes, largest) + 10_000 for file in shards)
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    places = open_checkpoint(ModelSource.parse(tmp_path / "model")).stored
    assert index["weight_map"] == {name: one.file.name for name, one in places.items()}
    found = loaded(tmp_path / "model")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    assert {name: bits(value) for name, value in found.items()} == {n: bits(state.value(n)) for n in state.shapes}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("number", [0, 30])
def test_a_full_disk(tiny, tmp_path, monkeypatch, number, replace):
    monkeypatch.setattr(model_directory, "SHARD_BYTES", 40_000)
    state = state_of(tiny("llama"))
    if replace:
        write(state, tmp_path / "model")
        before = files(tmp_path / "model")
    real, calls = TensorWriter.add_blocks, []

    def fill(self, name, blocks):
        calls.append(name)
        real(self, name, blocks)
        if len(calls) > number:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorWriter, "add_blocks", fill)
    with pytest.raises(DiskFullError, match=r"/model: the disk is full"):
        write(state, tmp_path / "model", replace=replace)
    assert [file.name for file in tmp_path.iterdir()] == (["model"] if replace else [])
    if replace:
        assert files(tmp_path / "model") == before


@pytest.mark.parametrize("replace", [False, True])
def test_a_kill_before_any_operation_leaves_no_model_by_halves(tiny, tmp_path, monkeypatch, replace):
    monkeypatch.setattr(model_directory, "SHARD_BYTES", 200_000)
    base = state_of(tiny("llama", dtype=torch.bfloat16))
    state = base.apply(make_patch(base, tmp_path / "p", mask_of(base), 1))
    write_model(state, tmp_path / "expected/model", Silent())
    expected, place = files(tmp_path / "expected/model"), tmp_path / "place"
    place.mkdir()
    if replace:
        write_model(base, place / "model", Silent())
    earlier = files(place / "model") if replace else None
    kills, finished = 0, 0
    for number in killed_at_each_operation(
        lambda: write_model(state, place / "model", Silent(), replace=replace), place
    ):
        found = files(place / "model") if (place / "model").exists() else None
        assert found in (None, earlier, expected)
        kills, finished = number, finished + (found == expected)  # killed while it was clearing up
        if found != earlier:
            shutil.rmtree(place / "model", ignore_errors=True)
            if replace:
                write_model(base, place / "model", Silent())
    assert kills > 20 and finished >= 1
    assert files(place / "model") == expected
    assert [file.name for file in place.iterdir()] == ["model"]
