"""What all files have in common: strict fields, the model they speak of, and the libraries that made them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel, ConfigDict, Field

from trace_transfer.errors import UserError

LIBRARIES = ("trace-transfer", "torch", "transformers", "numpy", "scipy")
TASK = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Range = tuple[int, int]


class Strict(BaseModel):
    """Frozen, and no field that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelIdentity(Strict):
    """Which model a file speaks of; `names_sha256` decides, the rest is for people."""

    id: str
    revision: str | None = None
    family: str
    model_type: str
    num_layers: int = Field(ge=1)
    num_parameters: int = Field(ge=1)
    num_elements: int = Field(ge=1)
    names_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def library_versions() -> dict[str, str]:
    """Versions of what made a file."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def require_task(name: str, what: str = "task") -> str:
    """The name of a task, as it may stand in a file and in its name.

    Raises:
        UserError: it may not.
    """
    if not re.fullmatch(TASK, name):
        raise UserError(f"{what} {name!r}: use letters, digits, '.', '_' and '-', a letter or digit first")
    return name
