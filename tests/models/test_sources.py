"""What a model's name means, which configs are refused, and the names and shapes that follow from one."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import REPRESENTATIVES, build_config
from trace_transfer.errors import ModelError
from trace_transfer.models.sources import ModelSource, build_meta_model, load_config, read_inventory


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "Some-Model.Q4_1.gguf"
    file.touch()
    for name in (file, tmp_path):
        source = ModelSource.parse(name)
        assert (source.directory, source.gguf, source.display_name) == (tmp_path, file.name, "Some-Model.Q4_1")
    (tmp_path / "config.json").write_text("{}")
    source = ModelSource.parse(tmp_path)
    assert (source.directory, source.gguf, source.display_name) == (tmp_path, None, tmp_path.name)
    for name, repo, revision in (("Qwen/Qwen3-32B@main", "Qwen/Qwen3-32B", "main"), ("gpt2", "gpt2", None)):
        source = ModelSource.parse(name)
        assert (source.repo, source.revision, source.directory) == (repo, revision, None)
        assert source.display_name == repo.rpartition("/")[2]


@pytest.mark.parametrize("name", ["./nowhere", "~/none", "a/b/c", "none.gguf", "  "])
def test_neither_a_file_nor_a_hub_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such file or directory"):
        ModelSource.parse(name)


def config_of(tmp_path, text):
    (tmp_path / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return load_config(ModelSource.parse(tmp_path))


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", '{"model_type": "no_such_architecture"}'])
def test_a_config_that_cannot_be_read(tmp_path, text):
    with pytest.raises(ModelError, match="its config cannot be read: "):
        config_of(tmp_path, text)


@pytest.mark.parametrize("kind", ["bert", "t5", "vit", "mistral3"])
def test_another_kind_of_model(tmp_path, kind):
    pattern = rf"model_type '{kind}' \(architectures: none named\) is not a decoder-only causal language model"
    with pytest.raises(ModelError, match=pattern):
        config_of(tmp_path, {"model_type": kind})


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_names_and_shapes_are_those_of_the_real_model(family):
    config = build_config(family)
    model = AutoModelForCausalLM.from_config(config)
    found = read_inventory(config)
    assert dict(found.shapes) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(found.shapes) == [name for name, _ in model.named_parameters()]
    assert found.num_elements == sum(p.numel() for p in model.parameters())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert bool(found.tied) == (head is embedding)
    assert found.model_type == family


def test_the_hash_of_names_and_shapes():
    found = read_inventory(build_config("llama", num_hidden_layers=1))
    lines = sorted(f"{name} [{', '.join(map(str, shape))}]" for name, shape in found.shapes.items())
    assert "model.norm.weight [48]" in lines
    assert found.names_sha256 == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_config_that_no_model_can_be_built_from(tmp_path):
    config = config_of(tmp_path, {"model_type": "dots1"})  # how many experts it has is not said
    with pytest.raises(ModelError, match=rf"^{tmp_path}: no model can be built from its config: empty\(\) takes 1"):
        read_inventory(config)


def test_layers_without_end_are_refused_at_once(tmp_path):
    with pytest.raises(ModelError, match=rf"^{tmp_path}: its config says {2**40} layers, expected 4,096 at most"):
        config_of(tmp_path, {"model_type": "llama", "num_hidden_layers": 2**40})


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_a_table_of_positions_is_not_rounded(family):
    """Its frequencies would be: they are made of `arange`, in torch's default type, which is then the model's."""
    exact, low = (build_meta_model(build_config(family), dtype) for dtype in (torch.float32, torch.bfloat16))
    name = "transformer.h.1.attn.embed_positions"
    assert torch.equal(exact.get_buffer(name), low.get_buffer(name))
