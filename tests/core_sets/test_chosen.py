"""Single parameters: how they are stored, read and refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.core_files import core_of
from trace_transfer.core_sets.core_file import CoreFile, write_core
from trace_transfer.core_sets.masks import METADATA, Chosen, Mask, MaskError, Slice, decoded, encoded
from trace_transfer.core_sets.selection import reselect
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.formats import read_any

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))))
def test_stored_and_read_again_in_the_smaller_way(case):
    size, places = case
    chosen = Chosen(np.array(sorted(places), dtype=np.int64))
    values = encoded(chosen, size)
    assert decoded(values, size) == chosen
    assert values.nbytes == min(4 * len(places), math.ceil(size / 8))


@pytest.fixture
def written(tiny, tmp_path):
    """A core file of single parameters of two tensors, and its files."""
    made = read_any(core_of(tiny("llama"), tmp_path / "x.core.json", {UP: None, NORM: None}), CoreFile)
    made = made.model_copy(update={"task": "x"})
    chosen = {UP: Chosen(np.array([3, 50, 51])), NORM: Chosen(np.arange(0, 48, 2))}
    return write_core(tmp_path / "x.core.json", made.of_parameters(chosen)), chosen


def test_what_was_written_is_read_and_trained(written):
    (file, beside), chosen = written
    core = read_any(file, CoreFile)
    shapes = {one.name: one.shape for one in core.parameters}
    assert core.method.unit == "parameters" and core.parameters_chosen == chosen
    assert Mask.of_core(core, shapes, {}, "x").parts == chosen
    assert core.ratio_of_elements == 27 / sum(math.prod(shape) for shape in shapes.values())
    assert load_file(beside)[UP].tolist() == [3, 50, 51] and load_file(beside)[NORM].dtype == np.uint8
    assert beside.name.split(".")[2] == core.chosen.sha256[:12]
    with pytest.raises(UserError, match="chosen while they are scored"):
        reselect(file, 0.1, None)


def test_of_another_core_set_missing_or_damaged_it_is_refused(written):
    (file, beside), _ = written
    tensors = load_file(beside)
    other = {**tensors, UP: tensors[UP] + 1}
    for change, why in (
        (lambda: save_file(other, beside, METADATA), "not what the core file beside it names"),
        (lambda: beside.write_bytes(beside.read_bytes()[:-2]), "cut short or damaged"),
        (beside.unlink, "missing; it holds the parameters of its core file"),
    ):
        change()
        with pytest.raises(ArtefactError, match=why):
            _ = read_any(file, CoreFile).parameters_chosen
    data = json.loads(file.read_text("utf-8"))
    del data["chosen"]
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ArtefactError, match="'chosen' is of unit 'parameters' alone"):
        read_any(file, CoreFile)


def test_nothing_of_an_earlier_one_stays(written, tmp_path):
    (file, _), _ = written
    write_core(file, read_any(file, CoreFile).of_parameters({UP: Chosen(np.array([9]))}))
    assert read_any(file, CoreFile).parameters_chosen == {UP: Chosen(np.array([9]))}
    assert len(list(tmp_path.iterdir())) == 2


def test_unions():
    one, other = Mask({"p": Chosen(np.array([1, 4])), "q": None}), Mask({"p": Chosen(np.array([2, 4])), "q": None})
    assert (one | other).parts == {"p": Chosen(np.array([1, 2, 4])), "q": None}
    assert len({one.sha256, other.sha256, (one | other).sha256}) == 3
    with pytest.raises(MaskError, match="p: its single parameters are core for one task and its rows for another"):
        one | Mask({"p": Slice(0, ((0, 1),))})
