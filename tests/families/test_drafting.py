"""Drafts of rules: leave one family out and compare with what was written by hand; the command."""

from functools import partial
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests import commands
from tests.tiny_models import FAMILIES, build_config
from trace_transfer.families.checking import draft_family
from trace_transfer.families.registry import load_families, parse_file
from trace_transfer.models.sources import read_inventory

run = partial(commands.run, "rules")

REGISTRY = load_families()


def without(name: str):
    return [family for family in REGISTRY.families.values() if family.name != name]


def placed(family) -> set[tuple[str, str]]:
    components = (*family.components.values(), *family.outside.values())
    return {(member.pattern, one.name) for one in components if one for member in one.members}


def test_leave_one_out(tmp_path):
    """Measured: 612 of 717 names known by the nearest family, 610 of them in the right components."""
    right = known = total = 0
    for kind in FAMILIES:
        family = REGISTRY.by_model_type[kind]
        draft = draft_family(read_inventory(build_config(kind)), without(family.name))
        (tmp_path / "draft.yaml").write_text(draft.text, encoding="utf-8")
        found, _ = parse_file(tmp_path / "draft.yaml")
        right += len({name for name, _ in placed(found) & placed(family)})
        known, total = known + len(draft.known), total + len(draft.known) + len(draft.todo)
        if kind == "qwen3":
            (hint,) = [one for one in draft.todo if one.startswith("self_attn.q_norm.weight ")]
            assert "attention.query? gemma3 has self_attn.q_norm.weight there" in hint
    print(f"\n{right} right, {known} known, {total} in all")
    assert known / total >= 0.75 and right / known >= 0.95


# ---------------------------------------------------------------- the command


@pytest.fixture
def diffllama(tmp_path) -> Path:
    """An architecture of transformers without rules: differential attention has vectors that LLaMA lacks."""
    AutoConfig.for_model("diffllama", num_hidden_layers=4).save_pretrained(tmp_path / "diffllama")
    return tmp_path / "diffllama"


ADDED = {"attention.query": ("lambda_q1", "lambda_q2"), "attention.key": ("lambda_k1", "lambda_k2")}


def test_draft_edit_check(diffllama, tmp_path, monkeypatch):
    """The walk-through of the README."""
    monkeypatch.chdir(tmp_path)
    drafted = run("draft", "diffllama")
    assert drafted.exit_code == 1
    first, _, *problems = drafted.stdout.splitlines()
    assert first == "diffllama.yaml: nearest family mistral; 12 names as there, 4 left to do"
    assert [problem.split("'")[1].rpartition(".")[2] for problem in problems] == [
        "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2",
    ]  # fmt: skip
    path = tmp_path / "diffllama.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[-1].startswith("#   self_attn.lambda_k2 [64]: one of attention.query, ")
    assert run("check", path, "--model", "diffllama").exit_code == 2
    for component, names in ADDED.items():
        start = text.index(f"  {component}:\n") + len(f"  {component}:\n")
        end = text.index("\n", start) + 1
        lines = "".join(f"    - {{name: self_attn.{name}, role: {name}}}\n" for name in names)
        text = text[:end] + lines + text[end:]
    path.write_text(text, encoding="utf-8")
    checked = run("check", path, "--model", "diffllama")
    assert checked.exit_code == 0
    assert checked.stdout == "OK diffllama.yaml (diffllama) fits diffllama: 55 tensors in 55 parts, 4 layers\n"


def test_a_file_is_not_overwritten_and_a_known_family_not_drafted(diffllama, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine", encoding="utf-8")
    done = run("draft", diffllama, "--out", path)
    assert done.exit_code == 2 and f"{path} exists" in done.stderr and path.read_text(encoding="utf-8") == "mine"
    assert run("draft", diffllama, "--out", path, "--force").exit_code == 1
    assert path.read_text(encoding="utf-8").startswith("# diffllama: a draft")
    build_config("starcoder2").save_pretrained(tmp_path / "model")
    done = run("draft", tmp_path / "model", "--out", tmp_path / "other.yaml")
    assert done.exit_code == 2 and "already, and they fit: OK starcoder2" in done.stderr
    assert not (tmp_path / "other.yaml").exists()
