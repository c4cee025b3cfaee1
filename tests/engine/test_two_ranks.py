"""Two processes: every ZeRO stage is one slow process, and what is frozen stays to the bit, in any type and family."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.made_up import base_of, make_mask, make_task, run, settings, steps_of
from tests.engine.two_ranks import HELD_OUT, OFFLOADS, OPTIONS, PRECISIONS, RESUMED, TRAINED, WHOLE
from tests.reference.masked_loop import train_masked_slowly
from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.checkpointing import read_evaluations

ROOT = Path(__file__).parents[2]
ODD = {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 1}  # two ranks do not divide it


@pytest.fixture(scope="module")
def models(tiny) -> dict[str, Path]:
    return {
        "llama": tiny("llama", **ODD),
        "qwen2": tiny("qwen2"),
        "tied": tiny("llama", tie_word_embeddings=True, **ODD),
    }


@pytest.fixture(scope="module")
def out(models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two-ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.engine.two_ranks", str(out), *(f"{name}={model}" for name, model in models.items())]
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(out / "extensions")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == ""
    assert "deepspeed" not in done.stderr.lower()
    assert not (out / "extensions").exists()  # nothing was compiled
    return out


@pytest.fixture(scope="module")
def results(out) -> list[dict]:
    return [json.loads((out / f"results-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def slow(models):
    return train_masked_slowly(models["tied"], steps_of(make_task(), settings(epochs=2)), settings(epochs=2))


@pytest.mark.parametrize("case", WHOLE)
def test_same_as_one_slow_process(results, out, slow, case):
    losses, _, weights = slow
    exact, found = "precision" not in WHOLE[case], results[0][case]
    # In bfloat16 one step of a steep descent is off by what the processor's products round: 5.8 % here, less elsewhere.
    assert found["losses"] == pytest.approx(losses, rel=1e-6 if exact else 0.08)
    off = [abs(one / other - 1) for one, other in zip(found["losses"], losses, strict=True)]
    assert sum(off) / len(off) < 0.015
    assert found["tokens"] == 2 * sum(len(example.input_ids) for example in make_task().examples)
    values = load_file(out / f"{case}.safetensors")
    assert values.keys() == weights.keys()
    for name, expected in weights.items():
        error = (values[name] - expected).abs()
        assert error.max() < 1e-5 if exact else error.mean() < 2e-3, name


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_is_the_same_to_the_bit(results, out, case):
    assert results[0][f"{case}-resumed"] == "stopped here"
    resumed, undisturbed = load_file(out / f"{case}-resumed.safetensors"), load_file(out / f"{case}.safetensors")
    assert resumed.keys() == undisturbed.keys()
    assert [name for name in resumed if not torch.equal(resumed[name], undisturbed[name])] == []
    assert (out / f"{case}-resumed" / "loss.csv").read_text() == (out / case / "loss.csv").read_text()
    assert [one.step for one in read_evaluations(out / f"{case}-resumed" / "eval.csv")] == [2, 4, 6]


def test_evaluated_as_by_one_process(models, out, tmp_path):
    """Of float32; the weights differ by what the order of sums rounds."""
    alone, _ = run(models["tied"], tmp_path, epochs=2, held_out=HELD_OUT)
    for one, two in zip(alone.evaluations, read_evaluations(out / "zero3-resumed" / "eval.csv"), strict=True):
        assert (one.step, one.supervised) == (two.step, two.supervised)
        assert one.losses == pytest.approx(two.losses, rel=1e-5)


def test_masked_with_a_rank_that_has_nothing_to_do(out, models):
    chosen, mask = settings(weight_decay=0.1), Mask(dict.fromkeys(TRAINED))
    _, _, weights = train_masked_slowly(models["tied"], steps_of(make_task(9), chosen), chosen, mask)
    values = load_file(out / "masked.safetensors")
    assert values.keys() == set(TRAINED)
    for name, value in values.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("family", "precision"), PRECISIONS.items())
def test_all_stages_do_the_same(results, out, family, precision):
    """The first loss is of equal weights: no rounding differs. After it the order in which gradients are summed does,
    and without ZeRO bfloat16 gradients are summed in bfloat16."""
    found = [results[0][f"{family}-{zero}"] for zero in range(4)]
    assert len({losses[0] for losses in found}) == 1
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], rel=1e-5 if precision == "float32" else 0.02)
    # From ZeRO 1 on bfloat16 gradients are summed in float32: the same to rounding again.
    start = 0 if precision == "float32" else 1
    values = [load_file(out / f"{family}-{zero}.safetensors") for zero in range(start, 4)]
    for other in values[1:]:
        for name, value in values[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


def test_masked_is_the_slow_twin(results, out, models):
    mask, chosen = make_mask(base_of(models["qwen2"]).inventory), settings(**OPTIONS)
    losses, norms, expected = train_masked_slowly(models["qwen2"], steps_of(make_task(7), chosen), chosen, mask)
    assert min(norms) > OPTIONS["max_grad_norm"]
    for zero in (0, 3):
        assert results[0][f"qwen2-{zero}"] == pytest.approx(losses, rel=1e-6)
        values = load_file(out / f"qwen2-{zero}.safetensors")
        for name, value in values.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", OFFLOADS)
def test_offloaded_is_the_same_and_is_gone_on_from(results, out, name):
    chosen = OFFLOADS[name]
    for found in results:
        assert found[name]["offloaded"] == [True, True, chosen["offload"] == "parameters"]
        assert found[name]["basic"] == "AdamW"
        assert found[name]["said"] == "stopped by SIGTERM after step 1 of 2; the same command goes on from there"
        assert found[name]["left"] == ["step-00000001"]
        assert found[name]["different"] == []
    plain = load_file(out / f"llama-{chosen['zero']}.safetensors")
    for key, value in load_file(out / f"{name}.safetensors").items():  # the norm is summed in another order
        torch.testing.assert_close(value, plain[key], rtol=0, atol=1e-5, msg=key)
