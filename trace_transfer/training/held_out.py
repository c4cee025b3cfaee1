"""The records that tasks are evaluated on while they train: those of other files, or a share of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.records import chosen
from trace_transfer.errors import UserError, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import sha256_text
from trace_transfer.training.settings import StreamSettings, StreamTask


def hold_out(
    base: OpenModel, tasks: Sequence[StreamTask], data: Sequence[TaskData], directory: Path, settings: StreamSettings
) -> tuple[tuple[TaskData, ...], dict[str, TaskData]]:
    """What is left to train on, and what is held out of each task that has anything.

    Args:
        data: of the tasks, in their order.
    """
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
        raise UserError(
            f"{', '.join(asked)}: nothing is held out to be evaluated on; give eval_share, or name eval_data (or "
            "eval_split) of a task in the stream's file"
        )
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
