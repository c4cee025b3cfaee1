"""Rules as text, written to a file: what is wrong with them alone, or with them and a model."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, Phi3Config

from trace_transfer.errors import RulesError
from trace_transfer.families.application import apply_family
from trace_transfer.families.registry import load_families, shipped_rules
from trace_transfer.models.sources import read_inventory

LLAMA = (shipped_rules() / "llama.yaml").read_text(encoding="utf-8")
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
TINY_LLAMA = LlamaConfig(**TINY, num_key_value_heads=2)
TINY_PHI3 = Phi3Config(**TINY, num_key_value_heads=2, pad_token_id=0)


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(*paths: Path) -> list[str]:
    """The lines of the error, from the file's name on."""
    with pytest.raises(RulesError, match=r"problems? in rules files:\n") as caught:
        load_families(paths)
    lines = [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]
    return [line.replace(f"{paths[0].parent}/", "") for line in lines]


def misfits(text: str, config, tmp_path: Path) -> list[str]:
    """The problems of a family of that text, named 'mine', applied to a model."""
    family = load_families(write(tmp_path, text)).families["mine"]
    with pytest.raises(
        RulesError, match=r"the rules of family 'mine' do not fit this \w+ model: \d+ problem"
    ) as caught:
        apply_family(family, read_inventory(config))
    return [line.removeprefix("  - ").replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()[1:]]


def mine(text: str) -> str:
    return text.replace("family: llama", "family: mine").replace("family: phi3", "family: mine")


PHI3 = mine((shipped_rules() / "phi3.yaml").read_text(encoding="utf-8"))
