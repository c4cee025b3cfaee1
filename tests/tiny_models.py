"""Tiny random models of every shipped family, each with features that real models of it have and that break things.

Grouped-query attention, heads wider than hidden size / heads, tied and untied embeddings, sliding windows shorter than
the texts, fused and transposed weights, learned positions; three to five layers; all weights random (norms and biases
too, which transformers would leave at one and zero), in several shards.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 512
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    **COMMON, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "max_position_embeddings": 256,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"

# Family → config fields; the name of a family is its `model_type`.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {**SIZES, "head_dim": 16, "tie_word_embeddings": False},
    "mistral": {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 6},
    "qwen2": {
        **SIZES, "num_hidden_layers": 5, "hidden_size": 60, "tie_word_embeddings": True,
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2,
    },
    "qwen3": {**SIZES, "num_hidden_layers": 5, "head_dim": 24, "tie_word_embeddings": False},
    "gemma2": {
        **SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "tie_word_embeddings": True,
        "attn_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        **SIZES, "num_hidden_layers": 5, "head_dim": 20, "query_pre_attn_scalar": 20, "sliding_window": 6,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL], "tie_word_embeddings": True,
    },
    "phi3": {**SIZES, "num_hidden_layers": 3, "hidden_size": 96, "tie_word_embeddings": False},
    "olmo2": {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 3, "tie_word_embeddings": False},
    "gpt2": {**COMMON, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 128},
    "gpt_neox": {
        **COMMON, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4,
        "rotary_pct": 0.25, "max_position_embeddings": 256, "tie_word_embeddings": False,
    },
    # Experts: layers of two kinds, shared experts, latent attention, parts that alternate along the third dimension.
    "mixtral": {**SIZES, "num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "qwen2_moe": {
        **SIZES, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "num_experts": 5,
        "num_experts_per_tok": 2, "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        **SIZES, "head_dim": 16, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3,
        "decoder_sparse_step": 2, "norm_topk_prob": True,
    },
    "deepseek_v2": {
        **SIZES, "num_hidden_layers": 3, "num_key_value_heads": 6, "q_lora_rank": None, "kv_lora_rank": 20,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 1,
        "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1,
    },
    "deepseek_v3": {
        **SIZES, "num_key_value_heads": 6, "q_lora_rank": 28, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 2, "moe_intermediate_size": 16,
        "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    },
    "gpt_oss": {
        **SIZES, "num_hidden_layers": 3, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 6,
    },
    "granitemoe": {
        **SIZES, "num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True,
        "residual_multiplier": 0.5, "attention_multiplier": 0.2, "embedding_multiplier": 2.0, "logits_scaling": 3.0,
    },
    "olmoe": {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 3, "num_experts": 5, "num_experts_per_tok": 2},
    # Dense ones: a norm that attention and MLP share, no gate, norms without weights, ALiBi, parts by head or by block.
    "gemma": {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "vaultgemma": {**SIZES, "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
    "phi": {**SIZES, "num_hidden_layers": 3, "qk_layernorm": True},
    "falcon": {
        **COMMON, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_kv_heads": 2,
        "new_decoder_architecture": True, "bias": True, "ffn_hidden_size": 80,
    },
    "mpt": {**COMMON, "d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
    "bloom": {**COMMON, "hidden_size": 48, "n_layer": 3, "n_head": 6},
    "opt": {
        **COMMON, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
        "word_embed_proj_dim": 32, "max_position_embeddings": 256,
    },
    "starcoder2": {**SIZES, "num_hidden_layers": 3, "sliding_window": 6},
    "gpt_bigcode": {**COMMON, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 256},
    "cohere": {**SIZES, "num_hidden_layers": 3, "use_qk_norm": True},
    "cohere2": {**SIZES, "sliding_window": 6, "head_dim": 8},
    "glm": {**SIZES, "num_hidden_layers": 3, "head_dim": 12, "attention_bias": True},
    "glm4": {**SIZES, "num_hidden_layers": 3, "head_dim": 12, "attention_bias": True},
    "granite": {
        **SIZES, "num_hidden_layers": 3, "mlp_bias": True, "tie_word_embeddings": True,
        "residual_multiplier": 0.5, "attention_multiplier": 0.2, "embedding_multiplier": 2.0, "logits_scaling": 3.0,
    },
    "smollm3": {**SIZES, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "olmo": {**SIZES, "num_hidden_layers": 3, "clip_qkv": 8.0},
    "olmo3": {**SIZES, "sliding_window": 6},
    "stablelm": {**SIZES, "num_hidden_layers": 3, "use_qkv_bias": True, "use_parallel_residual": True},
    "exaone4": {**SIZES, "head_dim": 12, "sliding_window": 6},
    "ministral": {**SIZES, "head_dim": 12, "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING, SLIDING]},
    "helium": {**SIZES, "num_hidden_layers": 3, "head_dim": 8},
    "apertus": {**SIZES, "num_hidden_layers": 3},
    "cwm": {**SIZES, "head_dim": 12, "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING, SLIDING]},
    **{
        kind: {**SIZES, "num_hidden_layers": 3, "head_dim": 12}
        for kind in ("internlm3", "nemotron", "seed_oss", "arcee", "ernie4_5", "hunyuan_v1_dense")
    },
    "gptj": {**COMMON, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 256, "rotary_dim": 8},
    "codegen": {**COMMON, "n_embd": 64, "n_head": 8, "n_layer": 3, "n_positions": 256, "rotary_dim": 4},
}  # fmt: skip

# One family of each structure: grouped heads and an untied head; sliding windows and soft caps; transposed and fused
# weights with learned positions; parallel residual; a projected embedding; ALiBi; latent attention and shared experts;
# parts that alternate along the third dimension.
REPRESENTATIVES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "mpt", "deepseek_v3", "gpt_oss")

PROSE = [
    "The train left the station before the rain had stopped, and nobody on the platform waved.",
    "A contract is a promise that the law will enforce; without consideration it is usually not binding.",
    "The patient was given two tablets every six hours, and her temperature fell to 37.4 degrees.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "She sold 48 clips in April, half as many in May: 48 + 24 = 72 clips altogether.",
    "Über den Wolken muss die Freiheit wohl grenzenlos sein, 日本語のテキスト, naïve café.",
]
CODE = [
    "def add(a, b):\n    return a + b\n",
    "for index in range(10):\n    print(index ** 2)\n",
    "SELECT name, price FROM products WHERE price > 10 ORDER BY price;",
    "The function returns the sum of both numbers, and raises ValueError when one of them is negative.",
    "if (x === null) { throw new Error('x is missing'); }",
]

# What the models read in tests: different lengths, characters of one to four bytes, more tokens than any window.
TEXTS = [
    *PROSE,
    *CODE,
    "Short one.",
    "The quick brown fox jumps over the lazy dog near the river bank at dawn.",
    "An emoji 🦊 takes four bytes, é takes two, 漢 takes three; all are one character.",
    "Seven is a prime number, eight is not, and nine is three times three.",
    "The court held that the defendant owed the plaintiff a duty of care.",
    "Wash the rice until the water runs clear, then let it rest for twenty minutes.",
    "Aspirin inhibits cyclooxygenase and thereby the synthesis of prostaglandins.",
    "Rivers carry sediment to the sea, where the deltas grow by a few metres a year.",
    "He opened the letter twice, read it once, and put it back without a word.",
]


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One of two byte-level BPE tokenizers that split the same text differently.

    `prose` learned from prose and puts a special token before each text; `code` learned from code, splits digits one by
    one and puts a special token behind.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "prose")
    if kind == "code":
        pieces = pre_tokenizers.Split(Regex(r"\d|\s?[^\s\d]+|\s+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size={"prose": 420, "code": 360}[kind],
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator({"prose": PROSE, "code": CODE}[kind], trainer)
    single = {"prose": "<s> $A", "code": "$A <s>"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>")


def tokenizer_kind(family: str) -> str:
    """Which tokenizer a family's tiny model has."""
    return "prose" if family in ("llama", "mistral", "gemma2", "gemma3_text", "gpt2") else "code"


def build_config(family: str, **changes: object) -> PreTrainedConfig:
    """The config of a family's tiny model, some of its fields changed."""
    return AutoConfig.for_model(family, **{**FAMILIES.get(family, SIZES), **changes})


def build_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model in which every tensor is random and of a size that keeps all layers of like weight."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def save_model(model: PreTrainedModel, directory: Path, tokenizer: str | None, max_shard_size: str = "100KB") -> Path:
    """Save a model as transformers does, with a tokenizer (`prose`, `code` or None for none)."""
    # Saving looks whether the model is wrapped by DeepSpeed, and DeepSpeed prints when it is imported.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        build_tokenizer(tokenizer).save_pretrained(directory)
    return directory


def make_model(
    directory: Path, family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object
) -> Path:
    """Build and save a family's tiny model with its tokenizer; returns the directory."""
    return save_model(build_model(build_config(family, **changes), seed).to(dtype), directory, tokenizer_kind(family))
