"""A suite's file → one `EvaluationSpec` per evaluation, with every problem of the file found in one go.

    evaluations:
      - name: maths
        kind: exact-match             # or loss, multiple-choice, harness, humaneval
        data: gsm8k.test.jsonl        # as in tasks.yaml
        fields: {prompt: question, completion: answer}
        extract: "-?[0-9]+"

Reads the file's text and whether the data files are there; no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from trace_transfer.data.tasks_file import (
    FORMATS,
    SHAPES,
    TaskError,
    TaskSpec,
    checked_items,
    describe,
    parse_source,
    parse_yaml,
    suggestion,
)
from trace_transfer.errors import listing
from trace_transfer.printable import is_name

SHIPPED = Path(__file__).parent / "suites"
CHOICE_FIELDS = ("prompt", "choices", "answer")
NORMALISATIONS = {
    "space": "white space at both ends, and more than one of it in a row",
    "case": "capital letters",
    "punctuation": "ASCII punctuation",
    "number": "how a number is written: 1,000.0 is $1000",
}
# Kind → the metrics that its results may be read by, the first by default. The harness' tasks bring their own.
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
        normalise: what two answers may differ in and still be equal.
        count_from: the number of the first choice.
    """

    kind: str
    data: str | None = None  # type: ignore[assignment]
    fields: Mapping[str, Any] = Field(default_factory=dict)
    metric: str | None = None
    limit: int | None = Field(default=None, ge=1, strict=True)
    task: str | None = None
    shots: int | None = Field(default=None, ge=0, strict=True)
    shots_data: str | None = None
    filter: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1, strict=True)
    extract: str | None = None
    until: tuple[str, ...] = ()
    normalise: tuple[str, ...] = ("space", "case")
    count_from: int = Field(default=0, ge=0, le=1, strict=True)

    @property
    def builder(self) -> str | None:
        return None if self.data is None else super().builder

    @property
    def label(self) -> str:
        return f"evaluation {self.name}" + (f" ({self.place})" if self.data else "")

    @property
    def higher_is_better(self) -> bool:
        """Of the metrics of our own kinds."""
        return self.first_metric != "loss"

    @property
    def first_metric(self) -> str:
        """The metric asked for, or the first of the kind."""
        return self.metric or METRICS[self.kind][0]

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        found = {key: item.get(key) for key in ("data", "shots_data", "task")}
        return {
            key: value
            for key, value in found.items()
            if isinstance(value, str) and (_is_yaml(value) if key == "task" else _suffix(value) in FORMATS)
        }

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"unknown '{value}', {suggestion(value, METRICS)}")
        return value

    @field_validator("fields")
    @classmethod
    def _one_shape(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """That they fit the kind is for `_fits_its_kind`: here, each must be readable."""
        for name, source in value.items():
            several = isinstance(source, list) and name == "choices"
            for text in source if several else [source]:
                if not isinstance(text, str):
                    raise ValueError(f"{name}: found {text!r}, expected a text" + (" or a list of them" * several))
                parse_source(text)
        return value

    @field_validator("extract")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression: {error}") from None
        return value

    @field_validator("normalise")
    @classmethod
    def _known_normalisations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in NORMALISATIONS]:
            raise ValueError("; ".join(f"unknown '{name}', {suggestion(name, NORMALISATIONS)}" for name in unknown))
        return value

    @field_validator("shots_data")
    @classmethod
    def _is_file(cls, value: str | None) -> str | None:
        if value is not None and _suffix(value) not in FORMATS:
            raise ValueError(f"'{value}' cannot be used; expected a {', '.join(FORMATS)} file")
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        problems = []
        allowed = (*_FOR_ALL, *_KEYS[self.kind])
        if foreign := sorted(self.model_fields_set - set(allowed)):
            problems.append(f"{', '.join(foreign)}: not for kind {self.kind}, {suggestion(foreign[0], allowed)}")
        if self.kind in ("harness", "humaneval"):
            if self.data is not None and not self.builder:
                problems.append(f"data: '{self.data}': expected a local {', '.join(FORMATS)} file, or none")
        elif self.data is None:
            problems.append("'data:' is missing")
        known = METRICS[self.kind]
        if self.metric is not None and known and self.metric not in known:
            problems.append(f"metric: unknown '{self.metric}', {suggestion(self.metric, known)}")
        problems += self._field_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _field_problems(self) -> list[str]:
        shapes = {"prompt, choices, answer": CHOICE_FIELDS} if self.kind == "multiple-choice" else SHAPES
        known = list(dict.fromkeys(name for names in shapes.values() for name in names))
        if unknown := [name for name in self.fields if name not in known]:
            return [f"fields: unknown field '{name}', {suggestion(name, known)}" for name in unknown]
        if not any(set(self.fields) <= set(names) for names in shapes.values()):
            return [f"fields: {', '.join(self.fields)} are of different shapes; the shapes are {'; '.join(shapes)}"]
        return []


