"""Core sets as masks: names, rows, columns, single parameters and how they are stored, and what does not fit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.core_files import core_of
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method, write_core
from trace_transfer.core_sets.masks import METADATA, Chosen, Mask, MaskError, Slice, decoded, encoded
from trace_transfer.core_sets.selection import reselect
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.formats import read_any

SHAPES = {"up": (80, 48), "norm": (48,), "experts": (3, 5, 8)}
EVEN, ODD = (tuple((index, index + 1) for index in range(start, 8, 2)) for start in (0, 1))
MODEL = {
    "id": "x", "family": "llama", "model_type": "llama", "num_layers": 1, "num_parameters": 9, "num_elements": 10**6,
    "names_sha256": "0" * 64,
}  # fmt: skip


def entry(name, shape=None, core=True, **parts):
    return CoreTensor(name=name, shape=shape or SHAPES[name], score=1.0, core=core, **parts)


def mask_of(*entries, tied=None):
    core = CoreFile(task="x", method=Method(name="lf", ratio=0.1), model=MODEL, parameters=entries)
    return Mask.of_core(core, SHAPES, tied or {}, "x.core.json")


@pytest.mark.parametrize(
    ("entries", "parts", "count"),
    [
        ([entry("norm"), entry("up", rows=((4, 7), (0, 2)))], {"norm": None, "up": Slice(0, ((0, 2), (4, 7)))}, 288),
        ([entry("up", rows=(one,)) for one in ((0, 2), (2, 5), (5, 80))], {"up": None}, 80 * 48),
        ([entry("alias", SHAPES["up"], columns=((1, 3),))], {"up": Slice(1, ((1, 3),))}, 160),
        ([entry("experts", depth=EVEN)], {"experts": Slice(2, EVEN)}, 60),
        ([entry("experts", depth=EVEN), entry("experts", depth=ODD)], {"experts": None}, 120),
    ],
)
def test_entries_become_whole_tensors_and_parts(entries, parts, count):
    mask = mask_of(*entries, tied={"alias": "up"})
    assert mask.parts == parts
    assert mask.numel(SHAPES) == count
    assert mask.sliced == {name: part for name, part in parts.items() if part}
    assert not mask.trains("other")


def test_the_union_of_masks():
    a = Mask({"p": None, "q": Slice(0, ((0, 2),)), "r": Slice(1, ((3, 4),))})
    b = Mask({"p": Slice(0, ((0, 1),)), "q": Slice(0, ((1, 3), (7, 8))), "s": None})
    assert (a | b).parts == (b | a).parts
    assert (a | b).parts == {"p": None, "q": Slice(0, ((0, 3), (7, 8))), "r": Slice(1, ((3, 4),)), "s": None}
    with pytest.raises(MaskError, match="r: its columns are core for one task and its rows for another"):
        a | Mask({"r": Slice(0, ((0, 1),))})


def test_the_sum_tells_names_and_ranges_apart():
    masks = [Mask({"p": None}), Mask({"q": None}), *(Mask({"p": Slice(dim, ((0, 1),))}) for dim in range(3))]
    assert len({mask.sha256 for mask in masks}) == 5
    assert Mask({"p": None, "q": None}).sha256 == Mask({"q": None, "p": None}).sha256


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [entry("transformer.h.0.attn.c_attn.weight", (4, 12)), entry("up", (3, 3))],
            r"(?s)x.core.json.*trace-transfer map.*c_attn.weight: not a.*\[3, 3\] there",
        ),
        ([entry("norm", core=False)], "its core set is empty; make another one with `trace-transfer select"),
        (
            [entry("up", rows=((0, 2),)), entry("up", columns=((0, 1),))],
            "rows and columns of one tensor are core; only either can be trained",
        ),
    ],
)
def test_what_does_not_fit_is_named(entries, message):
    with pytest.raises(MaskError, match=message):
        mask_of(*entries)


# ---- single parameters

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


def test_unions():
    one, other = Mask({"p": Chosen(np.array([1, 4])), "q": None}), Mask({"p": Chosen(np.array([2, 4])), "q": None})
    assert (one | other).parts == {"p": Chosen(np.array([1, 2, 4])), "q": None}
    assert len({one.sha256, other.sha256, (one | other).sha256}) == 3
    with pytest.raises(MaskError, match="p: its single parameters are core for one task and its rows for another"):
        one | Mask({"p": Slice(0, ((0, 1),))})
