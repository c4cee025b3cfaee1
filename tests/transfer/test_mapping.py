"""What `map` prints: its plan, which agrees with what a run does, and its end."""

import json
import re

import numpy as np
import pytest

from tests.core_files import write_core
from tests.run_files import layer_match
from tests.tiny_models import TEXTS
from trace_transfer import map_models, read
from trace_transfer.errors import UserError
from trace_transfer.models.sources import numel
from trace_transfer.transfer import draw
from trace_transfer.transfer.draw import render_estimate, render_summary
from trace_transfer.transfer.mapping import carry_along, estimate, plan_map
from trace_transfer.transfer.policies import depth_pairs
from trace_transfer.transfer.records import Depth, LayerPair, Stability
from trace_transfer.transfer.settings import MapSettings


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("probe") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture(scope="module")
def result(tiny, texts):
    core = write_core(tiny("qwen2"), texts.with_name("math.core.json"))
    out = texts.with_name("out")
    return map_models(tiny("qwen2"), tiny("gpt2"), core=[core], probe=str(texts), out=out, cache=None)


def test_says_what_was_found(result):
    text = render_summary(result)
    match, (carried,) = result.match, result.carried
    strongest = max(match.pairs, key=lambda pair: pair.similarity)
    assert f"{strongest.source} → {strongest.target}  CKA {strongest.similarity:.3f}" in text
    assert f"{len(carried.core.core)} of {len(carried.core.parameters)}" in text
    assert all(reason[:50] in text.replace("\n", " ") for reason in carried.dropped.values())
    assert all(str(file) in text for file in result.files)
    assert match.verdict[:50] in text


def test_two_devices_at_once_give_the_same_files(tiny, texts, tmp_path, result):
    core = texts.with_name("math.core.json")
    other = map_models(tiny("qwen2"), tiny("gpt2"), core=[core], probe=str(texts), out=tmp_path / "other", cache=None,
                       device="cpu", target_device="cpu:0")  # fmt: skip
    assert [file.name for file in other.files] == [file.name for file in result.files]
    for ours, theirs in zip(result.files, other.files, strict=True):
        if ours.suffix == ".safetensors":
            assert ours.read_bytes() == theirs.read_bytes()
    assert other.match.pairs == result.match.pairs


def test_core_files_of_another_match_may_not_stay(tiny, texts, result):
    again = {"probe": str(texts), "out": texts.with_name("out"), "cache": None}
    map_models(tiny("qwen2"), tiny("gpt2"), batch_size=2, ratio=0.3, **again)  # the same pairs
    with pytest.raises(UserError, match=r"another layer match carried(.|\n)*math\.core\.json"):
        map_models(tiny("qwen2"), tiny("gpt2"), match="argmax", **again)
    assert read(texts.with_name("out") / "layer_match.json").policy == "coverage"
    map_models(tiny("qwen2"), tiny("gpt2"), match="argmax", core=[texts.with_name("math.core.json")], **again)


def test_by_depth_neither_model_is_read(tiny, copy_of, tmp_path):
    """Configs are enough; core sets are carried along the pairs of equal depth."""
    source, target = copy_of("qwen2"), copy_of("gpt2", n_layer=5)
    core = write_core(source, tmp_path / "math.core.json")
    for file in (*source.glob("model*"), *target.glob("model*")):
        file.unlink()
    result = map_models(source, target, core=[core], match="depth", out=tmp_path / "out", cache=None)
    layers = result.match.source.num_layers, result.match.target.num_layers
    assert tuple((pair.source, pair.target) for pair in result.match.pairs) == depth_pairs(layers, by_target=True)
    assert result.carried[0].core.core and np.isnan(result.similarity).all() and result.similarity.shape == layers
    assert "neither model was read" in " ".join(render_summary(result).split())
    settings = MapSettings(match="depth", cache=None)
    assert estimate(plan_map(source, target, (), settings), settings).peak_bytes == 0
    (again,) = carry_along(source, target, tmp_path / "out", [core], how="scores", ratio=None, rules=(), out=tmp_path)
    assert again.core.core == result.carried[0].core.core


@pytest.mark.parametrize(
    ("policy", "same", "gain", "flips", "verdict"),
    [
        ("coverage", 0.9, (0.03, 0.01), 1, r"usable: 90% .*, CKA \+0.030 over .*, 1 of 3 pairs ambiguous"),
        ("coverage", 0.9, None, 0, "usable: 90% "),  # of an earlier version
        ("coverage", 0.9, (0.01, 0.01), 0, "no better than matching by depth: 90%"),
        ("coverage", 0.4, (0.03, 0.01), 3, "unstable: 40% .* 3 of 3"),
        ("shuffled", 0.4, (-0.1, 0.01), 3, "a control: "),
        ("coverage", None, None, 0, "untested: "),
    ],
)
def test_verdicts(policy, same, gain, flips, verdict):
    pairs = [LayerPair(source=n, target=n, flip_rate=0.26 if n < flips else 0.25) for n in range(3)]
    match = layer_match(0)[0].model_copy(
        update={
            "policy": policy,
            "pairs": tuple(pairs),
            "stability": None if same is None else Stability(num_splits=10, same=same, within_one=1.0),
            "depth": Depth(agreement=0.2, within_one=0.5, mean_similarity_gain=0.1, held_out_gain=gain),
        }
    )
    assert re.match(verdict, match.verdict), match.verdict


def test_an_estimate_is_of_the_models_and_the_rows(tiny, texts):
    settings = MapSettings(probe=str(texts), batch_size=4, cache=None)
    plan = plan_map(tiny("llama"), tiny("qwen3"), [], settings)
    found = estimate(plan, settings)
    for one, opened in zip(found.models, (plan.source, plan.target), strict=True):
        shapes = opened.anatomy.inventory.shapes
        layers = [name for name in shapes if name.startswith(f"{opened.anatomy.layer_path}.0.")]
        assert one.layer_bytes == 4 * sum(numel(shapes[name]) for name in layers)
        assert one.seconds > 0
    first, second = found.models
    assert found.peak_bytes >= first.gram_bytes + second.gram_bytes + second.layer_bytes
    text = render_estimate(plan, found)
    assert "self_attn.q_norm.weight" in text and f"{len(plan.rows.texts_R)} rows" in text


def test_a_tensor_of_several_layers_is_one_line_of_what_was_dropped():
    names = [f"model.layers.{n}.mlp.experts.5.w1" for n in (0, 1, 2, 7)] + ["model.layers.4.up.weight", "lm_head.bias"]
    assert draw._over_layers(names) == [
        "model.layers.{0-2, 7}.mlp.experts.{n}.w1", "model.layers.4.up.weight", "lm_head.bias",
    ]  # fmt: skip
