"""Safetensors shards: what is read of them and when, and which are refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import REPRESENTATIVES
from trace_transfer.errors import ModelError
from trace_transfer.models import sources
from trace_transfer.models.checkpoints import SafetensorsCheckpoint
from trace_transfer.models.sources import ModelSource, build_meta_model, load_config


def meta_model(directory, dtype=torch.float32):
    return build_meta_model(load_config(ModelSource.parse(directory)), dtype)


def load_all(directory, model=None):
    model = model or meta_model(directory)
    SafetensorsCheckpoint(directory).load(model, lambda name: True, "cpu", torch.float32)
    model.tie_weights()
    return model


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_loads_what_transformers_loads(tiny, family):
    directory = tiny(family)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = dict(load_all(directory).named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours[name], parameter), name


def test_loads_nothing_but_what_is_wanted(tiny):
    model = meta_model(tiny("qwen3"))
    checkpoint = SafetensorsCheckpoint(tiny("qwen3"))
    prefix = "model.layers.1."  # and not layers.10, were there one
    checkpoint.load(model, lambda name: name.startswith(prefix), "cpu", torch.float32)
    real = {name: p for name, p in model.named_parameters() if not p.is_meta}
    assert set(real) == {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    assert checkpoint.bytes_read == sum(p.nbytes for p in real.values())


def test_rows_of_an_embedding(tiny, monkeypatch):
    monkeypatch.setattr(sources, "ELEMENTS_AT_ONCE", 1000)
    directory = tiny("gemma2", dtype=torch.bfloat16)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).get_input_embeddings().weight
    index = torch.tensor([5, 511, 3, 3, 17])
    checkpoint = SafetensorsCheckpoint(directory)
    rows = checkpoint.rows(meta_model(directory), "model.embed_tokens.weight", index, torch.float32)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, whole[index])
    assert checkpoint.bytes_read == 512 * 48 * 2


def test_every_unusable_shard_is_named(copy_of):
    directory = copy_of("qwen3")
    files = sorted(directory.glob("*.safetensors"))
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-100])
    files[3].write_bytes(b"")
    files[4].write_bytes(b"\xff" * 1000)
    with pytest.raises(ModelError, match=f"4 of {len(files)} weight files cannot be used") as caught:
        SafetensorsCheckpoint(directory)
    for file, what in zip(files[1:5], ("missing", *["cut short or damaged"] * 3), strict=True):
        assert f"{file.name}: {what}" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(copy_of, text):
    directory = copy_of("llama")
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index.json: not a safetensors index .* downloaded again"):
        SafetensorsCheckpoint(directory)
