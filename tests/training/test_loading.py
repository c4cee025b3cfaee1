import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_gguf import write_gguf
from tests.tiny_models import build_config, build_model
from trace_transfer.errors import ModelError
from trace_transfer.models import ModelSource
from trace_transfer.training.loading import BaseModel

FAMILIES = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2", "gpt_neox")


def base(directory) -> BaseModel:
    return BaseModel(ModelSource.parse(directory))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_weights_and_the_exact_ones(tiny, family, capfd):
    start = base(tiny(family))
    exact, rounded = start.load(torch.float32), start.load(torch.bfloat16)
    assert {name: tuple(p.shape) for name, p in exact.named_parameters()} == dict(start.inventory.shapes)
    assert exact.config.use_cache is False
    found = dict(start.exact(start.inventory.shapes))
    assert found.keys() == start.inventory.shapes.keys()
    for (name, parameter), low in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(found[name], parameter), name
        assert torch.equal(low, parameter.bfloat16()), name
    assert capfd.readouterr() == ("", "")


def test_what_nothing_was_rounded_of_is_not_read_again(tiny):
    start = base(tiny("llama", dtype=torch.bfloat16))
    assert dict(start.exact(["model.norm.weight"])) == {}


def test_missing_weights_are_never_made_up(copy_of):
    directory = copy_of("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    index = directory / "model.safetensors.index.json"
    file = directory / json.loads(index.read_text())["weight_map"][name]
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"do not fit its config:\n.*{name}: not in the weights"):
        base(directory).load(torch.float32)


def test_gguf(tmp_path):
    model = build_model(build_config("llama"))
    start = base(write_gguf(model, tmp_path / "tiny.gguf"))
    loaded, exact = start.load(torch.float32), dict(start.exact(start.inventory.shapes))
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
        assert torch.equal(exact[name], parameter), name
