"""GGUF files, tensor by tensor, against transformers' own loading of the whole file."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from tests.reference.ordinary_forward import rows_of_all_layers
from tests.tiny_gguf import write_gguf
from tests.tiny_models import build_config, build_model
from tests.transfer.test_probing import LAYER_PATHS, assert_same, plan_for, streamed
from trace_transfer.errors import ModelError
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.models.checkpoints import GgufCheckpoint, open_checkpoint
from trace_transfer.models.sources import ModelSource, build_meta_model, load_config

# Sizes in blocks of 32, which quantisation needs.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "use_sliding_window": False}
# transformers takes a head's size from the file for llama only; for Qwen3 it knows but one.
HEAD_SIZES = {"llama": 24, "qwen2": 16, "qwen3": 128}
CASES = [("llama", Kind.F32), ("llama", Kind.F16), ("llama", Kind.Q8_0), ("qwen2", Kind.Q4_1), ("qwen3", Kind.F32)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(family, kind)`: a GGUF file of a family, and the model that it was made of."""
    built = {}

    def get(family: str, kind: Kind = Kind.F32):
        if (family, kind) not in built:
            model = build_model(build_config(family, **SIZES, head_dim=HEAD_SIZES[family]))
            file = tmp_path_factory.mktemp("gguf") / f"{family}-{kind.name}.gguf"
            built[family, kind] = (write_gguf(model, file, kind), model)
        return built[family, kind]

    return get


def load_all(file: Path):
    source = ModelSource.parse(file)
    model = build_meta_model(load_config(source), torch.float32)
    open_checkpoint(source).load(model, lambda name: True, "cpu", torch.float32)
    model.tie_weights()
    return model


@pytest.mark.parametrize(("family", "kind"), CASES, ids=lambda value: getattr(value, "name", value))
def test_weights_equal_those_of_transformers_whole_and_in_chunks(written, family, kind, monkeypatch):
    file, original = written(family, kind)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = load_all(file)
    ours = dict(model.named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    monkeypatch.setattr("trace_transfer.models.sources.ELEMENTS_AT_ONCE", 1000)
    checkpoint = GgufCheckpoint(file)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours[name], parameter), name
        chunks = list(checkpoint.chunks(model, name, tuple(parameter.shape)))
        assert len(chunks) > 1 or parameter.numel() <= 2000
        assert torch.equal(torch.cat(chunks).view(parameter.shape), parameter), name
        if kind is Kind.F32:  # and nothing was lost on the way there and back
            assert torch.equal(original.get_parameter(name), parameter), name


@pytest.mark.parametrize(("family", "kind"), CASES[2:4], ids=lambda value: getattr(value, "name", value))
def test_rows_equal_those_of_the_ordinary_forward_pass(written, family, kind):
    file, _ = written(family, kind)
    plan = plan_for(family, "boundary")
    expected = rows_of_all_layers(file.parent, LAYER_PATHS[family], plan.source, plan.texts_R, gguf_file=file.name)
    assert_same(streamed(file, family, plan), expected)


def test_tokenizer(written):
    file, _ = written("llama")
    tokenizer = load_tokenizer(ModelSource.parse(file))
    text = "She sold 48 clips in April."
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert tokenizer.decode(encoded["input_ids"]).strip() == text
    assert encoded["offset_mapping"][-1][1] == len(text)


def test_a_file_cut_short_or_of_other_bytes_is_refused(written, tmp_path):
    file, _ = written("llama")
    data = file.read_bytes()
    for keep in (0, 20, len(data) - 1):
        cut = tmp_path / f"cut{keep}.gguf"
        cut.write_bytes(data[:keep])
        with pytest.raises(ModelError, match="not a readable GGUF file, or cut short"):
            GgufCheckpoint(cut)
        with pytest.raises(ModelError, match=rf"^{cut}: its config cannot be read: "):
            load_config(ModelSource.parse(cut))


@pytest.mark.parametrize(("name", "lacks"), [("blk.1.ffn_up.weight", "mlp.up_proj"), ("token_embd.weight", "embed")])
def test_a_file_that_does_not_fit_its_config_is_refused_at_the_door(tmp_path, name, lacks):
    """Names and shapes are compared before a value is read, as those of other weights."""
    file = write_gguf(build_model(build_config("llama", **SIZES, head_dim=24)), tmp_path / "whole.gguf")
    load_config(ModelSource.parse(file))
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(file.read_bytes().replace(name.encode(), name.replace("w", "v").encode()))
    with pytest.raises(ModelError, match=rf"renamed\.gguf: the weights lack 1 tensor \(.*{lacks}"):
        load_config(ModelSource.parse(renamed))
