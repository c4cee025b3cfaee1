"""What each method trains on what: the stages of a stream, laid out before any weight is loaded.

A method is a small function from a stream to its stages, by name in `LAYOUTS`; a stage is one training, with a new
optimizer, that begins where the one before ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Mask, MaskError
from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.records import chosen
from trace_transfer.data.tasks_file import locate
from trace_transfer.errors import UserError, each_of, listing, suggestion
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import sha256_text
from trace_transfer.records import model_line, read_artefact
from trace_transfer.training.controls import CONTROLS, Case
from trace_transfer.training.settings import StreamSettings, StreamTask

JOINT, MULTI_TASK = "joint", "multi-task"
MIXING = ("joint", "dmt")
NEED_CORE = ("trace", *CONTROLS)
ROUNDING = 1e-9  # keeps 0.07 * 100, which is 7.000000000000001, at 7


@dataclass(frozen=True)
class Stage:
    """One training."""

    label: str  # of its patch, its directory and its messages: the task's name, `joint` or `multi-task`
    data: TaskData
    mask: Mask  # what is trained; empty where adapters are, whose names are known once they are made
    tasks: tuple[str, ...]  # names of the tasks whose examples take part
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    settings: StreamSettings
    tasks: tuple[TaskData, ...]
    cores: Mapping[str, CoreFile]
    anatomy: Anatomy


def by_core(name: str | None, stream: Stream) -> list[Stage]:
    """Task after task, the core set of each alone (TRACE, section 3.2), or a control of its size: see `controls`."""
    settings, anatomy, stages, problems = stream.settings, stream.anatomy, [], []
    for data in stream.tasks:
        core, file = stream.cores.get(data.task), f"task '{data.task}': core file"
        if core is None:
            problems.append(f"task '{data.task}': no core file; name it with `core:` beside `data:`")
        elif core.model.names_sha256 != anatomy.inventory.names_sha256:
            problems.append(
                f"{file} is of {model_line(core.model)}, and the model to be trained is another ({anatomy.family}, "
                f"{anatomy.num_layers} layers); carry it over with `trace-transfer map`"
            )
        else:
            notes = () if core.task == data.task else (f"{data.task}: its core file was made for task '{core.task}'",)
            try:
                unit = settings.control_unit or ("tensors" if core.method.unit == "tensors" else "elements")
                case = Case(core, anatomy, settings.control_seed, unit, file, tuple(stream.cores.values()))
                own = case.mask()
                mask = own if name is None else CONTROLS[name](case)
                stages.append(Stage(data.task, data, mask, (data.task,), notes))
            except MaskError as error:
                problems.append(str(error))
    _refuse(settings, problems)
    return stages


def full(stream: Stream) -> list[Stage]:
    """Sequential fine-tuning (TRACE, section 4.3): task after task, everything."""
    return [_everything(stream, data, [data]) for data in stream.tasks]


def joint(stream: Stream) -> list[Stage]:
    """Joint fine-tuning (TRACE, section 4.3): everything, on the examples of all tasks mixed."""
    return [_everything(stream, mixed(JOINT, stream.tasks), stream.tasks)]


def lora(stream: Stream) -> list[Stage]:
    """Sequential LoRA (Hu et al., 2022, arXiv 2106.09685; TRACE, A.4): task after task, adapters alone."""
    return [Stage(data.task, data, Mask({}), (data.task,)) for data in stream.tasks]


def dmt(stream: Stream) -> list[Stage]:
    """Dual-stage mixed fine-tuning (Dong et al., 2024, arXiv 2310.05492): everything, first on all tasks but one mixed,
    then on that one with a small share of each of the others.

    Which task is last is an option here. The share of each is rounded up: of each at least one example is replayed."""
    settings = stream.settings
    special = next(data for data in stream.tasks if data.task == (settings.special or stream.tasks[-1].task))
    others = [data for data in stream.tasks if data is not special]
    counts = [math.ceil(settings.replay_share * len(data.examples) - ROUNDING) for data in others]
    replayed = [some_of(data, count, settings.train.seed) for data, count in zip(others, counts, strict=True)]
    return [
        _everything(stream, mixed(MULTI_TASK, others), others),
        _everything(stream, mixed(special.task, [special, *replayed]), [special, *others]),
    ]


LAYOUTS: Mapping[str, Callable[[Stream], list[Stage]]] = {
    "trace": partial(by_core, None),
    "full": full,
    "joint": joint,
    "lora": lora,
    "dmt": dmt,
    **{name: partial(by_core, name) for name in CONTROLS},
}


def stages_of(
    settings: StreamSettings, tasks: Sequence[TaskData], cores: Mapping[str, CoreFile], anatomy: Anatomy
) -> tuple[Stage, ...]:
    """Lay out a stream of tasks in the order of the file or of `settings.order`, with the core files of those methods
    that need one. A UserError names all orders, tasks and core files that cannot be used."""
    _refuse(settings, _task_problems(settings, [data.task for data in tasks]))
    by_name = {data.task: data for data in tasks}
    stream = Stream(settings, tuple(by_name[name] for name in settings.order or by_name), cores, anatomy)
    return tuple(LAYOUTS[settings.method](stream))


def read_cores(tasks: Sequence[StreamTask], directory: Path) -> dict[str, CoreFile]:
    files = {task.name: locate(task.core, directory) for task in tasks if task.core is not None}
    cores = each_of(files.values(), lambda file: read_artefact(file, CoreFile), "core files that cannot be used")
    return dict(zip(files, cores, strict=True))


def mixed(name: str, parts: Sequence[TaskData]) -> TaskData:
    """The examples of several tasks as those of one; training draws an order of its own."""
    return TaskData(
        task=name,
        examples=tuple(example for data in parts for example in data.examples),
        num_records=sum(data.num_records for data in parts),
        num_cut=sum(data.num_cut for data in parts),
        num_left_out=sum(data.num_left_out for data in parts),
        template="+".join(sorted({data.template for data in parts})),
        sha256=sha256_text("\n".join(data.sha256 for data in parts)),
        notes=tuple(f"{data.task}: {note}" for data in parts for note in data.notes),
        shown=parts[0].shown,
    )


def some_of(data: TaskData, count: int, seed: int) -> TaskData:
    """A seeded choice of a task's examples, in the order of the data; counts of records stay those of the whole."""
    kept = chosen([example.id for example in data.examples], count, f"{seed}/replay")
    names = set(kept)
    examples = tuple(example for example in data.examples if example.id in names)
    return replace(data, examples=examples, sha256=sha256_text("\n".join([data.sha256, *kept])))


