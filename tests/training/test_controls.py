"""Controls are as large as the core set, by count or by elements, whatever the core set is."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.on_configs import opened
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Chosen, Mask, MaskError
from trace_transfer.families.anatomy import splits_of, unit_parts
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.models.sources import numel
from trace_transfer.training.controls import CONTROLS, Case

FILE = "core file"
FAMILIES = ("llama", "qwen2", "phi3", "gpt2")  # tied, fused, transposed among them
FEW = ("phi3", "gpt2")
MODELS = {family: opened(family) for family in FAMILIES}
SEEDS = st.integers(0, 2**31 - 1)


def control(name: str, core: CoreFile, model: OpenModel, seed: int = 0, unit: str = "tensors") -> Mask:
    return CONTROLS[name](Case(core, model.anatomy, seed, unit, FILE))


def mask_of(core: CoreFile, model: OpenModel) -> Mask:
    return Case(core, model.anatomy, 0, "tensors", FILE).mask()


def entries_of(model: OpenModel, unit: str) -> list[CoreTensor]:
    """What a core file lists: whole tensors, parts of components (as `map` does), or heads and neurons."""
    anatomy = model.anatomy
    shapes = anatomy.inventory.shapes
    if unit == "tensors":
        places = [(name, shape, None, None) for name, shape in shapes.items()]
    elif unit == "components":
        places = list(dict.fromkeys((u.name, u.shape, *u.place[1:3]) for u in anatomy.units))
    else:
        transposed = {name for name in shapes if ".c_" in name and name.endswith("weight")}
        splits = splits_of(anatomy, model.config, transposed.__contains__)
        places = [(n, s, *part) for n, s in shapes.items() for part in unit_parts(s, splits.get(n))]
    return [CoreTensor(name=n, shape=s, rows=r, columns=c, score=0.5) for n, s, r, c in places]


def core_of(model: OpenModel, entries, task="math") -> CoreFile:
    return CoreFile(
        task=task, model=model.identity, method={"name": "made-up", "ratio": 0.1}, parameters=tuple(entries)
    )


def marked(entries, core: set[int], without_score: set[int] = frozenset()) -> list[CoreTensor]:
    return [
        entry.model_copy(update={"core": index in core, "score": None if index in without_score else 0.5})
        for index, entry in enumerate(entries)
    ]


def whole(model: OpenModel, *names: str) -> CoreFile:
    """These tensors alone, all core."""
    shapes = model.anatomy.inventory.shapes
    return core_of(model, [CoreTensor(name=name, shape=shapes[name], score=1.0, core=True) for name in names])


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
            found[name].view(-1)[part.indices] = True
        else:
            found[name].index_fill_(part.dim, torch.tensor(part.indices), True) if part else found[name].fill_(True)
    return found


def cells_of(entries) -> dict[str, torch.Tensor]:
    found = {}
    for entry in entries:
        whole = found.setdefault(entry.name, torch.zeros(entry.shape, dtype=torch.bool))
        for start, stop in entry.rows or ((0, entry.shape[0]),):
            for left, right in entry.columns or ((0, whole.shape[-1]),):
                (whole[start:stop, left:right] if whole.dim() > 1 else whole[start:stop]).fill_(True)
    return found


def num_true(found: dict[str, torch.Tensor]) -> int:
    return sum(int(cell.sum()) for cell in found.values())


@given(cores(), SEEDS, st.sampled_from(["tensors", "elements"]))
def test_a_random_set_is_as_large(drawn, seed, unit):
    """It is made of whole entries: as many, or of as many elements but for half an entry."""
    model, core = drawn
    mask = control("random", core, model, seed, unit)
    trained = cells(mask, model)
    inside = [
        entry
        for entry in core.parameters
        if entry.name in trained
        and bool(trained[entry.name][cells_of([entry])[entry.name]].all())
        and entry.score is not None
    ]
    assert num_true(cells_of(inside)) == num_true(trained) > 0
    if unit == "tensors":
        assert len(inside) == len(core.core)
    else:
        wanted = sum(p.num_elements for p in core.core)
        largest = max(p.num_elements for p in core.parameters if p.score is not None and p.num_elements <= wanted)
        assert 2 * abs(num_true(trained) - wanted) <= largest
    assert mask == control("random", core, model, seed, unit)


@given(cores(), SEEDS)
def test_shuffled_layers_keep_every_number(drawn, seed):
    model, core = drawn
    anatomy, path = model.anatomy, model.anatomy.layer_path + "."
    try:
        mask = control("shuffled", core, model, seed)
    except MaskError as error:
        assert "shuffled, the core set is the same" in str(error)
        return
    own = mask_of(core, model)

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
            (image,) = control("shuffled", whole(model, name), model, seed).parts
            moved, _, moved_tail = image.removeprefix(path).partition(".")
            assert moved_tail == tail and moved != layer
            assert way.setdefault(layer, moved) == moved
    assert sorted(way) == sorted(way.values()) == [str(layer) for layer in range(anatomy.num_layers)]


def test_layers_that_lack_a_tensor_are_passed_over(monkeypatch):
    """Of five layers, layer 1 lacks the tensor and layer 3 has it in another shape: 0, 2 and 4 change places."""
    model = MODELS["qwen2"]
    shapes = dict(model.anatomy.inventory.shapes)
    name = "model.layers.{}.self_attn.q_proj.weight".format
    del shapes[name(1)]
    shapes[name(3)] = (7, 7)
    monkeypatch.setitem(vars(model.anatomy.inventory), "shapes", shapes)
    for seed in range(8):
        images = {layer: control("shuffled", whole(model, name(layer)), model, seed).parts for layer in (0, 2, 4)}
        assert all(name(layer) not in image for layer, image in images.items())
        assert {one for image in images.values() for one in image} == {name(0), name(2), name(4)}
        with pytest.raises(MaskError, match="shuffled, the core set is the same"):
            control("shuffled", whole(model, name(3)), model, seed)


@given(cores())
def test_whole_layers_come_nearest(drawn):
    model, core = drawn
    shapes, path = model.anatomy.inventory.shapes, model.anatomy.layer_path
    wanted = num_true(cells_of(core.core))
    for name, order in (("first", 1), ("last", -1)):
        best = None
        for count in range(1, model.anatomy.num_layers + 1):
            layers = list(range(model.anatomy.num_layers))[::order][:count]
            names = {name for name in shapes for layer in layers if name.startswith(f"{path}.{layer}.")}
            off = abs(sum(numel(shapes[name]) for name in names) - wanted)
            if best is None or off < best[0]:
                best = off, names
        assert control(name, core, model).parts == dict.fromkeys(best[1])


def large_core(model: OpenModel, unit: str) -> CoreFile:
    """Four tenths of a model's entries, or of each tensor's parameters, chosen by a generator."""
    draws, entries = np.random.default_rng(3), entries_of(model, "rows" if unit == "rows" else "tensors")
    core = core_of(model, marked(entries, {n for n in range(len(entries)) if draws.random() < 0.4}))
    if unit != "parameters":
        return core.model_copy(update={"method": core.method.model_copy(update={"unit": unit})})
    chosen = {one.name: np.flatnonzero(draws.random(numel(one.shape)) < 0.4) for one in core.parameters}
    return core.of_parameters({name: Chosen(places) for name, places in chosen.items()})


@pytest.mark.parametrize("unit", ["rows", "parameters"])
@pytest.mark.parametrize("family", FEW)
def test_random_ones_within_each_tensor(family, unit):
    model, core = MODELS[family], large_core(MODELS[family], unit)
    own = mask_of(core, model)
    one, other, same = (control("random-within", core, model, seed) for seed in (0, 1, 0))
    assert one == same and one != other and one != own
    assert {n: cell.sum() for n, cell in cells(one, model).items()} == {
        n: cell.sum() for n, cell in cells(own, model).items()
    }


@pytest.mark.parametrize("unit", ["tensors", "rows"])
@pytest.mark.parametrize("family", FEW)
def test_as_many_of_each_component(family, unit):
    model, core = MODELS[family], large_core(MODELS[family], unit)
    kinds = [model.anatomy.describe(one.name)[1] for one in core.parameters]
    told = [one.model_copy(update={"component": "+".join(of)}) for one, of in zip(core.parameters, kinds, strict=True)]
    core = core.model_copy(update={"parameters": tuple(told)})

    def counts(mask: Mask) -> Counter:
        of, trained = Counter(), cells(mask, model)
        for one in told:
            of[one.component] += one.name in trained and bool(trained[one.name][cells_of([one])[one.name]].all())
        return of

    one, same, *others = (control("role-profile", core, model, seed) for seed in (0, 0, 1, 2, 3))
    assert one == same and any(one != other for other in others) and one != mask_of(core, model)
    assert counts(one) == counts(mask_of(core, model))


def test_one_set_for_all_tasks():
    """By the mean of the scores: what both tasks want a little comes before what one wants more."""
    model = MODELS["gpt2"]
    entries = entries_of(model, "tensors")[:4]
    scores = {"math": (0.9, 0.0, 0.6, 0.1), "code": (0.0, 0.9, 0.6, 0.2)}
    both = [
        core_of(
            model, [e.model_copy(update={"score": n, "core": n == 0.9}) for e, n in zip(entries, of, strict=True)], k
        )
        for k, of in scores.items()
    ]
    found = [CONTROLS["one-set"](Case(core, model.anatomy, 0, "tensors", FILE, both)) for core in both]
    assert found == [Mask({entries[2].name: None})] * 2
    with pytest.raises(MaskError, match="of two tasks or more"):
        control("one-set", both[0], model)


@pytest.mark.parametrize("unit", ["tensors", "rows", "parameters"])
@pytest.mark.parametrize("name", ["norms-random", "head-norms-random", "random"])
@pytest.mark.parametrize("family", FEW)
def test_what_is_always_trained_and_random_ones_up_to_the_size(family, name, unit):
    model, core = MODELS[family], large_core(MODELS[family], unit)
    shapes = model.anatomy.inventory.shapes
    mask = control(name, core, model, 0, "elements")
    largest = 0 if unit == "parameters" else max(one.num_elements for one in core.parameters)
    assert abs(mask.numel(shapes) - mask_of(core, model).numel(shapes)) <= largest / 2
    always = {
        one.name
        for one in model.anatomy.units
        if name != "random"
        and (one.component.startswith("norm") or one.role == "norm" or (name[0] == "h" and one.component == "head"))
    }
    assert all(mask.parts[one] is None for one in always)
