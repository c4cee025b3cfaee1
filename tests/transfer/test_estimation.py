"""What `--dry-run` says agrees with what a run does."""

import json

import pytest

from trace_transfer.models.sources import numel
from trace_transfer.transfer.estimation import estimate, measure_speed, render_estimate
from trace_transfer.transfer.mapping import plan_map
from trace_transfer.transfer.settings import MapSettings


@pytest.fixture
def planned(tiny, tmp_path):
    texts = tmp_path / "texts.jsonl"
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
    lines = [" ".join(words[i % 12 :] + words[: i % 12] + [str(i)]) for i in range(24)]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    settings = MapSettings(probe=str(texts), batch_size=4, cache=None)
    return plan_map(tiny("llama"), tiny("qwen3"), [], settings), settings


def test_counts_are_those_of_the_models(planned):
    plan, settings = planned
    result = estimate(plan, settings)
    for model, opened in zip(result.models, (plan.source, plan.target), strict=True):
        shapes = opened.anatomy.inventory.shapes
        assert model.num_parameters == len(shapes) == sum(count for *_, count, _ in model.shapes)
        layers = [n for n in shapes if n.startswith(f"{opened.anatomy.layer_path}.0.")]
        assert model.layer_bytes >= 4 * sum(numel(shapes[name]) for name in layers)
        assert model.seconds > 0
    assert result.num_rows == len(plan.rows.texts_R)
    first, second = result.models
    assert result.peak_bytes >= first.gram_bytes + second.gram_bytes + second.layer_bytes


def test_text_names_shapes_memory_and_time(planned):
    plan, settings = planned
    text = render_estimate(estimate(plan, settings))
    for expected in (
        "memory: largest layer",
        "time of arithmetic",
        "self_attn.q_norm.weight",
        "attention.query",
        "peak",
    ):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 100


def test_speed_is_that_of_a_matrix_product():
    import torch

    assert 1e8 < measure_speed("cpu", torch.float32, side=128) < 1e15
