"""The examples of all tasks, encoded for one model: what warm starts train on and Fisher information is taken on.

Reads: `tasks.yaml`, the data that it names, the model's tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trace_transfer.data.encoding import halves, prepare_task
from trace_transfer.data.examples import TaskData
from trace_transfer.data.tasks_file import TaskSpec, load_tasks
from trace_transfer.errors import ModelError, UserError, listing
from trace_transfer.families.model_handle import OpenModel, load_tokenizer
from trace_transfer.identification.delta_store import DeltaStore


def read_tasks(base: OpenModel, tasks: str | Path, max_length: int, too_long: str, seed: int) -> tuple[TaskData, ...]:
    """All tasks of a `tasks.yaml`, encoded for a model.

    Raises:
        TaskError: the file, its data or an example cannot be used.
        ModelError: the tokenizer belongs to another model.
        UserError: examples longer than the model can read.
    """
    return encode_tasks(base, load_tasks(tasks), Path(tasks).parent, max_length, too_long, seed)


def encode_tasks(
    base: OpenModel, specs: Sequence[TaskSpec], directory: Path, max_length: int, too_long: str, seed: int
) -> tuple[TaskData, ...]:
    """Tasks whose description has been read; their data lie relative to a directory. Raises as `read_tasks`."""
    tokenizer = load_tokenizer(base.source)
    data = tuple(
        prepare_task(spec, directory, tokenizer, max_length=max_length, too_long=too_long, seed=seed) for spec in specs
    )
    config = base.config.get_text_config()
    largest = max(max(example.input_ids) for task in data for example in task.examples)
    if largest >= config.vocab_size:
        raise ModelError(
            f"{base.source.name}: its tokenizer gives token id {largest}, but its vocabulary has {config.vocab_size} "
            "tokens: the tokenizer belongs to another model"
        )
    positions = getattr(config, "max_position_embeddings", None)
    longest = {task.task: max(len(example.input_ids) for example in task.examples) for task in data}
    if positions and (beyond := [f"{task}: {length} tokens" for task, length in longest.items() if length > positions]):
        raise UserError(
            f"examples that are longer than the {positions} tokens which {base.name} was made for; give --max-length "
            f"{positions}:\n" + listing(beyond)
        )
    return data


def parts_of(task: TaskData, num_replicates: int, seed: int) -> Iterator[tuple[int | None, TaskData]]:
    """The whole task as replicate None, or its two halves as replicates 1 and 2."""
    if num_replicates == 1:
        yield None, task
    else:
        yield from enumerate(halves(task, seed), start=1)


def data_of_stores(base: OpenModel, stores: Sequence[DeltaStore], tasks: str | Path) -> dict[str, TaskData]:
    """The examples that warm starts were made with, encoded again; label (`math`, `math/1`) → examples.

    Raises:
        UserError: they are others now.
    """
    made_with = stores[0].record.settings
    whole = read_tasks(base, tasks, made_with["max_length"], made_with["too_long"], made_with["seed"])
    parts = {
        label_of(task.task, replicate): data
        for task in whole
        for replicate, data in parts_of(task, made_with["replicates"], made_with["seed"])
    }
    problems = []
    for store in stores:
        label = label_of(store.record.task, store.record.replicate)
        if label not in parts:
            problems.append(f"{label}: not in {tasks}")
        elif parts[label].sha256 != store.record.data.sha256:
            problems.append(f"{label}: other examples in {tasks} than it was warm-started with")
    if problems:
        raise UserError("tasks and warm starts do not belong together:\n" + listing(problems))
    return parts


def label_of(task: str, replicate: int | None) -> str:
    """`math`, or `math/1` for the first of two replicates."""
    return task if replicate is None else f"{task}/{replicate}"
