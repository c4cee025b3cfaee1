"""The paper's run at full size, planned without a weight and without network."""

import pytest

from examples.llama3_to_qwen.make_configs import write_all
from tests.commands import done
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.checkpoints import open_checkpoint

NUM_TENSORS = {"Meta-Llama-3-8B": 291, "Qwen2.5-14B": 579, "Qwen3-32B": 707}
BILLIONS = {"Meta-Llama-3-8B": 8.03, "Qwen2.5-14B": 14.77, "Qwen3-32B": 32.76}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    out = tmp_path_factory.mktemp("stand_ins")
    write_all(out, most_records=20)
    return out


@pytest.mark.parametrize("name", NUM_TENSORS)
def test_models_of_the_real_size_on_a_small_disk(stand_ins, name):
    directory = stand_ins / "models" / name
    opened = open_model(directory, load_families())
    assert opened.identity.num_parameters == NUM_TENSORS[name]
    assert round(opened.identity.num_elements / 1e9, 2) == BILLIONS[name]
    weights = open_checkpoint(opened.source)
    assert set(weights.stored) == set(opened.anatomy.inventory.shapes)
    assert sum(file.stat().st_size for file in weights.files) > 2 * opened.identity.num_elements
    assert sum(512 * file.stat().st_blocks for file in directory.iterdir()) < 2_000_000


def test_plan_of_the_whole_run(stand_ins):
    assert " steps to run, 0 up to date" in done("run", stand_ins / "qwen3-32b.paper.yaml", "--dry-run").stdout


def test_memory_of_a_training(stand_ins):
    """`train --dry-run` reads headers; the largest model does not fit 8 GPUs of 80 GB without offloading."""
    stream = stand_ins / "stream.yaml"
    stream.write_text(
        "tasks: [{name: maths, data: data/maths.jsonl, fields: {prompt: query, completion: response}}]", "utf-8"
    )
    command = ["train", stand_ins / "models/Qwen3-32B", "--stream", stream, "--method", "full", "--processes", 8]
    planned = done(*command, "--precision", "bfloat16", "--dry-run", "--out", stand_ins / "x").stdout
    assert "49.1 GB" in planned  # of the optimizer
