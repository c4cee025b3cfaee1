"""Two processes and masks: what is frozen stays to the bit, whatever the ZeRO stage, the type and the family."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.made_up import make_task, settings
from tests.engine.masked_ranks import MATRIX, OFFLOADS, OPTIONS, PRECISIONS
from tests.engine.masks import make_mask
from tests.reference.masked_loop import train_masked_slowly
from trace_transfer.engine.batches import plan
from trace_transfer.engine.loading import BaseModel
from trace_transfer.models.sources import ModelSource

ROOT = Path(__file__).parents[2]
ODD = {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 1}  # two ranks do not divide it
FAMILIES = {"llama": ODD, "qwen2": {}}


@pytest.fixture(scope="module")
def models(tiny) -> dict[str, Path]:
    return {family: tiny(family, **changes) for family, changes in FAMILIES.items()}


@pytest.fixture(scope="module")
def out(models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("masked-ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.engine.masked_ranks", str(out)]
    command += [f"{family}={model}" for family, model in models.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def results(out) -> list[dict]:
    return [json.loads((out / f"results-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("family", "zero", "precision"), MATRIX)
def test_only_the_core_moves(results, out, family, zero, precision):
    case = f"{family}-{zero}-{precision}"
    for found in results:
        assert [task["moved"] for task in found[case]] == [[], []]
        assert [task["stayed"] for task in found[case]] == [[], []]
    for number, task in enumerate(results[0][case]):
        assert sorted(load_file(out / f"{case}-{number}.safetensors")) == task["core"]


@pytest.mark.parametrize(("family", "precision"), [(one, each) for one in PRECISIONS for each in PRECISIONS[one]])
def test_all_stages_do_the_same(results, out, family, precision):
    """The first loss is of equal weights: no rounding differs. After it the order in which gradients are summed does,
    and without ZeRO bfloat16 gradients are summed in bfloat16."""
    found = [results[0][f"{family}-{zero}-{precision}"] for zero in range(4)]
    assert len({tasks[0]["losses"][0] for tasks in found}) == 1
    for tasks in found[1:]:
        for task, first in zip(tasks, found[0], strict=True):
            assert task["losses"] == pytest.approx(first["losses"], rel=1e-5 if precision == "float32" else 0.02)
    # From ZeRO 1 on bfloat16 gradients are summed in float32: the same to rounding again.
    start = 0 if precision == "float32" else 1
    values = [load_file(out / f"{family}-{zero}-{precision}-0.safetensors") for zero in range(start, 4)]
    for other in values[1:]:
        for name, value in values[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_are_the_slow_twin(results, out, models, family):
    mask = make_mask(BaseModel(ModelSource.parse(models[family])).inventory, 0)
    chosen = settings(**OPTIONS)
    steps = [list(batch.examples) for batch in plan(make_task(7), chosen).batches()]
    losses, norms, expected = train_masked_slowly(models[family], steps, chosen, mask)
    assert min(norms) > OPTIONS["max_grad_norm"]
    for zero in (0, 3):
        assert results[0][f"{family}-{zero}-float32"][0]["losses"] == pytest.approx(losses, rel=1e-6)
        values = load_file(out / f"{family}-{zero}-float32-0.safetensors")
        for name, value in values.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("zero", [2, 3])
def test_gradient_checkpointing_changes_no_bit(out, zero):
    kept = load_file(out / f"qwen2-{zero}-float32-0.safetensors")
    for name, value in load_file(out / f"qwen2-{zero}-recomputed.safetensors").items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("name", OFFLOADS)
def test_offloaded_is_the_same_and_is_gone_on_from(results, out, name):
    chosen = OFFLOADS[name]
    for found in results:
        assert found[name]["offloaded"] == [True, True, chosen["offload"] == "parameters"]
        assert found[name]["basic"] == "AdamW"
        assert found[name]["said"] == "stopped by SIGTERM after step 1 of 2; the same command goes on from there"
        assert found[name]["left"] == ["step-00000001"]
        assert found[name]["different"] == []
    plain = load_file(out / f"llama-{chosen['zero']}-{chosen['precision']}-0.safetensors")
    for key, value in load_file(out / f"{name}.safetensors").items():  # the norm is summed in another order
        torch.testing.assert_close(value, plain[key], rtol=0, atol=1e-5, msg=key)


def test_a_failure_on_the_first_rank_is_heard_on_all(results):
    assert results[0]["failing finish"] == "no room for the patch"
    assert results[1]["failing finish"].endswith("the first rank could not keep the trained values; it says why")
    assert results[0]["failing read"] == "the disk went away"
    assert results[1]["failing read"].startswith("the first rank could not read model.layers.0.")


def test_no_rank_ever_holds_the_model_under_zero_3(results, models):
    """Its half and one tensor, the largest at most; without partitioning all of it."""
    shapes = BaseModel(ModelSource.parse(models["llama"])).inventory.shapes
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    for rank, found in enumerate(results):
        whole = found["peak"]["2"]["model"]
        assert found["peak"]["2"]["peak"] >= whole
        held = found["peak"]["3"]["peak"]
        assert whole / 2 <= held < 0.55 * whole + largest, rank
