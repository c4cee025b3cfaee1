"""The disguised copy must compute the source's function and tell the truth about its layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from tests.disguise import FAMILIES, FAMILIES_WITH_BIAS, disguise

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


@pytest.mark.parametrize("width_factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_same_function_without_insertions_and_biases(
    source_dir: Path, tmp_path: Path, family: str, width_factor: float
) -> None:
    out_dir = tmp_path / "copy"
    match = disguise(source_dir, out_dir, family=family, width_factor=width_factor, insert=0, bias_scale=0)
    assert match == list(range(NUM_LAYERS))
    torch.testing.assert_close(logits(out_dir), logits(source_dir), rtol=0, atol=EXACT)


def test_same_function_with_scaled_rotary_positions(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(rope_parameters=rope, tie_word_embeddings=False)).save_pretrained(tmp_path / "source")
    disguise(tmp_path / "source", tmp_path / "copy", family="mistral", insert=0)
    torch.testing.assert_close(logits(tmp_path / "copy"), logits(tmp_path / "source"), rtol=0, atol=EXACT)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parameters_are_those_of_the_family(source_dir: Path, tmp_path: Path, family: str) -> None:
    out_dir = tmp_path / "copy"
    disguise(source_dir, out_dir, family=family)
    model, info = AutoModelForCausalLM.from_pretrained(out_dir, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.model_type == family
    assert type(model).__name__.lower() == f"{family}forcausallm"
    names = {name for name, _ in model.named_parameters()}
    assert ("model.layers.0.self_attn.v_proj.bias" in names) == (family in FAMILIES_WITH_BIAS)
    assert "lm_head.weight" in names
    assert (model.config.hidden_size, model.config.head_dim) == (
        96,
        12,
    )  # 48 × 1.25 = 60, up to a multiple of 16 and of 6 heads


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", sorted(FAMILIES))
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


def test_bfloat16_is_stored(source_dir: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "copy"
    disguise(source_dir, out_dir, insert=0, bias_scale=0, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(out_dir)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert relative_change(out_dir, source_dir) < 0.05  # bfloat16 keeps 8 bits: 0.4 % per weight


def test_a_source_that_is_not_llama_is_refused(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"cannot disguise .*gpt2:\n- model_type is 'gpt2', expected 'llama'"):
        disguise(tmp_path / "gpt2", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    llama_config(attention_bias=True, num_hidden_layers=1).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="cannot disguise") as caught:
        disguise(tmp_path / "source", tmp_path / "source", family="qwen3", width_factor=0.5, insert_scale=-1.0)
    problems = str(caught.value).splitlines()[1:]
    assert problems == [
        "- attention_bias is true, expected a LLaMA without biases",
        "- it has 1 layer, expected at least 2, between which to insert",
        "- family is 'qwen3', expected one of llama, mistral, qwen2",
        "- width_factor is 0.5, expected at least 1",
        "- insert, insert_scale, bias_scale are 3, -1.0, 0.01: none may be < 0",
        "- the copy would overwrite the source; give another directory",
    ]


def test_it_runs_as_a_command(source_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.disguise", str(source_dir), str(tmp_path / "copy"), "--insert", "2"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()[-1]  # libraries may log before it
    assert json.loads(printed) == json.loads((tmp_path / "copy" / "truth.json").read_text())["match"]
