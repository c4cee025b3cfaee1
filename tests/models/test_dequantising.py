"""Codes and scales: every reader has the very values of `from_pretrained`, and what is written is plain."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.patch_files import state_of
from tests.tiny_models import make_model
from trace_transfer.engine.loading import BaseModel, load_model
from trace_transfer.errors import ModelError
from trace_transfer.models.checkpoints import OpenedBase, open_checkpoint
from trace_transfer.models.sources import ModelSource, load_config
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent, telling

BLOCK = 16
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "head_dim": 16, "num_attention_heads": 4,
    "num_hidden_layers": 2,
}  # fmt: skip
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}


def fp8(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix as DeepSeek and Qwen publish it: codes, and the largest value of each block by 448."""
    blocks = value.float().unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).flatten(0, 1).flatten(1, 2).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}


def mxfp4(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Drawn codes and scales of the shape that gpt-oss has for these experts, [expert, in, out] at run time."""
    experts, rows, columns = value.shape
    generator = torch.Generator().manual_seed(len(name))
    blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 126, (experts, columns, rows // 32), dtype=torch.uint8, generator=generator)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}


def quantised(directory, family, **changes):
    """A tiny model whose projections (or experts) are codes; norms, embedding and head are not."""
    make_model(directory, family, **{**SIZES, **changes})
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    stored = {}
    for name, value in tensors.items():
        value = value.to(torch.bfloat16)
        if family == "gpt_oss":
            is_coded, make = name.endswith(("experts.gate_up_proj", "experts.down_proj")), mxfp4
        else:
            is_coded, make = name.endswith("proj.weight"), fp8
        stored |= make(name, value) if is_coded else {name: value.contiguous()}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "mxfp4"} if family == "gpt_oss" else FP8, "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Dense, experts that are merged when they are loaded, experts that lie together."""
    place = tmp_path_factory.mktemp("quantised")
    changes = {"gpt_oss": {"intermediate_size": 32}}
    return {
        family: quantised(place / family, family, **changes.get(family, {}))
        for family in ("llama", "qwen3_moe", "gpt_oss")
    }


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
@pytest.mark.filterwarnings("ignore")
def test_every_reader_has_the_values_of_transformers(models, family):
    """`chunks` is what is compared and written, `load` and `rows` what `map` reads, `load_model` what is trained."""
    expected = AutoModelForCausalLM.from_pretrained(models[family]).eval()
    source = ModelSource.parse(models[family])
    told = []
    with telling(told.append):
        base = OpenedBase(source)
        assert not hasattr(base.config, "quantization_config")
    assert len(told) == 1 and "its weights are quantised (" in told[0]
    loaded = {dtype: load_model(source, dtype) for dtype in (torch.bfloat16, torch.float32)}
    streamed = base.meta_model
    open_checkpoint(source).load(streamed, lambda name: True, "cpu", torch.float32)
    start = BaseModel(source)
    for name, parameter in expected.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert base.dtype(name) == torch.bfloat16
        assert torch.equal(torch.cat(list(base.chunks(name))), parameter.flatten()), name
        assert torch.equal(loaded[torch.bfloat16].get_parameter(name), parameter), name
        assert torch.equal(loaded[torch.float32].get_parameter(name), parameter.float()), name
        assert torch.equal(streamed.get_parameter(name), parameter.float()), name
        ((_, value),) = start.values([name], torch.float32)
        assert torch.equal(value, parameter.float()), name
    assert not hasattr(loaded[torch.float32].config, "quantization_config")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded[torch.bfloat16](tokens).logits, expected(tokens).logits)


@pytest.mark.filterwarnings("ignore")
def test_what_is_written_is_plain(models, tmp_path):
    write_model(state_of(models["llama"]), tmp_path / "out", Silent())
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(one, dtype="auto").named_parameters())
        for one in (models["llama"], tmp_path / "out")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("damage", ["no scale", "codes of another kind"])
def test_codes_that_nobody_can_read_are_refused(models, tmp_path, damage):
    directory = shutil.copytree(models["llama"], tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "no scale":
        del tensors[f"{name}_scale_inv"]
    else:
        tensors[name] = tensors[name].float().to(torch.float8_e5m2)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"down_proj\.weight"):
        load_config(ModelSource.parse(directory))
