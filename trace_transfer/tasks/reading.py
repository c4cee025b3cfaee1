"""The rows of a task's data, through the `datasets` library; code that a data set brings along is never run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import first_line
from trace_transfer.tasks.spec import TaskError, TaskSpec, data_file

if TYPE_CHECKING:
    from datasets import Dataset

HUB_TIMEOUT = 10  # s


def read_rows(spec: TaskSpec, base_directory: Path | str) -> Dataset:
    """All rows of a task's data.

    A local file is read anew each time, and nothing of it stays behind; a hub data set is kept in the usual cache of
    `datasets`. Every column of a CSV file is text, as it stands there (an answer 007, NA or 1e3 stays what it is).

    Raises:
        TaskError: not there, not readable as what its extension says, or without records.
    """
    with _quiet():
        rows = _read_file(spec, data_file(spec, base_directory)) if spec.builder else _read_hub(spec)
    if rows is None or len(rows) == 0:
        raise TaskError(f"{spec.label}: no records")
    return rows


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
    from datasets.packaged_modules.json.json import JsonConfig

    if builder == "csv":
        options["keep_default_na"] = False
    if builder == "json" and "parse_agent_traces" in {field.name for field in fields(JsonConfig)}:
        options["parse_agent_traces"] = False  # would take a table with certain columns for something else
    with tempfile.TemporaryDirectory(prefix="trace-transfer-") as cache:
        return load_dataset(
            builder, data_files=[_literal(file)], split="train", cache_dir=cache, keep_in_memory=True, **options
        )


def _literal(file: Path) -> str:
    """A path whose special characters match themselves only: `datasets` resolves every path as a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(file.resolve()))


def _read_hub(spec: TaskSpec) -> Dataset:
    from datasets import load_dataset

    split, silence = spec.split or "train", hub_silence(spec.data)
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


def hub_silence(name: str) -> str | None:
    """Ask the hub once for a data set, since its client would try a dead connection for half a minute.

    Returns:
        Why there is no answer; None if there is one, whatever it says, or if nothing is to be asked.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or Path(name).is_dir() or "/" not in name:
        return None
    try:
        get_hf_file_metadata(hf_hub_url(name, "README.md", repo_type="dataset"), timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return None  # what is wrong with the name is told better by `datasets`
    except Exception as error:  # of whatever carries the connection
        return first_line(error)
    return None


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
