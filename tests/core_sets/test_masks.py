"""Core sets as masks: names, rows, columns, and what does not fit."""

import pytest

from tests.stream_files import write_core_set
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method
from trace_transfer.core_sets.masks import Mask, MaskError, Slice
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.formats import read_any

UP = "model.layers.1.mlp.up_proj.weight"
MODEL = {
    "id": "x", "family": "llama", "model_type": "llama", "num_layers": 1, "num_parameters": 1, "num_elements": 10**6,
    "names_sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture
def inventory(tiny):
    return open_model(tiny("llama"), load_families()).anatomy.inventory


@pytest.fixture
def core_of(tiny, tmp_path):
    def make(*core) -> CoreFile:
        return read_any(write_core_set(tiny("llama"), tmp_path / "x.core.json", "x", list(core)))

    return make


def mask_of(core, inventory):
    return Mask.of_core(core, inventory.shapes, inventory.tied, "x.core.json")


def test_whole_tensors_and_rows(core_of, inventory):
    mask = mask_of(core_of(("model.norm.weight", None), (UP, ((4, 6), (0, 2), (5, 7)))), inventory)
    assert mask.parts == {"model.norm.weight": None, UP: Slice(0, ((0, 2), (4, 7)))}
    assert mask.sliced == {UP: Slice(0, ((0, 2), (4, 7)))}
    columns = inventory.shapes[UP][1]
    assert mask.numel(inventory.shapes) == inventory.shapes["model.norm.weight"][0] + 5 * columns
    assert mask.sliced[UP].indices == [0, 1, 4, 5, 6]
    assert mask.trains(UP) and not mask.trains("model.embed_tokens.weight")


def test_parts_of_one_tensor_are_joined(core_of, inventory):
    rows = inventory.shapes[UP][0]
    core = core_of((UP, ((0, 2),)))
    more = tuple(
        CoreTensor(name=UP, shape=inventory.shapes[UP], rows=(one,), score=0.5, core=True)
        for one in ((2, 5), (5, rows))
    )
    whole = core.model_copy(update={"parameters": (*core.parameters, *more)})
    assert mask_of(whole, inventory).parts == {UP: None}


def test_the_union_of_masks():
    a = Mask({"p": None, "q": Slice(0, ((0, 2),)), "r": Slice(1, ((3, 4),))})
    b = Mask({"p": Slice(0, ((0, 1),)), "q": Slice(0, ((1, 3), (7, 8))), "s": None})
    assert (a | b).parts == (b | a).parts
    assert (a | b).parts == {"p": None, "q": Slice(0, ((0, 3), (7, 8))), "r": Slice(1, ((3, 4),)), "s": None}
    with pytest.raises(MaskError, match="r: its rows are core for one task and its columns for another"):
        a | Mask({"r": Slice(0, ((0, 1),))})


def test_the_third_axis():
    """Parts that alternate along the last dimension; with both of them the whole is core."""
    even, odd = (tuple((index, index + 1) for index in range(start, 8, 2)) for start in (0, 1))
    entries = [CoreTensor(name="experts", shape=(3, 5, 8), depth=depth, score=1.0, core=True) for depth in (even, odd)]
    core = CoreFile(task="x", method=Method(name="lf", ratio=0.1), model=MODEL, parameters=entries[:1])
    mask = Mask.of_core(core, {"experts": (3, 5, 8)}, {}, "x.core.json")
    assert mask.parts == {"experts": Slice(2, even)}
    assert mask.numel({"experts": (3, 5, 8)}) == core.parameters[0].num_elements == 3 * 5 * 4
    both = core.model_copy(update={"parameters": tuple(entries)})
    assert Mask.of_core(both, {"experts": (3, 5, 8)}, {}, "x.core.json").parts == {"experts": None}
    with pytest.raises(MaskError, match="experts: its rows are core for one task and its depth for another"):
        mask | Mask({"experts": Slice(0, ((0, 1),))})
    expert = entries[0].model_copy(update={"depth": None, "columns": ((0, 1),)})
    with pytest.raises(MaskError, match="experts: columns and depth of one tensor are core; only either can"):
        Mask.of_core(
            core.model_copy(update={"parameters": (expert, entries[1])}), {"experts": (3, 5, 8)}, {}, "x.core.json"
        )
    with pytest.raises(ValueError, match=r"experts: depth \[0, 9\] do not fit shape \[3, 5, 8\]"):
        CoreTensor(name="experts", shape=(3, 5, 8), depth=((0, 9),))


def test_the_sum_tells_names_and_ranges_apart():
    masks = [Mask({"p": None}), Mask({"q": None}), *(Mask({"p": Slice(dim, ((0, 1),))}) for dim in range(3))]
    assert len({mask.sha256 for mask in masks}) == 5
    assert Mask({"p": None, "q": None}).sha256 == Mask({"q": None, "p": None}).sha256


def test_everything_that_does_not_fit_is_named(core_of, inventory):
    core = core_of(("model.norm.weight", None))
    foreign = (
        CoreTensor(name="transformer.h.0.attn.c_attn.weight", shape=(4, 12), score=1.0, core=True),
        CoreTensor(name=UP, shape=(3, 3), score=1.0, core=True),
    )
    changed = core.model_copy(update={"parameters": foreign})
    with pytest.raises(MaskError, match=r"(?s)x.core.json.*trace-transfer map.*c_attn.weight: not a.*\[3, 3\] there"):
        mask_of(changed, inventory)


def test_an_empty_core_set(core_of, inventory):
    core = core_of(("model.norm.weight", None))
    nothing = tuple(parameter.model_copy(update={"core": False}) for parameter in core.parameters)
    with pytest.raises(MaskError, match="its core set is empty; make another one with `trace-transfer select"):
        mask_of(core.model_copy(update={"parameters": nothing}), inventory)


def test_rows_and_columns_of_one_parameter(core_of, inventory):
    core = core_of((UP, ((0, 2),)))
    column = CoreTensor(name=UP, shape=inventory.shapes[UP], columns=((0, 1),), score=0.5, core=True)
    with pytest.raises(MaskError, match="rows and columns of one tensor are core; only either can be trained"):
        mask_of(core.model_copy(update={"parameters": (*core.parameters, column)}), inventory)


def test_columns_and_an_alias(inventory):
    shape = inventory.shapes[UP]
    core = CoreFile(
        task="x", method=Method(name="lf", ratio=0.1), model=MODEL,
        parameters=(CoreTensor(name="alias", shape=shape, columns=((1, 3),), score=1.0, core=True),),
    )  # fmt: skip
    mask = Mask.of_core(core, inventory.shapes, {"alias": UP}, "x.core.json")
    assert mask.parts == {UP: Slice(1, ((1, 3),))}
    assert mask.numel(inventory.shapes) == 2 * shape[0]
    assert Mask.everything({"p": (2, 3), "q": (4,)}).numel({"p": (2, 3), "q": (4,)}) == 10
