"""The files: every format of a JSON file that this package writes, for `inspect` and `tt.read`; and JSON Schemas of the
YAML files that people write, so that an editor completes and checks them.

A schema is made of what reads the file: the classes of settings, tasks and evaluations, and the names of methods and
components. It says what may stand where; what needs the data, the models or two keys together is checked on reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.data.tasks_file import TaskSpec
from trace_transfer.evaluation.records import EvaluationFile, ScoreMatrix
from trace_transfer.evaluation.suite_file import EvaluationSpec
from trace_transfer.families.language import LAYER_COMPONENTS, OUTSIDE_COMPONENTS, FamilyFile
from trace_transfer.identification.records import DeltaFile, FisherFile, StabilityFile, WarmStartFile
from trace_transfer.patch.records import Verification
from trace_transfer.records import Strict, read_artefact
from trace_transfer.reporting.records import RunFile, StepFile, Summary
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.settings import Settings, settings_schema
from trace_transfer.study.methods import AXES, CHANGEABLE, METHODS, SECTIONS
from trace_transfer.study.run_file import ComparisonKeys, MethodKeys, RunKeys, RunTask, SweepKeys, TuningKeys
from trace_transfer.training.settings import StreamFile, StreamTask
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch

ARTEFACTS: dict[str, type[Strict]] = {
    kind.model_fields["format"].default: kind
    for kind in (
        CoreFile, LayerMatch, CorrespondenceFile, WarmStartFile, DeltaFile, FisherFile, StabilityFile, StreamFile,
        Verification, EvaluationFile, ScoreMatrix, RepresentationFile, StepFile, RunFile, Summary,
    )
}  # fmt: skip


def read_any(file: Path | str, kind: type[Strict] | None = None) -> Any:
    """Read a file of any of our formats, or of one of them; raises as `read_artefact`."""
    return read_artefact(file, kind or ARTEFACTS.values())


# ---- schemas

Schema = dict[str, Any]


def schema_of(file: str) -> Schema:
    """The schema of `run`, `tasks`, `stream`, `suite`, `rules`, or of a command's settings."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SCHEMAS[file](),
        "title": f"trace-transfer: {file}",
    }


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def _described(kind: type[BaseModel]) -> Schema:
    """The schema of a class whose docstring describes its keys, with the description at each key."""
    found = kind.model_json_schema()
    found["description"] = found["description"].partition("\n")[0]
    for one in reversed(kind.__mro__):
        _, _, told = cleandoc(vars(one).get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    ([a-z_, ]+): (.*(?:\n {5,}.*)*)", told, re.MULTILINE):
            for name in set(names.split(", ")) & set(found["properties"]):
                found["properties"][name]["description"] = " ".join(text.split())
    return found


def _section(kind: type[Settings]) -> Schema:
    """Settings as the flat section of a file."""
    profiles = {"profile": {"enum": list(kind.PROFILES)}} if len(kind.PROFILES) > 1 else {}
    return _object({**settings_schema(kind), **profiles})


def _run() -> Schema:
    sections = {name: _section(kind) for name, kind in SECTIONS.items()}
    sections["represent"]["properties"]["methods"] = _list({"type": "string"})
    own = settings_schema(MethodKeys) | {"like": {"enum": list(METHODS)}}
    own |= {name: sections[name] for name in CHANGEABLE}
    axis = {"anyOf": [{"type": "array"}, {"const": "all"}]}
    details = _object(settings_schema(SweepKeys) | {"values": axis}, ("values",))
    sweep: Schema = {"anyOf": [axis, details]}
    in_lists: Schema = {
        **sections,
        "tasks": _list(_described(RunTask)),
        "evaluations": _list(_described(EvaluationSpec)),
        "methods": _list({"anyOf": [{"enum": list(METHODS)}, _object(own, ("name", "like"))]}),
        "tuning": _section(TuningKeys),
        "comparisons": _list(_section(ComparisonKeys)),
        "sweeps": {"type": "object", "properties": dict.fromkeys(AXES, sweep), "additionalProperties": sweep},
    }
    keys = settings_schema(RunKeys)
    return _object({key: {**keys[key], **in_lists.get(key, {})} for key in keys}, ("target", "tasks", "methods"))


def _rules() -> Schema:
    found = FamilyFile.model_json_schema()
    for section, names in (("components", LAYER_COMPONENTS), ("outside", OUTSIDE_COMPONENTS)):
        rule = found["properties"][section]["additionalProperties"]
        found["properties"][section] = _object(dict.fromkeys(names, rule))  # names that an editor completes
    return found


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "run": _run,
    "tasks": lambda: _object({"tasks": _list(_described(TaskSpec))}, ("tasks",)),
    "stream": lambda: _object({"tasks": _list(_described(StreamTask))}, ("tasks",)),
    "suite": lambda: _object({"evaluations": _list(_described(EvaluationSpec))}, ("evaluations",)),
    "rules": _rules,
    **{name: partial(_section, kind) for name, kind in SECTIONS.items()},
}
