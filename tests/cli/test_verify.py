"""`trace-transfer verify`: what it prints, its exit codes, and what it refuses."""

import json
from functools import partial

import pytest
import torch

from tests import commands
from tests.core_files import write_core
from tests.patch_files import make_patch, state_of
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.formats import read_any
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent

run = partial(commands.run, "verify")


@pytest.fixture
def tuned(tiny, tmp_path):
    """A base, a model of which the core set of a file moved, and that file."""
    base = tiny("llama", dtype=torch.bfloat16)
    file = write_core(base, tmp_path / "math.core.json")
    state = state_of(base)
    mask = Mask.of_core(read_any(file), state.shapes, {}, str(file))
    write_model(state.apply(make_patch(state, tmp_path / "p", mask, 1)), tmp_path / "tuned", Silent())
    return base, tmp_path / "tuned", file


def test_only_the_core_set_moved(tuned, tmp_path):
    base, model, core = tuned
    done = run(base, model, "--core", core, "--json", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["core", "moved", "3", "24,672"] in lines
    assert ["core", "unmoved", "0", "0"] in lines
    assert ["frozen", "MOVED", "0", "0"] in lines
    assert "no frozen tensor moved" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["format"] == "trace-transfer/verification"
    assert len(found["parameters"]) == 39
    assert sum(one["core_moved"] for one in found["parameters"]) == 24_672


def test_a_frozen_tensor_moved(tuned, tmp_path):
    base, model, core = tuned
    write_core(base, core, ratio=0.05)
    done = run(base, model, "--core", core, "--json", tmp_path / "found.json")
    assert done.exit_code == 1
    assert "! 2 frozen tensors MOVED:\n  model.layers" in done.stdout
    assert "error: " in done.stderr and "2 tensors moved that were to stay bit-identical" in done.stderr
    assert (tmp_path / "found.json").is_file()


def test_what_is_refused(tiny, tmp_path):
    base, other = tiny("llama"), tiny("qwen2")
    rows = make_patch(state_of(base), tmp_path / "rows", Mask({"lm_head.weight": Slice(0, ((0, 2),))}), 1)
    core = write_core(other, tmp_path / "other.core.json")
    for arguments, message in (
        ((base, base), "what was to move is not said: give --core"),
        ((base, base, "--core", core), f"{core}: of {other} (qwen2, 5 layers), BASE is "),
        ((base, other, "--patch", rows.path), "not of the names and shapes of"),
    ):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert message in done.stderr
