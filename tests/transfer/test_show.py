"""What `map` prints at the end."""

import json

import pytest

from tests.core_files import write_core
from tests.tiny_models import TEXTS
from trace_transfer import map_models
from trace_transfer.transfer.show import render_summary


@pytest.fixture
def result(tiny, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    core = write_core(tiny("qwen2"), tmp_path / "math.core.json")
    return map_models(tiny("qwen2"), tiny("gpt2"), core=[core], probe=str(texts), out=tmp_path / "out", cache=None)


def test_says_what_the_files_say(result):
    text = render_summary(result)
    match, (carried,) = result.layer_match, result.carried
    assert f"qwen2 ({match.source.num_layers} layers) → gpt2 ({match.target.num_layers} layers)" in text
    assert "coverage, cka-debiased, stream" in text
    strongest = max(match.pairs, key=lambda pair: pair.similarity)
    assert f"{strongest.source} → {strongest.target}  CKA {strongest.similarity:.3f}" in text
    assert f"{len(carried.core.core)} of {len(carried.core.parameters)}" in text
    assert f"{carried.core.ratio_of_elements:.2%}" in text
    for warning in match.warnings:
        assert f"! {warning[:60]}" in text
    for reason in carried.dropped.values():
        assert reason[:50] in text.replace("\n", " ")
    for file in result.files:
        assert str(file) in text


def test_fits_a_terminal(result):
    lines = [line for line in render_summary(result).splitlines() if "/" not in line]
    assert max(map(len, lines)) <= 100
