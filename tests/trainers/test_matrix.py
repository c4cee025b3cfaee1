"""Every trainer, with tensors and rows, in every parallelism: as the obvious loop, and nothing else moves by a bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.core_files import core_of
from tests.reference.frozen_loop import outside_of, train_frozen_slowly
from tests.trainers.cells import CELLS, DECAY, NORM, PARALLEL, RATE, STEPS, TRAINERS, batches, cell, load
from tests.tuned_models import weights
from trace_transfer.core_sets.core_file import write_core
from trace_transfer.core_sets.masks import Chosen, Slice
from trace_transfer.formats import read_any
from trace_transfer.patch.patches import Patch

ROOT = Path(__file__).parents[2]
CORES = {
    "tensors": {
        "model.embed_tokens.weight": None, "model.layers.1.self_attn.q_proj.weight": None, "model.norm.weight": None,
        "model.layers.2.input_layernorm.weight": None,
    },
    "rows": {
        "model.embed_tokens.weight": ((3, 140), (200, 290)),
        "model.layers.1.self_attn.q_proj.weight": ((5, 6), (9, 20)),
        "model.layers.1.mlp.down_proj.weight": ((0, 3),), "model.layers.0.input_layernorm.weight": ((1, 2), (8, 31)),
        "lm_head.weight": ((100, 200),), "model.layers.2.mlp.up_proj.weight": None, "model.norm.weight": None,
    },
}  # fmt: skip


CHOSEN = {
    "model.embed_tokens.weight": Chosen(np.arange(30, 9000, 7)),
    "model.layers.1.mlp.down_proj.weight": Chosen(np.array([0, 5, 700, 3839])),
    "model.norm.weight": Chosen(np.arange(1, 48, 2)),
}  # fmt: skip


def parts_of(kind):
    if kind == "parameters":
        return CHOSEN
    return {name: None if rows is None else Slice(0, rows) for name, rows in CORES[kind].items()}


TIED = {"tie_word_embeddings": True}
OPTIONS = {"learning_rate": RATE, "weight_decay": DECAY, "max_grad_norm": NORM}


def cores_of(model, directory):
    names = {name for name, _ in load(model).named_parameters()}
    for kind, chosen in CORES.items():
        core_of(model, directory / f"{kind}.core.json", {name: chosen[name] for name in chosen if name in names})
    core = read_any(core_of(model, directory / "all.core.json", list(CHOSEN)))
    write_core(directory / "parameters.core.json", core.of_parameters(CHOSEN))
    return directory


@pytest.fixture(scope="module")
def cores(tiny, tmp_path_factory):
    return cores_of(tiny("llama"), tmp_path_factory.mktemp("cores"))


@pytest.fixture(scope="module")
def slow(tiny):
    kinds = dict.fromkeys(kind for _, kind in CELLS)
    return {kind: train_frozen_slowly(tiny("llama"), batches(), parts_of(kind), **OPTIONS) for kind in kinds}


@pytest.fixture(scope="module")
def launched(tiny, tmp_path_factory):
    """`launched(parallelism, …)`: the directory with the results of all of its cells, made once."""
    made = {}

    def get(parallel, **changes):
        key = (parallel, *changes)
        if key not in made:
            out, model = tmp_path_factory.mktemp(parallel), tiny("llama", **changes)
            (out / "cores").mkdir()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
            command += ["tests.trainers.cells", parallel, model, cores_of(model, out / "cores"), out]
            done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-4000:]
            made[key] = out
        return made[key], json.loads((made[key] / "results.json").read_text())

    return get


def check(result, out, kind, base, slow):
    """Losses and weights are the slow twin's, frozen bits the base's; the patch is the difference."""
    losses, expected = slow[kind]
    assert "error" not in result, result["error"]
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    found, before = load_file(out / "model.safetensors"), weights(base)
    assert found.keys() == before.keys() == expected.keys()
    parts = {name: part for name, part in parts_of(kind).items() if name in found}
    for name, value in found.items():
        still = outside_of(value, parts[name]) if name in parts else torch.ones(value.shape, dtype=torch.bool)
        assert torch.equal(value[still], before[name][still]), name
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-4, msg=name)
        assert name not in parts or (value[~still] != before[name][~still]).float().mean() > 0.3, name
    for file in out.glob("*.patch.safetensors"):
        patch = Patch.open(file)
        assert patch.mask.parts == parts
        for entry in patch.entries:
            assert torch.equal(patch.before(entry.name), entry.part_of(before[entry.name]))
            assert torch.equal(patch.after(entry.name), entry.part_of(found[entry.name]))


@pytest.mark.filterwarnings("ignore")  # of transformers and trl about themselves
@pytest.mark.parametrize(
    ("trainer", "kind"),
    [pytest.param(*one, marks=pytest.mark.slow if one[1] == "tensors" and one[0] != "loop" else ()) for one in CELLS],
)
def test_one_process(tiny, cores, slow, tmp_path, trainer, kind):
    result = cell(trainer, kind, "one", tiny("llama"), cores, tmp_path)
    check(result, tmp_path, kind, tiny("llama"), slow)


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "kind"), CELLS)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes(tiny, launched, slow, parallel, trainer, kind):
    out, results = launched(parallel)
    check(results[f"{trainer}-{kind}"], out / f"{trainer}-{kind}", kind, tiny("llama"), slow)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("parallel", ["ddp", "zero3"])
def test_rows_of_an_embedding_that_is_the_head(tiny, launched, parallel, trainer):
    out, results = launched(parallel, **TIED)
    parts = {name: part for name, part in parts_of("rows").items() if name != "lm_head.weight"}
    slow = {"rows": train_frozen_slowly(tiny("llama", **TIED), batches(), parts, **OPTIONS)}
    check(results[f"{trainer}-rows"], out / f"{trainer}-rows", "rows", tiny("llama", **TIED), slow)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_resumed_in_two_processes(launched, parallel):
    """From a checkpoint in the middle, with the same bits at the end."""
    out, results = launched(parallel)
    assert "error" not in results["resumed"], results["resumed"]["error"]
    once, again = results["resumed"]["losses"]
    assert once == again and len(once) == STEPS
    patches = [out / "resumed" / where / "math.patch.safetensors" for where in ("", "again")]
    assert patches[0].read_bytes() == patches[1].read_bytes()
