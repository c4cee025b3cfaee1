"""The disguised copy must compute the source's function and tell the truth about its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.disguise import FAMILIES_WITH_BIAS, disguise

NUM_LAYERS = 3
VOCABULARY = 61

# Both models compute in float32, where a sum of some dozens of terms in another order differs by 1e-6 of the largest;
# the largest logit here is about 10, and three layers amplify the difference a little.
EXACT = 1e-4


def llama_config(**changes: object) -> LlamaConfig:
    """Grouped-query attention, tied embeddings, heads not of size width / heads, an eps that is felt."""
    fields: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 52,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rms_norm_eps": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**fields | changes)


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    """A random LLaMA whose norm weights are not 1, with a tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.3, 2.0)
    directory = tmp_path / "source"
    model.save_pretrained(directory)
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(directory / "tokenizer.json"))
    return directory


def tokens() -> Tensor:
    """Token ids of shape (3, 17), others than those of the scaling pass."""
    return torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(99))


@torch.no_grad()
def logits(directory: Path) -> Tensor:
    """Logits of shape (3, 17, V)."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(tokens()).logits


def relative_change(directory: Path, source_dir: Path) -> float:
    """Norm of the difference of the logits over the norm of the source's logits."""
    expected = logits(source_dir)
    return ((logits(directory) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("family", "width_factor"), [("llama", 1.0), ("mistral", 1.25), ("qwen2", 2.0)])
def test_same_function_without_insertions_and_biases(
    source_dir: Path, tmp_path: Path, family: str, width_factor: float
) -> None:
    out_dir = tmp_path / "copy"
    match = disguise(source_dir, out_dir, family=family, width_factor=width_factor, insert=0, bias_scale=0)
    assert match == list(range(NUM_LAYERS))
    torch.testing.assert_close(logits(out_dir), logits(source_dir), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("family", "seed"), [("llama", 0), ("mistral", 1), ("qwen2", 2)])
def test_truth_and_closeness_with_insertions(source_dir: Path, tmp_path: Path, family: str, seed: int) -> None:
    out_dir = tmp_path / "copy"
    match = disguise(source_dir, out_dir, family=family, insert=2, seed=seed)
    truth = json.loads((out_dir / "truth.json").read_text())
    assert truth["match"] == match
    assert len(match) == NUM_LAYERS
    assert match == sorted(set(match))
    assert sorted(match + truth["inserted"]) == list(range(NUM_LAYERS + 2))
    assert match[0] == 0
    assert match[-1] == NUM_LAYERS + 1
    assert AutoConfig.from_pretrained(out_dir).num_hidden_layers == NUM_LAYERS + 2
    # Two changes of 1 % of the stream; with random weights the biases of 1 % weigh more (eight seeds: 0.03 and 0.15).
    assert 1e-4 < relative_change(out_dir, source_dir) < (0.2 if family in FAMILIES_WITH_BIAS else 0.05)


def test_only_insertions_and_biases_change_the_function(source_dir: Path, tmp_path: Path) -> None:
    """A tenth of the scales gives a tenth of the change: nothing else is left over."""
    disguise(source_dir, tmp_path / "large", insert=2)
    disguise(source_dir, tmp_path / "small", insert=2, insert_scale=1e-3, bias_scale=1e-3)
    large, small = (relative_change(tmp_path / name, source_dir) for name in ("large", "small"))
    assert small == pytest.approx(large / 10, rel=0.1)


@torch.no_grad()
def test_an_inserted_layer_moves_the_stream_by_insert_scale(source_dir: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "copy"
    disguise(source_dir, out_dir, insert=3, insert_scale=0.03, seed=1)
    model = AutoModelForCausalLM.from_pretrained(out_dir).eval()
    streams = model(
        tokens(), output_hidden_states=True
    ).hidden_states  # the last is after the final norm, not used here
    for place in json.loads((out_dir / "truth.json").read_text())["inserted"]:
        before, after = streams[place], streams[place + 1]
        share = ((after - before).norm(dim=-1) / before.norm(dim=-1)).median().item()
        assert share == pytest.approx(0.03, rel=0.3)  # other tokens than those it was scaled on


def test_every_weight_is_disguised(source_dir: Path, tmp_path: Path) -> None:
    """At equal width, no matrix is the source's, nor has its rows in another order."""
    out_dir = tmp_path / "copy"
    disguise(source_dir, out_dir, family="llama", width_factor=1.0, insert=0)
    copy = AutoModelForCausalLM.from_pretrained(out_dir).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(source_dir).state_dict().items():
        if weight.dim() == 2:
            assert torch.cdist(weight, copy[name]).min() > 0.1 * weight.norm(dim=1).mean(), name


def test_tokenizer_is_copied_and_seed_decides_everything(source_dir: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(seed + len(list(tmp_path.iterdir())))  # the global generator must not matter
        disguise(source_dir, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (source_dir / "tokenizer.json").read_bytes()
