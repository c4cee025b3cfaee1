"""What each method trains on what: plans alone, on configs."""

import pytest

from tests.core_files import write_core
from tests.engine.made_up import make_task
from tests.task_files import write_tasks
from tests.training.on_configs import opened
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.encoding import encode_tasks, read_tasks
from trace_transfer.errors import UserError
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import numel
from trace_transfer.training.methods import LAYOUTS, NEED_CORE, mixed, read_cores, stages_of
from trace_transfer.training.settings import StreamSettings, load_stream, paper_training

SIZES = {"math": 30, "code": 20, "law": 300}
FINER = {
    "random-within",
    "role-profile",
    "one-set",
    "norms-random",
    "head-norms-random",
}  # of other core sets: test_controls
KNOWN = [name for name in LAYOUTS if name not in FINER]


LLAMA = opened("llama")
SHAPES = LLAMA.anatomy.inventory.shapes
TASKS = tuple(make_task(size, seed, name) for seed, (name, size) in enumerate(SIZES.items()))


def core_of(task: str, names: tuple[str, ...], model: OpenModel = LLAMA) -> CoreFile:
    shapes = model.anatomy.inventory.shapes
    parameters = tuple(CoreTensor(name=n, shape=s, score=float(n in names), core=n in names) for n, s in shapes.items())
    return CoreFile(task=task, model=model.identity, method={"name": "lf", "ratio": 0.1}, parameters=parameters)


def layer(number: int) -> tuple[str, ...]:
    return (f"model.layers.{number}.mlp.up_proj.weight", f"model.layers.{number}.self_attn.q_proj.weight")


CORES = {"math": core_of("math", layer(1)), "code": core_of("code", layer(2)[:1]), "law": core_of("law", layer(3))}


def stages(method: str, tasks=TASKS, cores=CORES, model: OpenModel = LLAMA, **options):
    train = paper_training(seed=options.pop("seed", 0))
    return stages_of(StreamSettings(method=method, train=train, **options), tasks, cores, model.anatomy)


def refused(method: str, **options) -> list[str]:
    with pytest.raises(UserError, match=f"this stream cannot be trained with method {method}:") as caught:
        stages(method, **options)
    return str(caught.value).split("\n  - ")[1:]


def ids(data) -> list[str]:
    return [example.id for example in data.examples]


@pytest.mark.parametrize("method", ["trace", "full", "lora"])
def test_task_after_task(method):
    found = stages(method)
    assert [stage.data for stage in found] == list(TASKS)
    assert [stage.label for stage in found] == list(SIZES)
    assert [stage.tasks for stage in found] == [(name,) for name in SIZES]
    assert [stage.data.task for stage in stages(method, order=("law", "math", "code"))] == ["law", "math", "code"]


@pytest.mark.parametrize("method", KNOWN)
def test_the_masks_and_their_sizes(method):
    for stage in stages(method):
        own = Mask.of_core(CORES[stage.label], SHAPES, {}, "f") if method in NEED_CORE else None
        if method == "trace":
            assert stage.mask == own
        elif method == "lora":
            assert stage.mask == Mask({})
        elif method in ("full", "joint", "dmt"):
            assert stage.mask == Mask.everything(SHAPES)
        elif method in ("random", "shuffled"):
            assert len(stage.mask.parts) == len(own.parts) and stage.mask != own
        else:
            assert {name.split(".")[2] for name in stage.mask.parts} == {"0" if method == "first" else "3"}
        assert stage.notes == ()


def test_controls_follow_the_seed_and_the_unit():
    masks = [[stage.mask.sha256 for stage in stages("random", seed=seed)] for seed in (0, 0, 1)]
    assert masks[0] == masks[1] != masks[2]
    assert masks[0] != [stage.mask.sha256 for stage in stages("random", seed=0, draw=1)]
    counted = {  # in parameters, as the ratio of the core set was
        name: one.model_copy(update={"method": one.method.model_copy(update={"unit": "elements"})})
        for name, one in CORES.items()
    }
    by_elements = stages("random", control_unit="elements")
    assert [one.mask for one in stages("random", cores=counted)] == [one.mask for one in by_elements]
    for stage in by_elements:
        own = Mask.of_core(CORES[stage.label], SHAPES, {}, "f").numel(SHAPES)
        assert abs(stage.mask.numel(SHAPES) - own) <= 0.5 * max(numel(SHAPES[n]) for n in stage.mask.parts)


