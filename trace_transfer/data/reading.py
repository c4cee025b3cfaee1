"""The rows of a task's data; code that a data set brings along is never run.

JSON and CSV are read as they stand: the readers of `datasets` make dates of texts that look like dates and numbers of
an answer 007, and give every record of a JSON file the keys of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.tasks_file import TaskError, TaskSpec, describe, locate
from trace_transfer.models.sources import hub_silence
from trace_transfer.text_formats import MalformedTextError, json_lines, parse_json, read_text

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Records: a list of mappings, or a `Dataset`; columns in the order in which they come first."""

    table: list[dict[str, Any]] | Dataset
    column_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    def pick(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """These records. A table gives each object the keys of all others: those with nothing in them are left out."""
        if isinstance(self.table, list):
            return [self.table[number] for number in numbers]
        return [_without_nulls(row) for row in self.table.select(numbers).to_list()]

    def dataset(self) -> Dataset:
        """As `datasets` has it; a ValueError if a column has values of several kinds."""
        if not isinstance(self.table, list):
            return self.table
        from datasets import Dataset

        return Dataset.from_dict({name: [row.get(name) for row in self.table] for name in self.column_names})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def read_rows(spec: TaskSpec, base_directory: Path | str) -> Rows:
    """All rows of a task's data: of a local file, or of a hub data set, which is kept in the cache of `datasets`.

    Raises:
        TaskError: not there, not readable as what its extension says, or without records.
    """
    table = _read_file(spec, locate(spec.data, base_directory)) if spec.builder else _read_hub(spec)
    if len(table) == 0:
        raise TaskError(f"{spec.label}: no records")
    if isinstance(table, list):
        return Rows(table, tuple(dict.fromkeys(name for row in table for name in row)))
    return Rows(table, tuple(table.column_names))


def _read_file(spec: TaskSpec, file: Path) -> list[dict[str, Any]] | Dataset:
    try:
        if file.stat().st_size == 0:
            return []
        if spec.builder == "json":
            return _read_json(file)
        if spec.builder == "csv":
            import pandas

            found = pandas.read_csv(file, dtype=str, keep_default_na=False)
            return found.astype(object).where(found.notna(), None).to_dict("records")
        from datasets import Dataset
        from pyarrow.parquet import read_table

        return Dataset(read_table(file))
    except Exception as error:  # pyarrow and pandas raise many kinds; each is one message to the user
        said = " ".join(str(error).split()).removeprefix(f"{file}: ")
        raise TaskError(f"{spec.label}: {file} cannot be read as {file.suffix[1:].upper()}: {said:.300}") from error


def _read_json(file: Path) -> Any:
    """A list of objects, or one object a line, whatever the extension says."""
    text = read_text(file, TaskError)
    records = parse_json(text) if text.lstrip().startswith("[") else []
    for number, value in () if text.lstrip().startswith("[") else json_lines(text):
        if isinstance(value, MalformedTextError):
            raise MalformedTextError(value.problem, number)
        records.append(value)
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise TaskError(f"record {number} is {describe(record)}, expected an object with a value for each column")
    return records


def _read_hub(spec: TaskSpec) -> Dataset:
    from datasets import load_dataset

    split = spec.split or "train"
    try:
        if silence := hub_silence(spec.data, dataset=True):
            raise ConnectionError(f"it does not answer ({silence}); HF_HUB_OFFLINE=1 reads its cache")
        return load_dataset(spec.data, name=spec.subset, split=split, revision=spec.revision, trust_remote_code=False)
    except Exception as error:  # as above
        cause: BaseException = error
        while cause.__cause__ is not None:  # `datasets` wraps it in a general complaint
            cause = cause.__cause__
        raise TaskError(
            f"{spec.label}: split '{split}' could not be had from the hub: {' '.join(str(cause).split()):.300}. Check "
            "the name, subset: and split:, your connection and, for a gated data set, `hf auth login`"
        ) from error
