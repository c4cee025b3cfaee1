"""Reading and writing our JSON files: all of a file is checked, and every problem told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.evaluate.scores import EvaluationFile, RepresentationFile, ScoreMatrix
from trace_transfer.identify.records import DeltaFile, FisherFile, StabilityFile, WarmStartFile
from trace_transfer.patch.verification import Verification
from trace_transfer.records_base import Strict
from trace_transfer.report.run_record import RunFile, StepFile
from trace_transfer.report.summary import Summary
from trace_transfer.text_formats import read_json_object
from trace_transfer.train.records import StreamFile
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch

LONGEST_SHOWN = 60  # characters
ARTEFACTS: dict[str, type[Strict]] = {
    kind.model_fields["format"].default: kind
    for kind in (
        CoreFile,
        LayerMatch,
        CorrespondenceFile,
        WarmStartFile,
        DeltaFile,
        FisherFile,
        StabilityFile,
        StreamFile,
        Verification,
        EvaluationFile,
        ScoreMatrix,
        RepresentationFile,
        StepFile,
        RunFile,
        Summary,
    )
}


def read_artefact(path: Path | str, kind: type[Strict] | None = None) -> Any:
    """Read one of our JSON files and check all of it.

    Args:
        kind: the class expected; None takes whichever its `format` names.

    Raises:
        ArtefactError: not there, not JSON, of another format or version, or with wrong or unknown fields (all named).
    """
    file = Path(path)
    data = read_json_object(file, ArtefactError)
    found = data.get("format")
    expected = kind.model_fields["format"].default if kind else None
    if not isinstance(found, str) or found not in ARTEFACTS or (kind and found != expected):
        what = f"format {found!r:.60}" if found else "no 'format'"
        raise ArtefactError(f"{file}: {what}, expected {expected or ' or '.join(ARTEFACTS)}")
    if type(data.get("version")) is not int:
        what = f"version {data['version']!r:.60}" if "version" in data else "no 'version'"
        raise ArtefactError(f"{file}: {what}, expected {ARTEFACTS[found].model_fields['version'].default}")
    try:
        return ARTEFACTS[found].model_validate(data)
    except ValidationError as error:
        problems = [_problem(found, data) for found in error.errors()]
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        raise ArtefactError(f"{file}: {count}:\n" + listing(problems)) from error


def _problem(error: Any, data: Any) -> str:
    """Where it is, with the name of the entry that it is in; what was expected, and what was found if it is short."""
    place = ".".join(map(str, error["loc"]))
    names = []
    for step in error["loc"]:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            break  # a field that is missing, or one of pydantic's own
        if isinstance(data, dict) and isinstance(data.get("name"), str) and isinstance(step, int):
            names.append(data["name"])
    where = f"{place or '(file)'}" + (f" ({', '.join(names)})" if names else "")
    found = error["input"] if error["type"] not in ("missing", "extra_forbidden") else None
    told = f"; found {found!r}" if isinstance(found, (str, int, float)) and len(repr(found)) <= LONGEST_SHOWN else ""
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{told}"


def to_json(artefact: Strict) -> str:
    """The text of an artefact: one line per parameter or pair, so that files can be compared and searched by line."""
    data = artefact.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(artefact, CoreFile):
        data["transferred_from"] = data.get("transferred_from")
        for dumped, parameter in zip(data["parameters"], artefact.parameters, strict=True):
            dumped["score"] = parameter.score
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
