"""Write a tiny model as a GGUF file, as llama.cpp's converter would: its names, its layout, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from transformers import PreTrainedModel

from tests.tiny_models import build_tokenizer, tokenizer_kind

# What llama.cpp does to values: q and k rows regrouped for its rotary kernel, Gemma's norms stored as 1 + w.
PERMUTED = {"llama"}
SHIFTED_NORMS = {"gemma2", "gemma3_text"}
ARCHITECTURES = {"gemma3_text": "gemma3"}


def write_gguf(model: PreTrainedModel, file: Path, kind: Kind = Kind.F32) -> Path:
    """Write a model; `kind` is that of its matrices, one-dimensional tensors stay float32."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture), config.num_hidden_layers
    )
    writer = GGUFWriter(file, architecture)
    _write_config(writer, config)
    _write_tokenizer(writer, config.model_type)
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        values = parameter.detach().float().numpy()
        if config.model_type in PERMUTED and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if config.model_type in SHIFTED_NORMS and stem.endswith("norm"):
            values = values + 1
        mine = Kind.F32 if values.ndim == 1 else kind
        data = gguf.quantize(np.ascontiguousarray(values, dtype=np.float32), mine)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=mine)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_config(writer: GGUFWriter, config: object) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter, family: str) -> None:
    state = json.loads(build_tokenizer(tokenizer_kind(family)).backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<s>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
