"""The rows of a task's data; code that a data set brings along is never run.

JSON is read as it stands: the reader of `datasets` makes dates of texts that look like dates, and gives every record
of a file the keys of all others. Everything else comes through `datasets`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.tasks_file import TaskError, TaskSpec, data_file, describe
from trace_transfer.models.sources import hub_silence
from trace_transfer.text_formats import MalformedTextError, json_lines, parse_json, read_text

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Records as mappings from columns to values.

    Attributes:
        table: a list of mappings, or a `Dataset`.
        column_names: of all records, in the order in which they come first.
    """

    table: list[dict[str, Any]] | Dataset
    column_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def is_exact(self) -> bool:
        """Whether a key that stands in a record was written there; a table has each key in every record."""
        return isinstance(self.table, list)

    def of(self, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """These records, these columns of them, None where a record has no such key."""
        if isinstance(self.table, list):
            return ({name: self.table[number].get(name) for name in columns} for number in numbers)
        table: Any = self.table.select_columns(list(columns))
        return iter(table.select(numbers, keep_in_memory=True) if len(numbers) < len(table) else table)

    def given(self, column: str, numbers: Sequence[int]) -> Iterator[Any]:
        """A column's values in these records without what `datasets` makes of them, such as images of bytes."""
        if isinstance(self.table, list):
            yield from (self.table[number].get(column) for number in numbers)
        else:
            arrow: Any = self.table.select_columns([column]).with_format("arrow")
            yield from (arrow[number].column(0)[0].as_py() for number in numbers)

    def dataset(self) -> Dataset:
        """As `datasets` has it.

        Raises:
            ValueError: a column has values of several kinds.
        """
        if not isinstance(self.table, list):
            return self.table
        from datasets import Dataset

        return Dataset.from_dict({name: [row.get(name) for row in self.table] for name in self.column_names})


def read_rows(spec: TaskSpec, base_directory: Path | str) -> Rows:
    """All rows of a task's data.

    A local file is read anew each time, and nothing of it stays behind; a hub data set is kept in the usual cache of
    `datasets`. Every column of a CSV file is text, as it stands there (an answer 007, NA or 1e3 stays what it is), and
    a text in JSON is that text, also where it looks like a date.

    Raises:
        TaskError: not there, not readable as what its extension says, or without records.
    """
    if spec.builder == "json":
        records = _read_json(spec, data_file(spec, base_directory))
        rows = Rows(records, tuple(dict.fromkeys(name for record in records for name in record)))
    else:
        with _quiet():
            table = _read_file(spec, data_file(spec, base_directory)) if spec.builder else _read_hub(spec)
        rows = Rows([], ()) if table is None else Rows(table, tuple(table.column_names))
    if len(rows) == 0:
        raise TaskError(f"{spec.label}: no records")
    return rows


def _read_json(spec: TaskSpec, file: Path) -> list[dict[str, Any]]:
    """A list of objects, or one object a line, whatever the extension says."""
    kind = file.suffix[1:].upper()
    try:
        text = read_text(file, TaskError)
        records = parse_json(text) if text.lstrip().startswith("[") else list(_objects(text))
    except MalformedTextError as error:
        raise TaskError(
            f"{spec.label}: {file} cannot be read as {kind}: {error}; expected one object a line, or a list of objects"
        ) from error
    except TaskError as error:
        said = str(error).removeprefix(f"{file}: ").removeprefix("cannot be read: ")
        raise TaskError(f"{spec.label}: {file} cannot be read as {kind}: {said}") from error
    if others := [number for number, record in enumerate(records) if not isinstance(record, dict)]:
        raise TaskError(
            f"{spec.label}: {file} cannot be read as {kind}: record {others[0]} is {describe(records[others[0]])}, "
            "expected an object with a value for each column"
        )
    return list(records)


def _objects(text: str) -> Iterator[Any]:
    for number, value in json_lines(text):
        if isinstance(value, MalformedTextError):
            raise MalformedTextError(value.problem, number)
        yield value


def _read_file(spec: TaskSpec, file: Path) -> Dataset | None:
    from datasets import Features, Value

    try:
        if not any(line.strip() for line in _head(file)):
            return None
    except OSError as error:
        raise TaskError(f"{spec.label}: {file} cannot be read: {error.strerror}") from error
    assert spec.builder is not None  # it is a file
    try:
        rows = _load_file(spec.builder, file)
        if spec.builder == "csv" and any(feature.dtype != "string" for feature in rows.features.values()):
            rows = _load_file("csv", file, features=Features({name: Value("string") for name in rows.column_names}))
        return rows
    except Exception as error:  # datasets, pyarrow and pandas raise many kinds; each is one message to the user
        if "corresponds to no data" in str(error):
            return None
        raise TaskError(f"{spec.label}: {file} cannot be read as {file.suffix[1:].upper()}: {_cause(error)}") from error


def _load_file(builder: str, file: Path, **options: Any) -> Dataset:
    """A local file as one table in memory: the cache of `datasets` would be left behind by each version of the file."""
    from datasets import load_dataset

    if builder == "csv":
        options["keep_default_na"] = False
    with tempfile.TemporaryDirectory(prefix="trace-transfer-") as cache:
        return load_dataset(
            builder, data_files=[_literal(file)], split="train", cache_dir=cache, keep_in_memory=True, **options
        )


def _literal(file: Path) -> str:
    """A path whose special characters match themselves only: `datasets` resolves every path as a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(file.resolve()))


def _read_hub(spec: TaskSpec) -> Dataset:
    from datasets import load_dataset

    split, silence = spec.split or "train", hub_silence(spec.data, dataset=True)
    try:
        with _offline() if silence else nullcontext():
            return load_dataset(
                spec.data, name=spec.subset, split=split, revision=spec.revision, trust_remote_code=False
            )  # fmt: skip
    except Exception as error:  # as above
        cause = f"it does not answer ({silence}), and its cache here lacks the data set" if silence else _cause(error)
        raise TaskError(
            f"{spec.label}: split '{split}' could not be had from the hub: {cause}. Check the name, "
            "subset: and split:, your connection and, for a gated data set, `hf auth login`"
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1, which the hub's client looks at before each request: its cache, or nothing."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _head(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        yield from stream


def _cause(error: BaseException) -> str:
    """The innermost stated cause on one line: `datasets` wraps it in a general complaint."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and complaints of `datasets` and the hub's client: what is wrong is said once, by us."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], datasets.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
