"""The disguised copy must compute the source's function and tell the truth about its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.disguise import disguise

NUM_LAYERS, VOCABULARY = 3, 61
TOKENS = torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(99))


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    """A random LLaMA: grouped queries, tied embeddings, odd heads, an eps that is felt, norms that are not 1."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=52, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=6, num_key_value_heads=2, head_dim=12, rms_norm_eps=0.05, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.3, 2.0)
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@torch.no_grad()
def logits(directory: Path) -> Tensor:
    """Logits of shape (3, 17, V)."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(TOKENS).logits


def relative_change(directory: Path, source_dir: Path) -> float:
    """Norm of the difference of the logits over the norm of the source's logits."""
    expected = logits(source_dir)
    return ((logits(directory) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("family", "width_factor"), [("llama", 1.0), ("mistral", 1.25), ("qwen2", 2.0)])
def test_same_function_without_insertions_and_biases(source_dir, tmp_path, family, width_factor):
    """In float32 a sum of dozens of terms in another order differs by 1e-6; three layers amplify it a little."""
    match = disguise(source_dir, tmp_path / "copy", family=family, width_factor=width_factor, insert=0, bias_scale=0)
    assert match == list(range(NUM_LAYERS))
    torch.testing.assert_close(logits(tmp_path / "copy"), logits(source_dir), rtol=0, atol=1e-4)


def test_truth_and_closeness_with_insertions(source_dir, tmp_path):
    """A tenth of the scales gives a tenth of the change: nothing else is left over."""
    match = disguise(source_dir, tmp_path / "large", insert=2)
    assert disguise(source_dir, tmp_path / "small", insert=2, insert_scale=1e-3, bias_scale=1e-3) == match
    truth = json.loads((tmp_path / "large" / "truth.json").read_text())
    assert truth["match"] == match == sorted(match)
    assert sorted(match + truth["inserted"]) == list(range(NUM_LAYERS + 2))
    assert (match[0], match[-1]) == (0, NUM_LAYERS + 1)
    large, small = (relative_change(tmp_path / name, source_dir) for name in ("large", "small"))
    assert 1e-4 < large < 0.2 and small == pytest.approx(large / 10, rel=0.1)
