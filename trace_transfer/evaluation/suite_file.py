"""A suite's file → one `EvaluationSpec` per evaluation, with every problem of the file found in one go.

    evaluations:
      - {name: maths, kind: exact-match, data: gsm8k.test.jsonl, extract: "-?[0-9]+"}

Reads the file's text and whether the data files are there; no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from trace_transfer.data.tasks_file import FORMATS, TaskError, TaskSpec, checked_items, items_under, refuse, suffix_of
from trace_transfer.errors import suggestion
from trace_transfer.printable import is_name

SHIPPED = Path(__file__).parent / "suites"
CHOICE_FIELDS = ("prompt", "choices", "answer")
# Kind → the metrics that its results may be read by, the first by default. The harness' tasks bring their own.
Kind = Literal["loss", "multiple-choice", "exact-match", "humaneval", "harness"]
METRICS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "token-accuracy"),
    "multiple-choice": ("acc", "acc_norm"),
    "exact-match": ("exact-match",),
    "humaneval": ("pass@1",),
    "harness": (),
}
_DATA = (
    "data", "fields", "subset", "split", "revision", "max_examples", "ignore", "mismatch", "chat_template_kwargs",
)  # fmt: skip
# Kind → which keys it takes beside name, kind, metric, limit, template and system.
_KEYS: dict[str, tuple[str, ...]] = {
    "loss": _DATA,
    "multiple-choice": (*_DATA, "count_from"),
    "exact-match": (*_DATA, "extract", "until", "normalise", "max_new_tokens"),
    "humaneval": ("data", "max_new_tokens"),
    "harness": ("data", "task", "shots", "shots_data", "filter", "max_new_tokens"),
}
_FOR_ALL = ("name", "kind", "metric", "limit", "template", "system")
SHOTS = ".shots"


class EvaluationSpec(TaskSpec):
    """One evaluation of a suite.

    Attributes:
        kind: `loss` and `exact-match` read records as tasks do, `multiple-choice` reads prompt, choices and answer;
            `harness` is a task of lm-evaluation-harness; `humaneval` runs what the model writes, walled in.
        data: as of a task; of `harness` and `humaneval` a local file with the columns of the benchmark's own data, None
            for these.
        fields: as of a task; for `multiple-choice` prompt, choices (a column with a list, or a list of such texts) and
            answer (a choice's number, its letter or its text).
        metric: None for the first of its kind.
        limit: the first so many records; None for all. (`max_examples` is a random sample.)
        template: for `harness`, `chat` puts its prompts into the model's chat template; `auto` does not.
        task: the harness' name of the task, or a YAML file of its kind; the evaluation's own name if not given.
        shots: examples shown before each question; None for what the task says.
        shots_data: a local file to draw them from, where the task has none of its own.
        filter: whose result of the harness' task is taken; None for the first.
        max_new_tokens: the longest answer; None for the task's, or the settings'.
        extract: regular expression; only its last match (its first group if it has one) is compared.
        until: texts at which the model's answer ends, beside the end that answers had in training.
        normalise: what two answers may differ in and still be equal: white space at both ends, and more than one of it
            in a row; capital letters; ASCII punctuation; how a number is written (1,000.0 is $1000).
        count_from: the number of the first choice.
    """

    kind: Kind
    data: str | None = None  # type: ignore[assignment]
    fields: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)  # type: ignore[assignment]
    metric: str | None = None
    limit: int | None = Field(default=None, ge=1, strict=True)
    task: str | None = None
    shots: int | None = Field(default=None, ge=0, strict=True)
    shots_data: str | None = None
    filter: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1, strict=True)
    extract: str | None = None
    until: tuple[str, ...] = ()
    normalise: tuple[Literal["space", "case", "punctuation", "number"], ...] = ("space", "case")
    count_from: int = Field(default=0, ge=0, le=1, strict=True)

    @property
    def label(self) -> str:
        return f"evaluation {self.name}" + (f" ({self.data})" if self.data else "")

    @property
    def first_metric(self) -> str:
        return self.metric or METRICS[self.kind][0]

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        found = {key: item[key] for key in ("data", "shots_data", "task") if isinstance(item.get(key), str)}
        return {key: value for key, value in found.items() if is_yaml(value) or suffix_of(value) in FORMATS}

    @field_validator("extract")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression: {error}") from None
        return value

    @property
    def shapes(self) -> Mapping[str, tuple[str, ...]]:
        return {"prompt, choices, answer": CHOICE_FIELDS} if self.kind == "multiple-choice" else super().shapes

    def problems(self) -> list[str]:
        found, allowed = super().problems(), (*_FOR_ALL, *_KEYS[self.kind])
        if foreign := sorted(self.model_fields_set - set(allowed)):
            found.append(f"{', '.join(foreign)}: not for kind {self.kind}, {suggestion(foreign[0], allowed)}")
        if several := [name for name, one in self.fields.items() if isinstance(one, tuple) and name != "choices"]:
            found.append(f"fields: {', '.join(several)}: found a list, expected a text")
        local = [("data", self.data)] if self.kind in ("harness", "humaneval") else []
        for key, file in [*local, ("shots_data", self.shots_data)]:
            if file is not None and suffix_of(file) not in FORMATS:
                found.append(f"{key}: '{file}': expected a local {', '.join(FORMATS)} file, or none")
        if self.data is None and not local:
            found.append("'data:' is missing")
        known = METRICS[self.kind]
        if self.metric is not None and known and self.metric not in known:
            found.append(f"metric: unknown '{self.metric}', {suggestion(self.metric, known)}")
        return found


@dataclass(frozen=True)
class Suite:
    """Evaluations that are run together; their files lie relative to `directory`."""

    name: str
    specs: tuple[EvaluationSpec, ...]
    directory: Path
    where: str = ""

    @classmethod
    def of(cls, items: Iterable[Mapping[str, Any]], directory: Path | str, name: str, *, where: str = "") -> Suite:
        """From the items of a list in YAML; messages begin with `where`."""
        specs, problems = checked_items(list(items), EvaluationSpec, Path(directory), "evaluation")
        refuse(problems, where or f"evaluations of {name}")
        return cls(name, specs, Path(directory), where)

    @property
    def label(self) -> str:
        return self.where or f"suite {self.name}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    def only(self, names: Iterable[str]) -> Suite:
        """The evaluations of these names, in the order of the suite; all if none is named."""
        wanted = list(names)
        unknown = [f"'{name}': {suggestion(name, self.names, 'it has')}" for name in wanted if name not in self.names]
        refuse(unknown, f"{self.label}: has no such evaluation")
        return replace(self, specs=tuple(spec for spec in self.specs if not wanted or spec.name in wanted))

    def with_data(self, files: Mapping[str, Path | str]) -> Suite:
        """With other local data: name of an evaluation (`NAME.shots` for its examples) → file."""
        items, problems = {spec.name: spec.model_dump(exclude_unset=True) for spec in self.specs}, []
        for name, file in files.items():
            shots = name not in items and name.endswith(SHOTS)
            owner = name.removesuffix(SHOTS) if shots else name
            if owner not in items:
                problems.append(f"{name}: no such evaluation, {suggestion(name, self.names, 'the suite has')}")
                continue
            for key in () if shots else ("subset", "split", "revision"):
                items[owner].pop(key, None)
            items[owner]["shots_data" if shots else "data"] = str(Path(file).expanduser().absolute())
        specs, found = checked_items(list(items.values()), EvaluationSpec, self.directory, "evaluation")
        refuse(problems + found, "data that cannot be used")
        return replace(self, specs=specs)


def shipped_suites() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in SHIPPED.glob("*.yaml")))


def load_suite(path: Path | str) -> Suite:
    """A suite's file, or a shipped suite by its name; a TaskError with all that is wrong with it."""
    file = Path(path)
    shipped = str(path) in shipped_suites() and not file.is_file()
    if shipped:
        file = SHIPPED / f"{path}.yaml"
    elif not is_yaml(file.name):
        names = suggestion(str(path), shipped_suites(), "there are")
        raise TaskError(f"{path}: no such suite, {names}; or give a suite's file (.yaml)")
    elif not is_name(file.stem):
        raise TaskError(f"{file}: its name has line breaks or control characters; give it another")
    items = items_under("evaluations", file, "kind:")
    return Suite.of(items, file.parent, file.stem, where="" if shipped else str(file))


def is_yaml(name: str) -> bool:
    return suffix_of(name) in (".yaml", ".yml")