def test_all_tasks_in_one():
    (stage,) = stages("joint", order=("law", "math", "code"))
    assert (stage.label, stage.data.task, stage.tasks) == ("joint", "joint", ("law", "math", "code"))
    assert stage.data.examples == TASKS[2].examples + TASKS[0].examples + TASKS[1].examples
    assert stage.data.num_records == 350
    parts = (TASKS, TASKS[::-1], TASKS[:2], (*TASKS[:2], make_task(300, 7, "law")))
    assert len({mixed("joint", one).sha256 for one in parts}) == 4
    assert mixed("joint", TASKS).sha256 == mixed("other", TASKS).sha256


@pytest.mark.parametrize("share", [1 / 256, 0.07, 1.0])
def test_dual_stage_mixed_fine_tuning(share):
    first, second = stages("dmt", replay_share=share, special="math")
    assert (first.label, first.data.task, first.tasks) == ("multi-task", "multi-task", ("code", "law"))
    assert ids(first.data) == ids(TASKS[1]) + ids(TASKS[2])
    assert (second.label, second.data.task, second.tasks) == ("math", "math", ("math", "code", "law"))
    found = ids(second.data)
    assert found[:30] == ids(TASKS[0])
    for task in TASKS[1:]:
        here = [example for example in found[30:] if example.startswith(task.task)]
        assert here == [example for example in ids(task) if example in here]  # in the order of the data, each once
        exact = {1 / 256: (1, 2), 0.07: (2, 21), 1.0: (20, 300)}[share]
        assert len(here) == dict(zip(("code", "law"), exact, strict=True))[task.task]
    assert len(found) == len(set(found))
    again, other = (stages("dmt", replay_share=share, special="math", seed=seed)[1].data for seed in (0, 1))
    assert again == second.data
    assert (other.sha256 == again.sha256) == (share == 1.0) == (ids(other) == ids(again))


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("full", {"order": ("math", "laws", "math")}, ["no task 'laws'"]),
        ("full", {"order": ("math", "code", "math")}, ["expected each of math, code, law once"]),
        ("joint", {"tasks": TASKS[:1]}, ["1 task is nothing to be mixed"]),
        ("dmt", {"special": "maths"}, ["special: no task 'maths'"]),
        ("dmt", {"tasks": (*TASKS, make_task(name="multi-task"))}, ["'multi-task': this is the name of the first"]),
        ("random", {"cores": {**CORES, "math": core_of("math", tuple(SHAPES))}}, ["all 39 tensors that have a score"]),
    ],
)  # fmt: skip
def test_what_cannot_be_a_stream(method, options, told):
    for found, expected in zip(refused(method, **options), told, strict=True):
        assert expected in found


def test_core_files_that_are_missing_or_of_another_model():
    first, second, third = refused("random", cores={"code": core_of("code", layer(2), opened("qwen3"))})
    assert "'math': no core file" in first and "'law': no core file" in third
    assert "'code': core file is of qwen3 (qwen3, 5 layers), and the model" in second


def test_core_files_that_give_no_mask():
    """All of them at once: an empty one, and one that names what the model lacks although it claims to be of it."""
    good = CORES["law"]
    stray = CoreTensor(name="model.layers.9.mlp.up_proj.weight", shape=(80, 48), score=2.0, core=True)
    lying = good.model_copy(update={"parameters": (stray, *good.parameters)})
    empty, strange = refused("trace", cores={"math": core_of("math", ()), "code": lying, "law": good})
    assert "task 'math': core file: its core set is empty" in empty
    assert "task 'code': core file: its core set does not fit" in strange and "layers.9" in strange


def test_from_the_file_to_the_stages(tiny, tmp_path):
    """A stream on disk, read as a command would; its examples are those of the same tasks.yaml."""
    base = open_model(tiny("llama"), load_families())
    tasks = write_tasks(tmp_path)
    write_core(tiny("llama"), tmp_path / "one.core.json")
    lines = tasks.read_text().replace(".jsonl}", ".jsonl, core: one.core.json}")
    file = tmp_path / "stream.yaml"
    file.write_text(lines)
    specs = load_stream(file)
    data = encode_tasks(base, specs, tmp_path, 64, "cut", 0)
    assert data == read_tasks(base, tasks, 64, "cut", 0)
    found = stages_of(StreamSettings(), data, read_cores(specs, tmp_path), base.anatomy)
    assert [stage.label for stage in found] == ["math", "code", "law"]
    assert all(len(stage.mask.parts) == 3 and stage.mask == found[0].mask for stage in found)
    assert read_cores(load_stream(tasks), tmp_path) == {}
