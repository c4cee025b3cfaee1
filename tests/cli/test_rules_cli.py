"""`trace-transfer rules list | check | explain`."""

from functools import partial
from pathlib import Path

import pytest

from tests import commands
from trace_transfer.families.registry import load_families, shipped_rules

run, done = partial(commands.run, "rules"), partial(commands.done, "rules")
CONFIGS = Path(__file__).parents[1] / "configs"
LLAMA, QWEN2, QWEN3 = (CONFIGS / name for name in ("llama-3-8b", "qwen2.5-14b", "qwen3-32b"))

# transformers' own default configs of these build no model.
DEFAULT_CONFIG_INCOMPLETE = ["hunyuan_v1_dense", "ministral", "nemotron"]


@pytest.fixture
def typo(tmp_path) -> Path:
    text = (shipped_rules() / "qwen3.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("self_attn.q_norm.weight", "self_attn.qnorm.weight"), encoding="utf-8")
    return path


def test_list(typo):
    lines = [line.split() for line in done("list").stdout.splitlines() if ".yaml" in line]
    assert [line[:3] for line in lines if line[0] in ("gemma3", "llama")] == [
        ["gemma3", "gemma3_text", "14"],
        ["llama", "llama", "12"],
    ]
    assert len(lines) == len(list(shipped_rules().glob("*.yaml")))
    assert str(typo) in done("list", "--rules", typo).stdout


def test_check_shipped():
    lines = done("check").stdout.splitlines()
    assert len(lines) == len(load_families().by_model_type)
    unchecked = [line.partition(":")[0] for line in lines if not line.startswith("OK ")]
    assert unchecked == [f"NOT CHECKED {name}.yaml" for name in DEFAULT_CONFIG_INCOMPLETE]
    assert "OK phi3.yaml (phi3) fits phi3: 195 tensors in 291 parts, 32 layers" in lines
    (multimodal,) = [line for line in lines if "gemma3_multimodal" in line]
    assert multimodal.endswith(" fits gemma3: 550 tensors in 341 parts, 26 layers, 210 excluded")


def test_check_reports_all_problems(typo, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("family: other\nmodel_types: [ohter]\nextends: llama\n", encoding="utf-8")
    result = run("check", tmp_path)
    assert result.exit_code == 2
    for problem in (
        f"  - {typo}:7: attention.query: 'self_attn.qnorm.weight' matches no tensor",
        f"  - {typo}:2: tensor 'model.layers.{{layer}}.self_attn.q_norm.weight' is in no component",
        f"{other}:1: the installed transformers has no model_type 'ohter'",
    ):
        assert problem in result.stderr


def test_explain_piped_breaks_no_line():
    shown = done("explain", "--src", QWEN3, "--dst", QWEN2).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert ["self_attn.q_proj.bias", "qwen3.yaml:7", "→", "qwen2.yaml:7", "(expand)"] in lines
    assert ["self_attn.q_norm.weight", "attention.query", "of", "qwen2", "has", "no", "'norm'"] in lines
    assert "579 tensors: 579 reached, 0 unreached; 14,770,033,664 of 14,770,033,664 parameters reached" in shown
    assert "unreached: no source" not in shown


def test_explain_previews_what_the_default_match_reaches():
    """As many layers of the deeper model as `map` matches, whichever side it is on."""
    for src, dst, reached in ((LLAMA, QWEN3, "707 reached, 0 unreached"), (QWEN3, LLAMA, "579 carried, 128 dropped")):
        (line,) = (
            line for line in done("explain", "--src", src, "--dst", dst).stdout.splitlines() if "64 layers" in line
        )
        assert f"qwen3, 64 layers, 707 tensors: {reached}" in line  # LLaMA has no norms of queries and keys
