"""Where a task of lm-evaluation-harness has its records from: the hub, or local files with the same columns.

Changes configurations of the harness' kind; imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_transfer.data.reading import hub_silence, read_rows
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.errors import first_line
from trace_transfer.evaluation.records import Reading
from trace_transfer.evaluation.suite_file import SHOTS, EvaluationSpec

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, TEST = "train", "test"


def set_shots(config: dict[str, Any], spec: EvaluationSpec) -> None:
    """As many examples as the evaluation says, if it does."""
    if spec.shots is not None:
        config["num_fewshot"] = spec.shots


def set_data(config: dict[str, Any], spec: EvaluationSpec, reading: Reading) -> None:
    """Local files in place of the task's data set: one split to be scored, and one that examples are drawn from.

    Raises:
        TaskError: examples are to be shown and there is nothing to draw them from; a file cannot be read; there is no
            file, and the hub cannot be reached.
    """
    if spec.data is None:
        if spec.shots_data is not None:
            raise TaskError(f"{spec.label}: shots_data: without data: the task's own data set has its own examples")
        require_hub(spec, config)
        return
    scored = config.get("test_split") or config.get("validation_split") or TEST
    splits = {scored: _table(spec, reading)}
    own = config.get("fewshot_config") or {}
    config.update(
        training_split=None, validation_split=None, test_split=scored, fewshot_split=None, dataset_kwargs=None
    )
    config["fewshot_config"] = {key: value for key, value in own.items() if key != "split"} or None
    if spec.shots_data is not None:
        shots = spec.model_copy(update={"data": spec.shots_data})
        name = TRAIN if scored != TRAIN else "shots"
        splits[name] = _table(shots, reading)
        config.update(training_split=name, fewshot_split=name)
        config["fewshot_config"] = {key: value for key, value in own.items() if key not in ("split", "samples")} or None
    elif config.get("num_fewshot") and not own.get("samples"):
        raise TaskError(
            f"{spec.label}: {config['num_fewshot']} examples are to be shown, and its data file has only what is "
            f"scored; give a file of examples with shots_data: (--data {spec.name}{SHOTS}=FILE), or shots: 0"
        )
    config["custom_dataset"] = lambda **_: splits


def _table(spec: EvaluationSpec, reading: Reading) -> Dataset:
    """The records as the harness wants them: each column of one kind."""
    rows = read_rows(spec, reading.directory)
    try:
        return rows.dataset()
    except Exception as error:  # pyarrow raises many kinds
        raise TaskError(
            f"{spec.label}: a column has values of several kinds, which the harness cannot use: {first_line(error)}"
        ) from error


def require_hub(spec: EvaluationSpec, config: Mapping[str, Any]) -> None:
    """Ask the hub once: its client would try a dead connection for half a minute, for each data set.

    Raises:
        TaskError: it does not answer.
    """
    if silence := hub_silence(str(config.get("dataset_path"))):
        raise TaskError(_from_hub(spec, config, f"{silence}; HF_HUB_OFFLINE=1 reads its cache"))


def _from_hub(spec: EvaluationSpec, config: Mapping[str, Any], why: str) -> str:
    source = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
    return (
        f"{spec.label}: its data set {source} could not be had from the hub ({why}). Check your connection, or give a "
        f"local file with the same columns: --data {spec.name}=FILE"
    )


def unusable(spec: EvaluationSpec, config: Mapping[str, Any], error: Exception) -> str:
    """What to say when a task cannot be made of its data."""
    if spec.data is None:
        return _from_hub(spec, config, first_line(error))
    missing = f": its records lack the column {error}" if isinstance(error, KeyError) else f": {first_line(error)}"
    return (
        f"{spec.label}: the task '{config.get('task')}' cannot use these records{missing}. Expected are the columns of "
        f"{config.get('dataset_path')}"
    )
