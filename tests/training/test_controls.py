"""Controls are as large as the core set, by count or by elements, whatever the core set is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import build_config
from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Mask, MaskError
from trace_transfer.families.anatomy import splits_of, unit_parts
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import ModelSource, build_meta_model, numel, read_inventory
from trace_transfer.training.controls import (
    CONTROLS,
    first_layers,
    last_layers,
    random_set,
    random_within,
    shuffled_layers,
)

FILE = "core file"
FAMILIES = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2")  # tied, fused, transposed among them


def opened(family: str, **changes) -> OpenModel:
    config = build_config(family, **changes)
    return OpenModel(ModelSource(family, Path(family)), config, anatomy_of(read_inventory(config), load_families()))


MODELS = {family: opened(family) for family in FAMILIES}


def entries_of(model: OpenModel, unit: str) -> list[CoreTensor]:
    """What a core file lists: whole tensors, parts of components (as `map` does), or heads and neurons."""
    anatomy = model.anatomy
    if unit == "tensors":
        return [CoreTensor(name=n, shape=s, score=0.5) for n, s in anatomy.inventory.shapes.items()]
    if unit == "components":
        places = dict.fromkeys((u.name, u.shape, u.rows, u.columns) for u in anatomy.units)
        return [CoreTensor(name=n, shape=s, rows=r, columns=c, score=0.5) for n, s, r, c in places]
    transposed = {name for name in anatomy.inventory.shapes if ".c_" in name and name.endswith("weight")}
    splits = splits_of(anatomy, model.config, transposed.__contains__)
    return [
        CoreTensor(name=name, shape=shape, rows=rows, columns=columns, score=0.5)
        for name, shape in anatomy.inventory.shapes.items()
        for rows, columns in unit_parts(name, shape, splits.get(name))
    ]


def core_of(model: OpenModel, entries, task="math") -> CoreFile:
    return CoreFile(
        task=task, model=model.identity, method={"name": "made-up", "ratio": 0.1}, parameters=tuple(entries)
    )


def marked(entries, core: set[int], without_score: set[int] = frozenset()) -> list[CoreTensor]:
    return [
        entry.model_copy(update={"core": index in core, "score": None if index in without_score else 0.5})
        for index, entry in enumerate(entries)
    ]


@st.composite
def cores(draw):
    """A model and a core file of it with some of its entries core, some without a score, not all of the others core."""
    model = MODELS[draw(st.sampled_from(FAMILIES))]
    entries = entries_of(model, draw(st.sampled_from(["tensors", "components", "rows"])))
    picked = draw(st.permutations(range(len(entries))))
    num_core = draw(st.integers(1, min(len(entries) - 1, 60)))
    num_without = draw(st.integers(0, len(entries) - num_core - 1))
    core, rest = picked[:num_core], picked[num_core:]
    return model, core_of(model, marked(entries, set(core), set(rest[:num_without])))


def cells(mask: Mask, model: OpenModel) -> dict[str, torch.Tensor]:
    """The slow way to say what is trained: True for each trained element."""
    found = {}
    for name, part in mask.parts.items():
        found[name] = torch.zeros(model.anatomy.inventory.shapes[name], dtype=torch.bool)
        if isinstance(part, Chosen):
            found[name].view(-1)[part.places] = True
        else:
            found[name].index_fill_(part.dim, torch.tensor(part.indices), True) if part else found[name].fill_(True)
    return found


def cells_of(entries, model: OpenModel) -> dict[str, torch.Tensor]:
    found = {}
    for entry in entries:
        whole = found.setdefault(entry.name, torch.zeros(entry.shape, dtype=torch.bool))
        for start, stop in entry.rows or ((0, entry.shape[0]),):
            for left, right in entry.columns or ((0, whole.shape[-1]),):
                (whole[start:stop, left:right] if whole.dim() > 1 else whole[start:stop]).fill_(True)
    return found


def num_true(found: dict[str, torch.Tensor]) -> int:
    return sum(int(cell.sum()) for cell in found.values())


def num_entries(mask: Mask, core: CoreFile, model: OpenModel) -> tuple[int, bool]:
    """How many entries of the file lie wholly in the mask, and whether the mask is made of them alone."""
    trained = cells(mask, model)
    inside = [
        entry
        for entry in core.parameters
        if entry.name in trained
        and bool(trained[entry.name][cells_of([entry], model)[entry.name]].all())
        and entry.score is not None
    ]
    return len(inside), num_true(cells_of(inside, model)) == num_true(trained)


@given(cores(), st.integers(0, 2**31 - 1))
def test_a_random_set_has_as_many_tensors(drawn, seed):
    model, core = drawn
    mask = random_set(core, model.anatomy, seed, "tensors", FILE)
    assert num_entries(mask, core, model) == (len(core.core), True)
    assert mask == random_set(core, model.anatomy, seed, "tensors", FILE)


@given(cores(), st.integers(0, 2**31 - 1))
def test_a_random_set_has_as_many_elements(drawn, seed):
    model, core = drawn
    mask = random_set(core, model.anatomy, seed, "elements", FILE)
    trained = cells(mask, model)
    wanted, found = sum(p.num_elements for p in core.core), num_true(trained)
    assert num_entries(mask, core, model)[1]
    assert found > 0
    largest = max(p.num_elements for p in core.parameters if p.score is not None and p.num_elements <= wanted)
    assert 2 * abs(found - wanted) <= largest  # within half a tensor
    assert mask == random_set(core, model.anatomy, seed, "elements", FILE)


@pytest.mark.parametrize("unit", ["tensors", "elements"])
def test_random_sets_differ_by_seed_and_by_task(unit):
    model = MODELS["llama"]
    entries = marked(entries_of(model, "tensors"), {2, 8, 17, 24})
    masks = [
        random_set(core_of(model, entries, task), model.anatomy, seed, unit, FILE)
        for seed in range(4)
        for task in ("math", "law")
    ]
    assert len({mask.sha256 for mask in masks}) == len(masks)


def test_every_entry_is_drawn_as_often():
    model = MODELS["gpt2"]
    entries = marked(entries_of(model, "tensors"), {0, 5, 6, 7}, without_score={1, 2})
    core = core_of(model, entries)
    counts = Counter(n for seed in range(600) for n in random_set(core, model.anatomy, seed, "tensors", FILE).parts)
    assert counts.keys() == {p.name for p in entries if p.score is not None}
    expected = 600 * 4 / (len(entries) - 2)
    assert all(0.5 * expected < count < 1.6 * expected for count in counts.values())


def test_nothing_to_draw_from():
    model = MODELS["llama"]
    entries = entries_of(model, "tensors")
    with pytest.raises(MaskError, match=r"core file: all 2 tensors that have a score are core.*--ratio"):
        random_set(core_of(model, marked(entries, {0, 1}, set(range(2, 39)))), model.anatomy, 0, "tensors", FILE)


@given(cores(), st.integers(0, 2**31 - 1))
def test_shuffled_layers_keep_every_number(drawn, seed):
    model, core = drawn
    anatomy, path = model.anatomy, model.anatomy.layer_path + "."
    try:
        mask = shuffled_layers(core, anatomy, seed, "tensors", FILE)
    except MaskError as error:
        assert "with its layers shuffled the core set is the same" in str(error)
        return
    own = Mask.of_core(core, anatomy.inventory.shapes, anatomy.inventory.tied, FILE)
    assert mask == shuffled_layers(core, anatomy, seed, "elements", FILE)

    def kinds(found: Mask) -> Counter:
        """What is trained, with the layer taken out of its name: these layers have the same shapes."""
        parts = found.parts.items()
        return Counter(
            (name.removeprefix(path).partition(".")[2] if name.startswith(path) else name, p) for name, p in parts
        )

    assert kinds(mask) == kinds(own)
    for name, part in own.parts.items():
        if not name.startswith(path):
            assert mask.parts[name] == part
    # All layers go the same way: who reads the way off single tensors finds one cycle through all of them.
    way = {}
    for name in anatomy.inventory.shapes:
        if name.startswith(path):
            layer, _, tail = name.removeprefix(path).partition(".")
            alone = core_of(model, [CoreTensor(name=name, shape=anatomy.inventory.shapes[name], score=1.0, core=True)])
            (image,) = shuffled_layers(alone, anatomy, seed, "tensors", FILE).parts
            moved, _, moved_tail = image.removeprefix(path).partition(".")
            assert moved_tail == tail and moved != layer
            assert way.setdefault(layer, moved) == moved
    assert sorted(way) == sorted(way.values()) == [str(layer) for layer in range(anatomy.num_layers)]


def test_the_shuffle_is_of_the_seed_not_of_the_task():
    model = MODELS["qwen2"]
    entries = marked(entries_of(model, "tensors"), set(range(10, 20)))
    masks = {
        (seed, task): shuffled_layers(core_of(model, entries, task), model.anatomy, seed, "tensors", FILE)
        for seed in range(5)
        for task in ("math", "law")
    }
    assert all(masks[seed, "math"] == masks[seed, "law"] for seed in range(5))
    assert len({mask.sha256 for mask in masks.values()}) > 1


def test_layers_that_lack_a_tensor_are_passed_over(monkeypatch):
    """Of five layers, layer 1 lacks the tensor and layer 3 has it in another shape: 0, 2 and 4 change places."""
    model = MODELS["qwen2"]
    shapes = dict(model.anatomy.inventory.shapes)
    name = "model.layers.{}.self_attn.q_proj.weight".format
    del shapes[name(1)]
    shapes[name(3)] = (7, 7)
    monkeypatch.setitem(vars(model.anatomy.inventory), "shapes", shapes)
    for seed in range(8):
        images = set()
        for layer in (0, 2, 4):
            alone = core_of(model, [CoreTensor(name=name(layer), shape=shapes[name(layer)], score=1.0, core=True)])
            (image,) = shuffled_layers(alone, model.anatomy, seed, "tensors", FILE).parts
            assert image != name(layer)
            images.add(image)
        assert images == {name(0), name(2), name(4)}
        alone = core_of(model, [CoreTensor(name=name(3), shape=(7, 7), score=1.0, core=True)])
        with pytest.raises(MaskError, match="the core set is the same"):
            shuffled_layers(alone, model.anatomy, seed, "tensors", FILE)


def test_outside_the_layers_nothing_can_be_shuffled():
    model = MODELS["llama"]
    entries = marked(entries_of(model, "tensors"), {0, 38})
    with pytest.raises(MaskError, match="lies outside the layers, or has the same part of each layer"):
        shuffled_layers(core_of(model, entries), model.anatomy, 0, "tensors", FILE)


@given(cores())
def test_whole_layers_come_nearest(drawn):
    model, core = drawn
    anatomy = model.anatomy
    shapes, path = anatomy.inventory.shapes, anatomy.layer_path
    wanted = num_true(cells_of(core.core, model))
    for function, order in ((first_layers, 1), (last_layers, -1)):
        mask = function(core, anatomy, 0, "tensors", FILE)
        best = None
        for count in range(1, anatomy.num_layers + 1):
            layers = list(range(anatomy.num_layers))[::order][:count]
            names = {name for name in shapes for layer in layers if name.startswith(f"{path}.{layer}.")}
            off = abs(sum(numel(shapes[name]) for name in names) - wanted)
            if best is None or off < best[0]:
                best = off, names
        assert mask.parts == dict.fromkeys(best[1])


def test_layers_one_and_ten_are_told_apart():
    model = opened("llama", num_hidden_layers=12)
    entries = entries_of(model, "tensors")
    layer = {i for i, e in enumerate(entries) if e.name.startswith("model.layers.4.")}
    mask = first_layers(core_of(model, marked(entries, layer)), model.anatomy, 0, "tensors", FILE)
    assert {name.split(".")[2] for name in mask.parts} == {"0"} and len(mask.parts) == 9
    two = layer | {i for i, e in enumerate(entries) if e.name.startswith("model.layers.5.")}
    mask = last_layers(core_of(model, marked(entries, two)), model.anatomy, 0, "tensors", FILE)
    assert {name.split(".")[2] for name in mask.parts} == {"10", "11"}
    mask = first_layers(core_of(model, marked(entries, two)), model.anatomy, 0, "tensors", FILE)
    assert {name.split(".")[2] for name in mask.parts} == {"0", "1"}


def test_of_two_that_are_as_near_the_fewer_layers():
    """One layer and half as many elements again, as rows of the embedding."""
    model = MODELS["llama"]
    shapes = model.anatomy.inventory.shapes
    inside = [CoreTensor(name=n, shape=s, score=1.0, core=True) for n, s in shapes.items() if ".layers.1." in n]
    size = sum(entry.num_elements for entry in inside)
    name = "model.embed_tokens.weight"
    half = size // 2 // shapes[name][1]
    rows = CoreTensor(name=name, shape=shapes[name], rows=((0, half),), score=1.0, core=True)
    assert 2 * rows.num_elements == size
    mask = first_layers(core_of(model, [*inside, rows]), model.anatomy, 0, "tensors", FILE)
    assert {name.split(".")[2] for name in mask.parts} == {"0"}


def mask_of(core: CoreFile, model: OpenModel) -> Mask:
    return Mask.of_core(core, model.anatomy.inventory.shapes, model.anatomy.inventory.tied, FILE)


def large_core(model: OpenModel, unit: str) -> CoreFile:
    """Four tenths of a model's entries, or of each tensor's parameters, chosen by a generator."""
    draws, entries = np.random.default_rng(3), entries_of(model, "rows" if unit == "rows" else "tensors")
    core = core_of(model, marked(entries, {n for n in range(len(entries)) if draws.random() < 0.4}))
    if unit != "parameters":
        return core.model_copy(update={"method": core.method.model_copy(update={"unit": unit})})
    chosen = {one.name: np.flatnonzero(draws.random(numel(one.shape)) < 0.4) for one in core.parameters}
    return core.of_parameters({name: Chosen(places) for name, places in chosen.items()})


@pytest.mark.parametrize("unit", ["rows", "parameters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_ones_within_each_tensor(family, unit):
    model, core = MODELS[family], large_core(MODELS[family], unit)
    shapes, own = model.anatomy.inventory.shapes, mask_of(core, model)
    one, other, same = (random_within(core, model.anatomy, seed, "tensors", FILE) for seed in (0, 1, 0))
    assert one == same and one != other and one != own
    assert {n: cell.sum() for n, cell in cells(one, model).items()} == {
        n: cell.sum() for n, cell in cells(own, model).items()
    }
    with pytest.raises(MaskError, match="draws rows or parameters"):
        random_within(large_core(model, "tensors"), model.anatomy, 0, "tensors", FILE)
    assert own.parts.keys() <= shapes.keys()


@pytest.mark.parametrize("unit", ["tensors", "rows", "parameters"])
@pytest.mark.parametrize("name", ["norms-random", "head-norms-random", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_always_trained_and_random_ones_up_to_the_size(family, name, unit):
    model, core = MODELS[family], large_core(MODELS[family], unit)
    shapes, wanted = model.anatomy.inventory.shapes, mask_of(core, model).numel(model.anatomy.inventory.shapes)
    mask = CONTROLS[name](core, model.anatomy, 0, "elements", FILE)
    largest = 0 if unit == "parameters" else max(one.num_elements for one in core.parameters)
    assert abs(mask.numel(shapes) - wanted) <= largest / 2
    always = {
        one.name
        for one in model.anatomy.units
        if name != "random"
        and (one.component.startswith("norm") or one.role == "norm" or (name[0] == "h" and one.component == "head"))
    }
    assert all(mask.parts[one] is None for one in always)
    if name == "head-norms-random" and unit == "tensors":
        small = core_of(model, marked(entries_of(model, "tensors"), {len(core.parameters) - 1}))
        with pytest.raises(MaskError, match="fewer than the"):
            CONTROLS[name](small, model.anatomy, 0, "elements", FILE)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_control_names_is_in_the_model(name, family):
    model = MODELS[family]
    core = large_core(model, "parameters")
    mask = CONTROLS[name](core, model.anatomy, 0, "elements", FILE)
    known = {name for name, _ in build_meta_model(model.config).named_parameters()}
    assert mask.parts and mask.parts.keys() <= known
