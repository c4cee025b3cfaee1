"""Make a disguised copy of a LLaMA-family model, so that the true layer match between two families is known.

Reads a Hugging Face directory of a `LlamaForCausalLM`; writes one of another family (wider, rotated, permuted, with a
few near-identity layers put in) that computes the same function, and `truth.json`: {"match": [target layer of each
source layer], "inserted": [target layers that no source layer became]}. With `insert=0` and `bias_scale=0` the logits
are equal up to rounding.

Shapes: V vocabulary, d source width, D target width, H query heads, K key/value heads, G = H / K, e head size.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# Families whose layer computes what LLaMA's does, and what their configuration needs besides LLaMA's own fields. Qwen3
# is not one: its query and key norms change the function whatever their weights are.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},  # it has biases, too
}
KEPT_FIELDS = (
    "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "max_position_embeddings", "rope_parameters", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
WIDTH_STEP = 16


def disguise(
    source_dir: str | Path, out_dir: str | Path, *, family: str = "qwen2", width_factor: float = 1.25, insert: int = 3,
    insert_scale: float = 1e-2, bias_scale: float = 1e-2, seed: int = 0,
) -> list[int]:  # fmt: skip
    """Write a disguised copy of the model in `source_dir` and return the target layer of each source layer.

    `insert_scale` is the norm of an inserted layer's update over the norm of the stream, `bias_scale` the size of a
    value bias over that of the values (for families that have one). The same seed gives the same bits.
    """
    source_dir, out_dir = Path(source_dir), Path(out_dir)
    source_config = AutoConfig.from_pretrained(source_dir)
    assert source_config.model_type == "llama" and family in FAMILIES
    config = _target_config(source_config, family, width_factor, insert)
    generator = torch.Generator().manual_seed(seed)
    total = config.num_hidden_layers  # inserted anywhere but first and last
    inserted = sorted((1 + torch.randperm(max(total - 2, 0), generator=generator)[:insert]).tolist())
    match = [layer for layer in range(total) if layer not in inserted]
    basis_Dd = _orthonormal(config.hidden_size, source_config.hidden_size, generator)

    source = AutoModelForCausalLM.from_pretrained(source_dir, dtype=torch.float32).state_dict()
    gain = math.sqrt(source_config.hidden_size / config.hidden_size)
    weights = _outer_weights(source, basis_Dd, gain)
    for place in range(total):
        if place in inserted:
            layer = _random_layer(config, generator)
        else:
            prefix = f"model.layers.{match.index(place)}."
            own = {name.removeprefix(prefix): one.double() for name, one in source.items() if name.startswith(prefix)}
            layer = _copied_layer(own, config, basis_Dd, generator)
        if family == "qwen2":
            layer |= _biases(layer, bias_scale, generator)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layer[f"{norm}.weight"] = torch.full((config.hidden_size,), gain)
        weights |= {f"model.layers.{place}.{name}": tensor.float() for name, tensor in layer.items()}

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(weights, strict=True)
    _scale_inserted(model, inserted, insert_scale, generator)
    model.save_pretrained(out_dir)
    for file in source_dir.glob("*"):
        if file.suffix != ".safetensors" and not (out_dir / file.name).exists():  # the tokenizer
            shutil.copyfile(file, out_dir / file.name)
    (out_dir / "truth.json").write_text(json.dumps({"match": match, "inserted": inserted}) + "\n", encoding="utf-8")
    return match


def _target_config(source: PreTrainedConfig, family: str, width_factor: float, insert: int) -> PreTrainedConfig:
    """The configuration of the copy: wider, deeper, untied, its heads as large as before."""
    step = math.lcm(WIDTH_STEP, source.num_attention_heads)  # LLaMA's configuration wants a multiple of the heads
    width = step * math.ceil(width_factor * source.hidden_size / step)
    return AutoConfig.for_model(
        family,
        **{field: getattr(source, field) for field in KEPT_FIELDS},
        **FAMILIES[family],
        hidden_size=width,
        num_hidden_layers=source.num_hidden_layers + insert,
        # The mean square is over D numbers of which only d are not zero: eps shrinks with it, see `_outer_weights`.
        rms_norm_eps=source.rms_norm_eps * source.hidden_size / width,
        # The final norm is folded into the head, so the head is no longer the embedding.
        tie_word_embeddings=False,
    )


def _orthonormal(rows: int, columns: int, generator: Generator) -> Tensor:
    """A random matrix of shape (rows, columns) with orthonormal columns, float64."""
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


def _outer_weights(state: dict[str, Tensor], basis_Dd: Tensor, gain: float) -> dict[str, Tensor]:
    """Embedding (V, D), final norm (D,) and head (V, D): the stream x becomes Qx, with Q the basis and Q'Q = 1.

    The mean square of Qx over D numbers is d/D times that of x over d: norm weights of `gain` = sqrt(d/D) undo this.
    The source's own norm weights go into the columns of the maps W that read the norm. These become W Q', those that
    write to the stream Q W.
    """
    head = state["lm_head.weight"].double() * state["model.norm.weight"].double()
    return {
        "model.embed_tokens.weight": state["model.embed_tokens.weight"].double() @ basis_Dd.T,
        "model.norm.weight": torch.full((len(basis_Dd),), gain),
        "lm_head.weight": head @ basis_Dd.T,
    }


def _copied_layer(
    layer: dict[str, Tensor], config: PreTrainedConfig, basis_Dd: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """One layer in the new basis, its heads and neurons in another order and its values rotated.

    The results of heads and neurons are summed by `o_proj` and `down_proj`, whose columns move along. Values go
    straight into `o_proj`: an orthogonal (e, e) matrix per key/value head may stand before, its transpose after.
    """
    H, K, e, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim, basis_Dd.shape[1]
    G = H // K
    before_attention, before_mlp = layer["input_layernorm.weight"], layer["post_attention_layernorm.weight"]
    groups = torch.randperm(K, generator=generator)
    within = torch.stack([torch.randperm(G, generator=generator) for _ in range(K)])
    heads = (groups[:, None] * G + within).flatten()  # (H,): the old head that stands at each new place
    neurons = torch.randperm(config.intermediate_size, generator=generator)
    turns_Kee = torch.stack([_orthonormal(e, e, generator) for _ in range(K)])

    query, key, value = (layer[f"self_attn.{x}_proj.weight"] * before_attention for x in "qkv")
    query = query.view(H, e, d)[heads].reshape(H * e, d)
    key = key.view(K, e, d)[groups].reshape(K * e, d)
    value = (turns_Kee @ value.view(K, e, d)[groups]).reshape(K * e, d)
    output = layer["self_attn.o_proj.weight"].view(d, H, e)[:, heads]
    output = torch.einsum("dhe,hfe->dhf", output, turns_Kee.repeat_interleave(G, dim=0)).reshape(d, H * e)
    return {
        "self_attn.q_proj.weight": query @ basis_Dd.T,
        "self_attn.k_proj.weight": key @ basis_Dd.T,
        "self_attn.v_proj.weight": value @ basis_Dd.T,
        "self_attn.o_proj.weight": basis_Dd @ output,
        "mlp.gate_proj.weight": (layer["mlp.gate_proj.weight"] * before_mlp)[neurons] @ basis_Dd.T,
        "mlp.up_proj.weight": (layer["mlp.up_proj.weight"] * before_mlp)[neurons] @ basis_Dd.T,
        "mlp.down_proj.weight": basis_Dd @ layer["mlp.down_proj.weight"][:, neurons],
    }


def _random_layer(config: PreTrainedConfig, generator: Generator) -> dict[str, Tensor]:
    """A layer of random weights that keep the size of their input; `_scale_inserted` makes it a near-identity."""
    width, neurons = config.hidden_size, config.intermediate_size
    query_width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    sizes = {
        "self_attn.q_proj.weight": (query_width, width), "self_attn.k_proj.weight": (kv_width, width),
        "self_attn.v_proj.weight": (kv_width, width), "self_attn.o_proj.weight": (width, query_width),
        "mlp.gate_proj.weight": (neurons, width), "mlp.up_proj.weight": (neurons, width),
        "mlp.down_proj.weight": (width, neurons),
    }  # fmt: skip
    return {name: torch.randn(size, generator=generator) / math.sqrt(size[1]) for name, size in sizes.items()}


def _biases(layer: dict[str, Tensor], bias_scale: float, generator: Generator) -> dict[str, Tensor]:
    """Zero biases of queries and keys; random ones of the values, `bias_scale` times the size of a value."""
    value = layer["self_attn.v_proj.weight"]
    value_size = value.norm() / math.sqrt(len(value))  # root mean square for a stream of root mean square 1
    return {
        "self_attn.q_proj.bias": torch.zeros(len(layer["self_attn.q_proj.weight"])),
        "self_attn.k_proj.bias": torch.zeros(len(layer["self_attn.k_proj.weight"])),
        "self_attn.v_proj.bias": bias_scale * value_size * torch.randn(len(value), generator=generator),
    }


@torch.no_grad()
def _scale_inserted(model: PreTrainedModel, inserted: list[int], insert_scale: float, generator: Generator) -> None:
    """Shrink `o_proj` and `down_proj` of the inserted layers in one forward pass over random tokens.

    Each half of a layer adds insert_scale / sqrt 2 of the stream's norm at the median token, and random directions are
    orthogonal, so the layer adds insert_scale. The next inserted layer sees the scaled output.
    """
    stream_norms: dict[nn.Linear, Tensor] = {}
    handles = []
    for layer in (model.model.layers[place] for place in inserted):
        for norm, output in (
            (layer.input_layernorm, layer.self_attn.o_proj),
            (layer.post_attention_layernorm, layer.mlp.down_proj),
        ):

            def measure(_module: nn.Module, args: tuple[Tensor], output: nn.Linear = output) -> None:
                stream_norms[output] = args[0].norm(dim=-1)

            def shrink(module: nn.Linear, _args: tuple[Tensor], result: Tensor) -> Tensor:
                share = (result.norm(dim=-1) / stream_norms[module]).median()
                factor = insert_scale / math.sqrt(2) / share
                module.weight.mul_(factor)
                return result * factor

            handles += [norm.register_forward_pre_hook(measure), output.register_forward_hook(shrink)]
    if inserted:
        model.model(torch.randint(model.config.vocab_size, (4, 32), generator=generator), use_cache=False)
    for handle in handles:
        handle.remove()
