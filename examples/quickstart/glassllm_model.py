"""glassllm (MIT, 0.85 M parameters, 4 layers), a pre-trained model in a Python package, as a Hugging Face model.

The package holds numpy arrays and a tokenizer of its own; this writes an ordinary directory with a config, safetensors
and `tokenizer.json`. Its architecture is LLaMA's; written as Qwen2 it is the same function with biases of zero.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
# Name in the package → name in a layer, for matrices stored as (in, out).
PROJECTIONS = {
    "attn.W_V": "self_attn.v_proj",
    "attn.W_O": "self_attn.o_proj",
    "ffn.W1": "mlp.gate_proj",
    "ffn.W3": "mlp.up_proj",
    "ffn.W2": "mlp.down_proj",
}
NORMS = {"norm1.gamma": "input_layernorm", "norm2.gamma": "post_attention_layernorm"}


def write_model(weights: Path, directory: Path, language: str = "en") -> None:
    """Write the model of a language (`en` or `pt`) from the package's `weights` folder as a Qwen2 directory."""
    with (weights / f"{language}.npz").open("rb") as stream:
        arrays = dict(np.load(stream))
    shape = json.loads(str(arrays.pop("__config__")))
    model = Qwen2ForCausalLM(_config(shape))
    model.load_state_dict(_state(arrays, shape))
    model.config.save_pretrained(directory)
    save_model(model, str(directory / "model.safetensors"), metadata={"format": "pt"})
    table = json.loads((weights / f"{language}.tokenizer.json").read_text("utf-8"))
    _tokenizer(table, shape).save_pretrained(directory)


def _config(shape: dict) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=int(8 * shape["d_model"] / 3),
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        max_position_embeddings=shape["max_len"],
        rms_norm_eps=shape["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_base"]},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def _state(arrays: dict[str, np.ndarray], shape: dict) -> dict[str, Tensor]:
    values = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    head_dim = shape["d_model"] // shape["n_heads"]
    state = {
        "model.embed_tokens.weight": values["E"],
        "lm_head.weight": values["E"],
        "model.norm.weight": values["norm_f.gamma"],
    }
    for layer in range(shape["n_layers"]):
        here, there = f"blocks.{layer}.", f"model.layers.{layer}."
        for name, module in PROJECTIONS.items():
            state[f"{there}{module}.weight"] = values[here + name].T.contiguous()
        for name, module in NORMS.items():
            state[f"{there}{module}.weight"] = values[here + name]
        for letter, heads in (("q", shape["n_heads"]), ("k", shape["n_kv_heads"])):
            matrix = values[f"{here}attn.W_{letter.upper()}"].T
            state[f"{there}self_attn.{letter}_proj.weight"] = _halves_apart(matrix, heads, head_dim)
        for letter, heads in (("q", shape["n_heads"]), ("k", shape["n_kv_heads"]), ("v", shape["n_kv_heads"])):
            state[f"{there}self_attn.{letter}_proj.bias"] = torch.zeros(heads * head_dim)
    return state


def _halves_apart(matrix: Tensor, heads: int, head_dim: int) -> Tensor:
    """Rotary pairs: beside each other in the package, half a head apart in transformers. [heads · head_dim, in]."""
    return matrix.reshape(heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(heads * head_dim, -1).contiguous()


def _tokenizer(table: dict, shape: dict) -> PreTrainedTokenizerFast:
    merges = [tuple(pair) for pair in table["merges"]]
    tokens = [*SPECIAL, *table["alphabet"], *(left + right for left, right in merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=shape["max_len"], **names)
