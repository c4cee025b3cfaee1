"""Gradients and scores at the base, layer by layer, against whole backward passes, one example after another in
float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import trace_transfer as tt
from tests.commands import run
from tests.core_files import core_of
from tests.identification.texts import draw_examples
from tests.reference.fisher_loop import gradients_by_loop
from tests.task_files import SIZES, write_tasks
from tests.tiny_models import FAMILIES, REPRESENTATIVES
from trace_transfer import identify, train, verify
from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.encoding import read_tasks
from trace_transfer.engine.slices import outside, taken
from trace_transfer.errors import ArtefactError, FrozenMovedError, UserError
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.at_base import BestPlaces
from trace_transfer.identification.fisher import draw
from trace_transfer.identification.gradients import BaseGradients
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.sources import numel

SETS = [draw_examples(3), draw_examples(2, seed=1)]
TOLERANCE = 2e-4  # of a tensor's largest value: float32 against float64
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in REPRESENTATIVES]


@pytest.mark.parametrize("family", [*REPRESENTATIVES, *SLOW])
def test_means_of_gradients_and_of_their_squares(tiny, family):
    opened = open_model(tiny(family), load_families())
    gradients = BaseGradients(opened, open_checkpoint(opened.source), SETS, "cpu")
    found = {one.name: one for one in gradients.tensors()}
    model = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float64)
    if any(".experts." in name for name, _ in model.named_parameters()):
        model.set_experts_implementation("eager")  # the others have no float64
    assert set(found) == {name for name, _ in model.named_parameters()}
    for index, examples in enumerate(SETS):
        for name, (mean, square) in gradients_by_loop(model, [[example] for example in examples]).items():
            pairs = (found[name].mean[index], mean, 1e-6), (found[name].square[index], square, 1e-12)
            for ours, expected, rounding in pairs:  # a bias on keys has no gradient but rounding
                difference, largest = float((ours - expected).abs().max()), float(expected.abs().max())
                assert difference <= TOLERANCE * largest + rounding, name


@pytest.fixture(scope="module")
def by_loop(tiny, tasks):
    """Task → tensor → mean gradient and mean squared gradient, by the loop."""
    opened = open_model(tiny("qwen2"), load_families())
    model = AutoModelForCausalLM.from_pretrained(tiny("qwen2"), dtype=torch.float64)
    data = {task.task: draw(task.examples, 3, 0) for task in read_tasks(opened, tasks, 1024, "cut", 0)}
    return {task: gradients_by_loop(model, [[example] for example in examples]) for task, examples in data.items()}


def expected_scores(by_loop, task, others=None):
    """snr of every parameter, as the formula says."""
    others = [one for one in by_loop if one != task]
    noise = {name: sum(by_loop[one][name][1] for one in others) / len(others) for name in by_loop[task]}
    signal = {name: mean.square() for name, (mean, _) in by_loop[task].items()}
    mean = sum(float(one.sum()) for one in noise.values()) / sum(one.numel() for one in noise.values())
    return signal, noise, 0.01 * mean


@pytest.mark.parametrize("unit", ["tensors", "rows"])
def test_snr_of_tensors_and_rows_is_the_formula_of_their_means(tiny, tasks, tmp_path, by_loop, unit):
    found = identify(tiny("qwen2"), tasks, out=tmp_path, method="snr", unit=unit, gradient_examples=3, ratio=0.2)
    assert {file.name for file in tmp_path.iterdir()} == {
        *(f"{task}.core.json" for task in SIZES), "importance.html", "importance.png",
    }  # fmt: skip
    for core in found.cores:
        signal, noise, floor = expected_scores(by_loop, core.task)
        ours, expected = [], []
        for entry in core.parameters:
            place = tuple(
                np.r_[tuple(slice(*one) for one in ranges)] if ranges else slice(None)
                for ranges in entry.place[1 : 1 + len(entry.shape)]
            )
            ours.append(entry.score)
            expected.append(float(signal[entry.name][place].mean() / (noise[entry.name][place].mean() + floor)))
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)  # float32: gradients that cancel


def test_one_task_alone_is_told_from_generic_text_and_has_no_warm_start(tiny, tmp_path):
    one = write_tasks(tmp_path, {"math": 4})
    how = "--method", "snr", "--unit", "rows"
    told = run("identify", tiny("qwen2"), "--tasks", one, *how, "--out", tmp_path / "out")
    assert "against generic text" in told.stderr and "next: trace-transfer train " in told.stdout
    for options, why in (
        (("--against", "tasks"), "there is only math; take --against text"),
        (("--tuned", f"math={tiny('qwen2')}"), "taken at the base"),
        (("--unit", "parameters", "--method", "l2"), "scored by snr, fisher-base"),
    ):
        assert why in run("identify", tiny("qwen2"), "--tasks", one, "--method", "snr", *options).stderr


@pytest.fixture(scope="module")
def of_parameters(tiny, tasks, tmp_path_factory):
    """Core sets of single parameters, without the embedding; not to be written to."""
    out = tmp_path_factory.mktemp("parameters")
    options = {"method": "snr", "unit": "parameters", "gradient_examples": 3, "ratio": 0.05}
    return identify(tiny("qwen2"), tasks, out=out, exclude=("embedding", "head"), **options), out


def test_single_parameters_are_the_best_of_all(of_parameters, by_loop):
    found, out = of_parameters
    assert len(list(out.glob("*.core.????????????.safetensors"))) == len(SIZES)
    for core in found.cores:
        inner = [one.name for one in core.parameters if one.score is not None]
        assert len(inner) == len(core.parameters) - 1  # the embedding is the head, too
        signal, noise, _ = expected_scores(by_loop, core.task)
        floor = 0.01 * sum(float(noise[n].sum()) for n in inner) / sum(noise[n].numel() for n in inner)
        scores = {name: (signal[name] / (noise[name] + floor)).flatten() for name in inner}
        count = int(0.05 * sum(one.num_elements for one in core.parameters))
        lowest = float(torch.cat(list(scores.values())).sort(descending=True).values[count - 1])
        assert sum(len(one.indices) for one in core.parameters_chosen.values()) == count
        for name, values in scores.items():
            chosen = torch.zeros(len(values), dtype=torch.bool)
            if name in core.parameters_chosen:
                chosen[core.parameters_chosen[name].indices] = True
            assert chosen[values > lowest * (1 + 1e-3)].all() and not chosen[values < lowest * (1 - 1e-3)].any()


@given(st.data())
def test_the_best_places_are_those_of_a_stable_sort(data):
    vectors = data.draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6))
    count, order = data.draw(st.integers(1, 12)), data.draw(st.permutations(range(len(vectors))))
    best = BestPlaces(count)
    for number in order:
        best.add(number, torch.tensor(vectors[number], dtype=torch.float32))
    every = [(-value, n, place) for n, vector in enumerate(vectors) for place, value in enumerate(vector) if value]
    expected = {}
    for _, number, place in sorted(every)[:count]:
        expected.setdefault(number, []).append(place)
    assert {number: places.tolist() for number, places in best.result().items()} == {
        number: sorted(places) for number, places in expected.items()
    }


def test_single_parameters_train_alone_and_are_proved(tiny, tasks, of_parameters, tmp_path):
    _, cores = of_parameters
    base, stream = tiny("qwen2"), tmp_path / "stream.yaml"
    items = [f"- {{name: {task}, data: {tasks.parent / task}.jsonl, core: {cores}/{task}.core.json}}" for task in SIZES]
    stream.write_text("\n".join(["tasks:", *items]), "utf-8")
    options = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "zero": 0}
    counts = train(base, stream, out=tmp_path / "out", **options).verification.counts
    wanted = {task: tt.read(cores / f"{task}.core.json").parameters_chosen for task in SIZES}
    union = {(n, p) for chosen in wanted.values() for n, part in chosen.items() for p in part.indices.tolist()}
    assert counts["frozen MOVED"].elements == 0
    assert counts["core moved"].elements + counts["core unmoved"].elements == len(union)
    assert counts["core moved"].elements > 0.9 * len(union)
    assert verify(base, tmp_path / "out/model", core=[cores / f"{task}.core.json" for task in SIZES]).ok
    with pytest.raises(FrozenMovedError, match="moved"):
        verify(base, tmp_path / "out/model", core=[cores / "math.core.json"])


@pytest.mark.parametrize("unit", ["tensors", "rows", "parameters"])
def test_what_is_chosen_from_another_core_set_is_in_it(tiny, tasks, tmp_path, unit):
    """As from what `map` has carried over: whole tensors, and rows of one."""
    base, query, up = tiny("qwen2"), "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"
    (tmp_path / "from").mkdir()
    for task in SIZES:
        core_of(base, tmp_path / f"from/{task}.core.json", {query: None, up: ((3, 20),)})
    options = {"method": "snr", "unit": unit, "gradient_examples": 3, "ratio": 0.01}
    found = identify(base, tasks, out=tmp_path / "out", within=tmp_path / "from", **options)
    shapes = open_model(base, load_families()).anatomy.inventory.shapes
    for core in found.cores:
        mask = Mask.of_core(core, shapes, {}, "x")
        allowed = torch.zeros(shapes[up])
        allowed[3:20] = 1
        assert mask.parts.keys() <= ({query} if unit == "tensors" else {query, up})
        if up in mask.parts:
            assert outside(allowed, mask.parts[up]).sum() == allowed.sum() - taken(allowed, mask.parts[up]).numel()
        assert 0 < mask.numel(shapes) <= max(0.01 * sum(map(numel, shapes.values())), numel(shapes[query]))


@pytest.mark.parametrize("unit", ["tensors", "rows"])
def test_a_prior_multiplies_the_scores_of_its_tensors(tiny, tasks, tmp_path, unit):
    """Of a tensor of which it has a part, rows elsewhere get the mean of all others."""
    base, up = tiny("qwen2"), "model.layers.2.mlp.up_proj.weight"
    for task in SIZES:
        (tmp_path / "from").mkdir(exist_ok=True)
        file = core_of(base, tmp_path / f"from/{task}.core.json", {up: ((3, 20),)})
    options = {"method": "snr", "unit": unit, "gradient_examples": 3}
    plain = identify(base, tasks, out=tmp_path / "plain", **options)
    weighed = identify(base, tasks, out=tmp_path / "out", prior=tmp_path / "from", **options)
    given = {one.name: one.score for one in tt.read(file).parameters}
    for before, core in zip(plain.cores, weighed.cores, strict=True):
        outside_of = {p.place for p in core.parameters if p.name == up and p.rows and not 3 <= p.rows[0][0] < 20}
        mean = np.mean([given[p.name] for p in core.parameters if p.place not in outside_of])
        scores = {p.place: p.score * (mean if p.place in outside_of else given[p.name]) for p in before.parameters}
        assert len(outside_of) == (0 if unit == "tensors" else 80 - 17)
        assert {p.place: p.score for p in core.parameters} == pytest.approx(scores)
    with pytest.raises(UserError, match="--prior: has a score for each tensor"):
        identify(base, tasks, out=tmp_path / "no", prior=tmp_path / "from", **{**options, "unit": "parameters"})
    parameters = tuple(one.model_copy(update={"score": -1.0}) for one in tt.read(file).parameters)
    core_of(base, tmp_path / "from/math.core.json", [up], parameters=parameters)
    with pytest.raises(ArtefactError, match="a prior needs scores, none below zero"):
        identify(base, tasks, out=tmp_path / "no", prior=tmp_path / "from", **options)
