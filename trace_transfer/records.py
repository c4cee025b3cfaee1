"""The JSON files that steps hand to each other: strict fields, the model they speak of, the libraries that made them.

Each folder has the records of its own job. All of a file is checked on reading, and every problem told at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trace_transfer.errors import ArtefactError, TraceTransferError, UserError, listing
from trace_transfer.printable import is_name
from trace_transfer.text_formats import read_json_object

LONGEST_SHOWN = 60  # characters
LIBRARIES = ("trace-transfer", "torch", "transformers", "numpy", "scipy")
TASK = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Range = tuple[int, int]
Fields = TypeVar("Fields")


def _one_line(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{ascii(text)[:LONGEST_SHOWN]} has line breaks or control characters, expected one line")
    return text


# What stands in tables, pages and logs.
Name = Annotated[str, AfterValidator(_one_line), "a text of one line"]


class Strict(BaseModel):
    """Frozen, and no field that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def plain(self) -> dict[str, Any]:
        """What its file holds; fields that are None are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def opened(self, file: Path) -> None:
        """Told where it was read from, for what lies beside it."""


class ModelIdentity(Strict):
    """Which model a file speaks of; `names_sha256` decides, the rest is for people."""

    id: Name
    revision: str | None = None
    family: Name
    model_type: Name
    num_layers: int = Field(ge=1)
    num_parameters: int = Field(ge=1)
    num_elements: int = Field(ge=1)
    names_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def model_line(model: ModelIdentity) -> str:
    """A model in a heading."""
    return f"{model.id} ({model.family}, {model.num_layers} layers)"


@cache
def library_versions() -> dict[str, str]:
    """Versions of what made a file."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def require_task(name: str, what: str = "task") -> str:
    """The name of a task, if it may stand in a file and in its name; a UserError if it may not."""
    if not re.fullmatch(TASK, name):
        raise UserError(f"{what} {name!r}: use letters, digits, '.', '_' and '-', a letter or digit first")
    return name


def read_artefact(path: Path | str, kind: type[Strict] | Iterable[type[Strict]]) -> Any:
    """Read one of our JSON files and check all of it; an ArtefactError names all that is wrong with it.

    Of several kinds it is read as the one that its `format` names."""
    file = Path(path)
    data = read_json_object(file, ArtefactError)
    found = data.get("format")
    kinds = {one.model_fields["format"].default: one for one in ([kind] if isinstance(kind, type) else kind)}
    if not isinstance(found, str) or found not in kinds:
        what = f"format {found!r:.60}" if found else "no 'format'"
        raise ArtefactError(f"{file}: {what}, expected {' or '.join(kinds)}")
    if type(data.get("version")) is not int:
        what = f"version {data['version']!r:.60}" if "version" in data else "no 'version'"
        raise ArtefactError(f"{file}: {what}, expected {kinds[found].model_fields['version'].default}")
    record = checked(file, data, kinds[found], ArtefactError)
    record.opened(file)
    return record


def read_fields(file: Path, kind: type[Fields], error: type[TraceTransferError] = ArtefactError) -> Fields:
    """Read a JSON file that helps this program alone, or another library's, and has no format of its own, as a class
    of fields: one of pydantic's or a dataclass."""
    return checked(file, read_json_object(file, error), kind, error)


def checked(file: Path, data: Mapping[str, Any], kind: type[Fields], error: type[TraceTransferError]) -> Fields:
    """What a file says as a class of fields; raises as `read_fields`."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as found:
        told = found.errors()
        inner = {error["loc"][:-depth] for error in told for depth in range(1, len(error["loc"]) + 1)}
        # A list that is too short since none of its entries can be used is no problem of its own.
        told = [error for error in told if error["type"] != "too_short" or error["loc"] not in inner]
        problems = [_problem(one, data) for one in told]
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        raise error(f"{file}: {count}:\n" + listing(problems)) from found


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
    """The text of an artefact: one line per tensor or pair, so that files can be compared and searched by line."""
    data = artefact.plain()
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
