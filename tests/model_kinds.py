"""Kinds of model directories, each made of one small LLaMA: what may lie there, and which of it is usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_models import make_model

SIZES = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_attention_heads": 4, "num_hidden_layers": 3}
SINGLE, INDEX, CONFIG, ADAPTER = (
    "model.safetensors", "model.safetensors.index.json", "config.json", "adapter_config.json",
)  # fmt: skip
EMBEDDING, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"
Make = Callable[[Path], Any]


def make_base(directory: Path) -> Path:
    """A LLaMA of three layers in one file."""
    make_model(directory, "llama", **SIZES)
    rewrite(directory, lambda tensors: tensors)
    return directory


def make_kind(base: Path, directory: Path, make: Make) -> Path:
    """A copy of the base, changed."""
    shutil.copytree(base, directory)
    make(directory)
    return directory


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """All tensors through a function (which may change them in place), into one file."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (directory / INDEX).unlink(missing_ok=True)
    save_file(change(tensors) or tensors, directory / SINGLE, {"format": "pt"})


def configure(directory: Path, **fields: Any) -> None:
    """Fields of the config changed; `...` removes one."""
    config = json.loads((directory / CONFIG).read_text()) | fields
    (directory / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def _tensors(change: Callable[[dict[str, Tensor]], Any], **fields: Any) -> Make:
    def make(directory: Path) -> None:
        rewrite(directory, change)
        if fields:
            configure(directory, **fields)

    return make


def _add(**more: Tensor) -> Make:
    return _tensors(lambda tensors: tensors.update({name.replace("__", "."): value for name, value in more.items()}))


def _without(left: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {name: value for name, value in tensors.items() if name != left}


def _linear(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


def _quantised(codes: Callable[[Tensor], Tensor], beside: dict[str, Tensor], weight: str = "weight") -> Any:
    """Each weight of a projection as codes (named otherwise), and tensors beside it."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in _linear(tensors):
            stem = name.removesuffix("weight")
            tensors[stem + weight] = codes(tensors.pop(name))
            tensors.update({stem + other: value.clone() for other, value in beside.items()})

    return change


def _stale_index(directory: Path) -> None:
    """Shards of another model and their index, beside the single file."""
    tensors = {name: value + 1 for name, value in load_file(directory / SINGLE).items()}
    save_file(tensors, directory / "model-00001-of-00001.safetensors", {"format": "pt"})
    places = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _shards(directory: Path) -> None:
    """Two shards and their index, and a shard of an older save that the index does not name."""
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    places = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    save_file({name: value + 1 for name, value in tensors.items()}, directory / "model-00009-of-00009.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _outside(directory: Path) -> None:
    (directory / SINGLE).rename(directory.parent / "outside.safetensors")
    places = dict.fromkeys(load_file(directory.parent / "outside.safetensors"), "../outside.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))


def _adapter(*, alone: bool) -> Make:
    def make(directory: Path) -> None:
        told = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "r": 2, "lora_alpha": 4}
        (directory / ADAPTER).write_text(json.dumps({**told, "target_modules": ["down_proj"]}))
        lora = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
        tensors = {lora.format("A"): torch.ones(2, 32), lora.format("B"): torch.ones(32, 2)}
        save_file(tensors, directory / "adapter_model.safetensors")
        if alone:
            (directory / CONFIG).unlink()
            (directory / SINGLE).unlink()

    return make


def _rename(name: str) -> Make:
    return lambda directory: (directory / SINGLE).rename(directory / name)


def _configured(**fields: Any) -> Make:
    return lambda directory: configure(directory, **fields)


def _both(*makes: Make) -> Make:
    return lambda directory: [make(directory) for make in makes]


def _pointer(directory: Path) -> None:
    (directory / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")


# Name → what makes it of the base, and what is told of it (None: nothing is to be told).
USABLE: dict[str, tuple[Make, str | None]] = {
    "plain": (lambda directory: None, None),
    "shards, and one that the index does not name": (_shards, None),
    "a single file beside an older index": (_stale_index, None),
    "fp8 by blocks": (
        _tensors(
            _quantised(lambda w: w.to(torch.float8_e4m3fn), {"weight_scale_inv": torch.full((1, 1), 0.75)}),
            quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]},
        ),
        r"its weights are quantised \(fp8\); they are read, and written, as what transformers dequantises them to",
    ),
    "a value head": (
        _add(v_head__summary__weight=torch.ones(1, 32)),
        r"hold 1 tensor \(v_head.summary.weight\) .* not read",
    ),
    "more layers than the config": (
        _configured(num_hidden_layers=2),
        r"hold 9 tensors \(model\.layers\.2\..* and 4 more\) .* not read",
    ),
    "what older versions saved": (_add(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)), None),
    "tied, and stored twice": (
        _tensors(lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}), tie_word_embeddings=True), None,
    ),
    "tied, and stored as the head": (
        _tensors(lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}), tie_word_embeddings=True), None,
    ),
    "without the prefix of its base": (
        _tensors(lambda t: {name.removeprefix("model."): value for name, value in t.items()}), None,
    ),
}  # fmt: skip

ONE, CODES = torch.ones(1), torch.zeros(4, 4, dtype=torch.int32)
REFUSED: dict[str, tuple[Make, str]] = {
    "fp8 by blocks that no config tells of": (
        _tensors(_quantised(lambda w: w.to(torch.float8_e4m3fn), {"weight_scale_inv": torch.ones(1, 1)})),
        r"quantised weights: 21 tensors \(.* of type F8_E4M3\. .*dequantize",
    ),
    "GPTQ": (
        _tensors(
            _quantised(lambda w: CODES.clone(), {"qzeros": CODES, "scales": ONE, "g_idx": CODES}, "qweight"),
            quantization_config={"quant_method": "gptq", "bits": 4},
        ),
        r"quantised weights: .*\(gptq\); 63 tensors .* of type I32",
    ),
    "an adapter alone": (_adapter(alone=True), r"an adapter of some/base, not a model: .*merge_and_unload"),
    "fewer layers": (
        _configured(num_hidden_layers=5),
        r"the weights lack 18 tensors \(model\.layers\.3\..* and 13 more\) of the model",
    ),
    "one tensor missing": (_tensors(_without(DOWN)), r"the weights lack 1 tensor \(.*down_proj.*\) of the model"),
    "no head, and not tied": (_tensors(_without(HEAD)), r"lm_head\.weight\) .*tie_word_embeddings: true"),
    "tied, but two": (
        _configured(tie_word_embeddings=True), r"are two different tensors, but one by config\.json",
    ),
    "an index that leaves": (
        _outside,
        r"weight_map names \.\./outside.safetensors, a file outside",
    ),
    "code from elsewhere": (
        _configured(attn_implementation="owner/name"), r"asks for code or files .*\n  - attn_implementation: 'owner/",
    ),
    "pickled": (_rename("pytorch_model.bin"), r"has pytorch_model\.bin, but .* convert pickled weights"),
    "a pointer of git-lfs": (_pointer, r"run `git lfs pull`"),
    "several things": (
        _both(_adapter(alone=False), _configured(num_hidden_layers=5)),
        r"cannot be used as they are:\n  - adapter_config\.json(.|\n)*\n  - the weights lack 18 tensors",
    ),
}  # fmt: skip
