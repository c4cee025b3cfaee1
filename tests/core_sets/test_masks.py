"""Core sets as masks: names, rows, columns, and what does not fit."""

import pytest

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method
from trace_transfer.core_sets.masks import Mask, MaskError, Slice

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


def test_the_indices_of_a_part_and_those_in_a_block_of_rows():
    rows, columns = Slice(0, ((0, 2), (4, 7))), Slice(1, ((1, 3),))
    assert rows.indices == [0, 1, 4, 5, 6]
    assert (rows.within((8, 4), 1, 5), columns.within((8, 4), 1, 5)) == ([0, 3], [1, 2])


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


def test_ranges_beyond_the_shape():
    with pytest.raises(ValueError, match=r"experts: depth \[0, 9\] do not fit shape \[3, 5, 8\]"):
        entry("experts", depth=((0, 9),))
