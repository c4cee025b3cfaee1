"""The checked tables that a rules file becomes: what the other modules work on, free of YAML.

`FamilyFile` is one file as written; `Family` is what it means once `extends:` is resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trace_transfer.families.expressions import Expression
from trace_transfer.models.sources import AXES

NUMBER = "{n}"  # a segment of a member's name that stands for any number


@dataclass(frozen=True)
class Location:
    """A line of a rules file; `str()` gives `path:line` for messages."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{display_path(self.path)}:{self.line}"

    @property
    def short(self) -> str:
        """`llama.yaml:9`: independent of where the file lies."""
        return f"{self.path.name}:{self.line}"


def display_path(path: Path) -> str:
    """The path as the user would type it: relative to the working directory if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


@dataclass(frozen=True)
class Part:
    """A range of rows (`dim` 0), columns (1) or depth (2) of a fused tensor: [start, stop), of every block.

    `every` is the size of a block; None is one block.
    """

    dim: int
    start: Expression
    stop: Expression
    every: Expression | None = None

    def __str__(self) -> str:
        block = f" of every {self.every.text}" if self.every else ""
        return f"{AXES[self.dim]} [{self.start.text}, {self.stop.text}]{block}"


@dataclass(frozen=True)
class Member:
    """One parameter of a component; `pattern` is relative to the layer, or the whole name outside the layers.

    A pattern with `{n}` names several parameters of a layer, which are alike: of one role, or all of them principals.
    `role` tells the members of one component apart and finds the same one in another family. `shared` means that it
    serves other components as well. `unless` is a parameter (named like `pattern`) instead of which it stands: it is no
    member where that one is. `head` is the size of an attention head in it, False if it has none; None: as the config.
    """

    pattern: str
    role: str
    optional: bool
    part: Part | None
    location: Location
    shared: bool = False
    unless: str | None = None
    head: Expression | Literal[False] | None = None

    @property
    def conditional(self) -> bool:
        """Whether a layer may lack it."""
        return self.optional or self.unless is not None


@dataclass(frozen=True)
class Component:
    """Members that do one thing together; the first that a layer has is its principal, the others its satellites."""

    name: str
    members: tuple[Member, ...]
    expand: bool
    location: Location


@dataclass(frozen=True)
class Exclusion:
    """Parameters that take no part: those of a whole-name pattern, or all of a module."""

    pattern: str
    whole_module: bool
    reason: str
    location: Location


@dataclass(frozen=True)
class Size:
    """A name for a size: the first of the choices whose names the config sets."""

    name: str
    choices: tuple[Expression, ...]
    location: Location


@dataclass(frozen=True)
class FamilyFile:
    """One rules file as written; a component of None is one that `extends:` shall not bring in."""

    name: str
    model_types: tuple[str, ...]
    extends: str | None
    layer: str | None
    components: Mapping[str, Component | None]
    outside: Mapping[str, Component | None]
    exclude: tuple[Exclusion, ...]
    sizes: Mapping[str, Size]
    location: Location
    extends_location: Location
    removals: Mapping[str, Location]


@dataclass(frozen=True)
class Family:
    """An architecture's rules. `layer` is the module path of a layer with its one hole: `model.layers.{layer}`."""

    name: str
    model_types: tuple[str, ...]
    layer: str
    components: Mapping[str, Component]
    outside: Mapping[str, Component]
    exclude: tuple[Exclusion, ...]
    sizes: tuple[Size, ...]
    location: Location

    @property
    def layer_path(self) -> str:
        """The module path of the list of layers: `model.layers`."""
        return self.layer.removesuffix(".{layer}")

    @property
    def num_components(self) -> int:
        return len(self.components) + len(self.outside)