@dataclass(frozen=True)
class Suite:
    """Evaluations that are run together; their files lie relative to `directory`.

    Attributes:
        where: what messages begin with, such as the file that the list stands in.
    """

    name: str
    specs: tuple[EvaluationSpec, ...]
    directory: Path
    where: str = ""

    @classmethod
    def of(
        cls, items: Iterable[Mapping[str, Any] | EvaluationSpec], directory: Path | str, name: str, *, where: str = ""
    ) -> Suite:
        """From the items of a list in YAML.

        Args:
            where: what messages begin with, such as the file that the list stands in.

        Raises:
            TaskError: unknown keys, kinds or metrics, two of one name, missing files: all that is wrong at once.
        """
        plain = [item.model_dump(exclude_unset=True) if isinstance(item, EvaluationSpec) else item for item in items]
        specs, problems = checked_items(plain, EvaluationSpec, Path(directory), "evaluation")
        if problems:
            count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
            raise TaskError(f"{where or f'evaluations of {name}'}: {count}:\n" + listing(problems))
        return cls(name, specs, Path(directory), where)

    @property
    def label(self) -> str:
        """For messages: where it stands; a suite that comes with the package has but a name."""
        return self.where or f"suite {self.name}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    def only(self, names: Iterable[str]) -> Suite:
        """The evaluations of these names, in the order of the suite; all if none is named.

        Raises:
            TaskError: it has no evaluation of such a name.
        """
        wanted = list(names)
        if unknown := [name for name in wanted if name not in self.names]:
            lines = [f"'{name}': {suggestion(name, self.names, 'it has')}" for name in unknown]
            raise TaskError(f"{self.label}: has no such evaluation:\n" + listing(lines))
        return replace(self, specs=tuple(spec for spec in self.specs if not wanted or spec.name in wanted))

    def with_data(self, files: Mapping[str, Path | str]) -> Suite:
        """With other local data: name of an evaluation → file; `NAME.shots` for what its examples are drawn from.

        Raises:
            TaskError: no such evaluation, no such file, or a kind of file that cannot be read; all at once.
        """
        specs, problems = {spec.name: spec for spec in self.specs}, []
        for name, file in files.items():
            shots = name not in specs and name.endswith(SHOTS)
            owner = name.removesuffix(SHOTS) if shots else name
            path = Path(file).expanduser().absolute()
            if owner not in specs:
                problems.append(f"{name}: no such evaluation, {suggestion(name, self.names, 'the suite has')}")
            elif not path.is_file():
                problems.append(f"{name}: {file}: no such file")
            elif path.suffix.lower() not in FORMATS:
                problems.append(f"{name}: {file}: expected a {', '.join(FORMATS)} file")
            elif shots and specs[owner].kind != "harness":
                problems.append(f"{name}: an evaluation of kind {specs[owner].kind} shows no examples")
            else:
                key = "shots_data" if shots else "data"
                others = {"subset", "split", "revision"} if not shots else set()
                kept = specs[owner].model_dump(exclude_unset=True, exclude=others)
                specs[owner] = EvaluationSpec.model_validate({**kept, key: str(path)})
        if problems:
            raise TaskError("data that cannot be used:\n" + listing(problems))
        return replace(self, specs=tuple(specs.values()))


def shipped_suites() -> tuple[str, ...]:
    """Names of the suites that come with the package."""
    return tuple(sorted(file.stem for file in SHIPPED.glob("*.yaml")))


def load_suite(path: Path | str) -> Suite:
    """A suite's file, or a shipped suite by its name.

    Raises:
        TaskError: not there, not YAML, no evaluations, unknown keys, kinds or metrics, two evaluations with one name,
            missing data files: all that is wrong with the file at once.
    """
    file = Path(path)
    shipped = str(path) in shipped_suites() and not file.is_file()
    if shipped:
        file = SHIPPED / f"{path}.yaml"
    elif not _is_yaml(file.name):
        names = suggestion(str(path), shipped_suites(), "there are")
        raise TaskError(f"{path}: no such suite, {names}; or give a suite's file (.yaml)")
    elif not is_name(file.stem):
        raise TaskError(f"{file}: its name has line breaks or control characters; give it another")
    content = parse_yaml(file)
    expected = "expected a list of evaluations under 'evaluations:', each with name: and kind:"
    if not isinstance(content, Mapping) or "evaluations" not in content:
        found = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else describe(content)
        raise TaskError(f"{file}: found {found}; {expected}")
    if unknown := [key for key in content if key != "evaluations"]:
        raise TaskError(f"{file}: unknown keys beside 'evaluations:': {', '.join(map(str, unknown))}")
    items = content["evaluations"]
    if not isinstance(items, list) or not items:
        raise TaskError(f"{file}: found {describe(items) if items else 'no evaluations'}; {expected}")
    return Suite.of(items, file.parent, file.stem, where="" if shipped else str(file))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_yaml(name: str) -> bool:
    return _suffix(name) in (".yaml", ".yml")