def _everything(stream: Stream, data: TaskData, parts: Sequence[TaskData]) -> Stage:
    return Stage(data.task, data, Mask.everything(stream.anatomy.inventory.shapes), tuple(part.task for part in parts))


def _task_problems(settings: StreamSettings, given: Sequence[str]) -> list[str]:
    names, order, special = list(dict.fromkeys(given)), settings.order, settings.special
    problems = [f"order: no task '{name}', {suggestion(name, names, 'tasks')}" for name in order if name not in names]
    if not problems and order and sorted(order) != sorted(names):
        problems.append(f"order: {', '.join(order)}: expected each of {', '.join(names)} once")
    if settings.method in MIXING and len(given) < 2:
        problems.append(f"{len(given)} task is nothing to be mixed; give more tasks, or use method full")
    if settings.method == "dmt" and MULTI_TASK in names:
        problems.append(f"task '{MULTI_TASK}': this is the name of the first stage; give the task another one")
    if special is not None and special not in names:
        problems.append(f"special: no task '{special}', {suggestion(special, names, 'tasks')}")
    return problems


def _refuse(settings: StreamSettings, problems: Sequence[str]) -> None:
    if problems:
        raise UserError(f"this stream cannot be trained with method {settings.method}:\n" + listing(problems))


def hold_out(
    base: OpenModel, tasks: Sequence[StreamTask], data: Sequence[TaskData], directory: Path, settings: StreamSettings
) -> tuple[tuple[TaskData, ...], dict[str, TaskData]]:
    """What is left to train on of tasks in their order, and what is held out of each that has anything."""
    own = [one for one in (task.held_out for task in tasks) if one is not None]
    train = settings.train
    read = encode_tasks(base, own, directory, settings.max_length, settings.too_long, train.seed) if own else ()
    held = {one.task: one for one in read}
    left = list(data)
    for number, task in enumerate(data):
        if task.task not in held and settings.eval_share is not None:
            left[number], held[task.task] = split(task, settings.eval_share, train.seed)
    asked = [name for name in ("eval_every", "patience", "keep_best") if getattr(settings, name)]
    if asked and not held:
        raise UserError(f"{', '.join(asked)}: nothing is held out; give eval_share, or eval_data in the stream's file")
    trained = {example.input_ids: example.id for task in left for example in task.examples}
    problems = [
        f"{example.id} of the held-out records is {trained[example.input_ids]}"
        for task in held.values()
        for example in task.examples
        if example.input_ids in trained
    ]
    if problems:
        raise UserError("held-out records that are trained on; leave them out of either:\n" + listing(problems))
    return tuple(left), held


def split(data: TaskData, share: float, seed: int) -> tuple[TaskData, TaskData]:
    """A task without a seeded share of its records, at least one, and that share. Equal records stay together."""
    records: dict[str, list[Example]] = {}
    for example in data.examples:
        records.setdefault(example.id.partition("/")[0], []).append(example)
    contents: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for record, examples in records.items():
        contents.setdefault(tuple(one.input_ids for one in examples), []).append(record)
    if len(contents) < 2:
        raise UserError(f"eval_share: task '{data.task}' has one record: none is left to train on, or to hold out")
    firsts = [several[0] for several in contents.values()]
    out = set(chosen(firsts, min(max(1, round(share * len(firsts))), len(firsts) - 1), f"{seed}/held out"))
    held = {record for several in contents.values() if several[0] in out for record in several}
    sides = ({name: several for name, several in records.items() if (name in held) is side} for side in (False, True))
    left, right = (
        replace(
            data, examples=tuple(example for several in side.values() for example in several),
            sha256=sha256_text("\n".join([data.sha256, *side])),
        )
        for side in sides
    )  # fmt: skip
    return left, right
