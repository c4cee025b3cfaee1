"""What a rules file says: the vocabulary of components, and the grammar, of which checks and the JSON Schema are made.

A rules file may use the names of components below and no others, so that every family can be paired with every other
one. What is like an MLP is in its components: experts as principals, shared experts as satellites. What stands between
the residual stream and queries, keys or values (latent projections and their norms) is a satellite of what it leads to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic.json_schema import SkipJsonSchema

from trace_transfer.errors import RulesError
from trace_transfer.families.expressions import Expression, parse_expression
from trace_transfer.models.sources import AXES

# Inside a layer, in the order in which the residual stream passes through them.
LAYER_COMPONENTS = {
    "norm.pre_attention": "normalises the residual stream before it enters attention",
    "attention.query": "residual stream → queries",
    "attention.key": "residual stream → keys",
    "attention.value": "residual stream → values",
    "attention.output": "attended values → residual stream",
    "norm.post_attention": "normalises what attention adds, before it is added",
    "norm.pre_mlp": "normalises the residual stream before it enters the MLP",
    "mlp.router": "residual stream → how much each expert counts",
    "mlp.gate": "residual stream → the activated factor of a gated MLP",
    "mlp.up": "residual stream → the MLP's inner width",
    "mlp.down": "the MLP's inner width → residual stream",
    "norm.post_mlp": "normalises what the MLP adds, before it is added",
}

# Outside the layers.
OUTSIDE_COMPONENTS = {
    "embedding": "token → residual stream",
    "embedding.position": "learned position → residual stream",
    "norm.final": "normalises the residual stream before the head",
    "head": "residual stream → logits",
}
SECTIONS = {"components": LAYER_COMPONENTS, "outside": OUTSIDE_COMPONENTS}  # of a rules file

NUMBER = "{n}"  # a segment of a member's name that stands for any number
HOLE = "{layer}"
PLACE, NAME, PLACES = "\0", "\1", "\2"  # keys that no YAML file has: where something is written, and under which name

if TYPE_CHECKING:
    LayerComponent = str
    OutsideComponent = str
else:
    LayerComponent, OutsideComponent = Literal[tuple(LAYER_COMPONENTS)], Literal[tuple(OUTSIDE_COMPONENTS)]


@dataclass(frozen=True, order=True)
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


def _path(segment: str, end: str = "") -> str:
    return rf"^{segment}(\.{segment})*{end}$"


def _expression(value: Any) -> Expression:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError("expected an integer or an arithmetic expression")
    try:
        return parse_expression(str(value))
    except RulesError as error:
        raise ValueError(str(error)) from error


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
LayerPath = Annotated[str, Field(pattern=_path(r"\w+", r"\.\{layer\}"))]
TensorName = Annotated[str, Field(pattern=_path(r"(\w+|\{n\})", r"\??"))]
ExcludedName = Annotated[str, Field(pattern=_path(r"(\w+|\{layer\})"))]
Value = Annotated[Expression, PlainValidator(_expression, json_schema_input_type=int | str)]
No = Literal[False]
Head = Annotated[
    Expression | No,
    PlainValidator(lambda one: one is not False and _expression(one), json_schema_input_type=int | str | No),
]


# ---- what is written


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class _Written(_Rule):
    location: SkipJsonSchema[Location] = Field(alias=PLACE)


class Span(_Rule):
    """Indices [from, to), of every block of so many; without `every` of the whole tensor."""

    every: Value | None = None
    start: Value = Field(alias="from")
    stop: Value = Field(alias="to")


def _span(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2:
        return {"from": value[0], "to": value[1]}
    if isinstance(value, dict):
        return value
    raise ValueError("expected [from, to] or {every: n, from: a, to: b}")


SomeOf = Annotated[Span, BeforeValidator(_span, json_schema_input_type=list[int | str] | Span)]


@dataclass(frozen=True)
class Part:
    """A span of rows (`dim` 0), columns (1) or depth (2) of a fused tensor."""

    dim: int
    span: Span

    def __str__(self) -> str:
        block = f" of every {self.span.every.text}" if self.span.every else ""
        return f"{AXES[self.dim]} [{self.span.start.text}, {self.span.stop.text}]{block}"


class Member(_Written):
    """One tensor of a component: its name is relative to the layer, or the whole name outside the layers.

    A name that ends in `?` may be absent. One with `{n}` names several tensors of a layer, which are alike: of one
    role, or all of them principals. The role tells the members of one component apart and finds the same one in another
    family. `shared` means that it serves other components as well. `unless` is a tensor (named likewise) instead of
    which it stands: it is no member where that one is. `head` is the size of an attention head in it, False if it has
    none; None: as the config."""

    name: TensorName
    said_role: Word | None = Field(None, alias="role")
    rows: SomeOf | None = None
    columns: SomeOf | None = None
    depth: SomeOf | None = None
    shared: bool = False
    unless: Annotated[str, Field(pattern=_path(r"(\w+|\{n\})"))] | None = None
    head: Head | None = None

    @model_validator(mode="after")
    def _is_cut_one_way(self) -> Member:
        if len(cuts := [f"'{axis}:'" for axis in AXES if getattr(self, axis) is not None]) > 1:
            raise ValueError(f"a part has one of 'rows:', 'columns:' and 'depth:'; found {' and '.join(cuts)}")
        return self

    @cached_property
    def pattern(self) -> str:
        return self.name.removesuffix("?")

    @property
    def optional(self) -> bool:
        return self.name.endswith("?")

    @cached_property
    def role(self) -> str:
        return self.said_role or default_role(self.pattern)

    @cached_property
    def part(self) -> Part | None:
        spans = ((dim, getattr(self, axis)) for dim, axis in enumerate(AXES))
        return next((Part(dim, span) for dim, span in spans if span is not None), None)


def default_role(pattern: str) -> str:
    """`bias` by the last segment (also `…_bias`), `norm` by the module before it (`…norm…`, `ln_1`), else `weight`."""
    segments = [segment for segment in pattern.split(".") if segment != NUMBER and not segment.isdecimal()]
    if segments[-1] == "bias" or segments[-1].endswith("_bias"):
        return "bias"
    module = segments[-2] if len(segments) > 1 else ""
    return "norm" if "norm" in module or module.startswith("ln_") else "weight"


def _items(value: Any, short: str | None = None) -> Any:
    """Items of a list with their lines; an item may be written as the value of the `short` key alone."""
    if not isinstance(value, Located):
        return value
    items = [one if short is None or isinstance(one, dict) else {short: one} for one in value]
    places = zip(items, value.places, strict=True)
    return [{**one, PLACE: place} if isinstance(one, dict) else one for one, place in places]


def _entries(value: Any, short: str) -> Any:
    """Entries of a table with their names and lines; an entry may be written as the value of the `short` key alone."""
    if not isinstance(value, Table):
        return value
    entries = {name: one if isinstance(one, dict) else {short: one} for name, one in value.items() if one is not None}
    return {**value, **{name: {**one, PLACE: value.places[name], NAME: name} for name, one in entries.items()}}


def _sizes(value: Any) -> Any:
    if isinstance(value, Table):
        value.update({name: one if isinstance(one, list) else [one] for name, one in value.items()})
    return _entries(value, "choices")


class Component(_Written):
    """Members that do one thing together; the first that a layer has is its principal, the others its satellites."""

    name: SkipJsonSchema[str] = Field(alias=NAME)
    members: Annotated[
        list[Member],
        MinLen(1),
        BeforeValidator(partial(_items, short="name"), json_schema_input_type=list[str | Member]),
    ]
    expand: bool = True


class Exclusion(_Written):
    """Tensors that take no part: those of a whole name, or all of a module."""

    name: ExcludedName | None = None
    module: ExcludedName | None = None
    reason: str

    @model_validator(mode="after")
    def _names_one(self) -> Exclusion:
        if (self.name is None) == (self.module is None):
            raise ValueError("expected {name: …, reason: …} or {module: …, reason: …}")
        return self

    @property
    def pattern(self) -> str:
        return self.name or self.module or ""


class Size(_Written):
    """A name for a size: the first of the choices whose names the config sets."""

    name: str = Field(alias=NAME, pattern=r"^[A-Za-z]\w*$")
    choices: Annotated[list[Value], MinLen(1)]


_components = partial(_entries, short="members")
Written = Annotated[list[str | Member], MinLen(1)] | Component | None
Values = int | str | list[int | str]


class FamilyFile(_Written):
    """One rules file; a component of None is one that `extends:` shall not bring in."""

    places: SkipJsonSchema[dict[str, Location]] = Field(alias=PLACES)  # of its keys and its components
    name: Word = Field(alias="family")
    model_types: Annotated[list[Word], MinLen(1)]
    extends: Word | None = None
    layer: LayerPath | None = None
    components: Annotated[
        dict[LayerComponent, Component | None],
        BeforeValidator(_components, json_schema_input_type=dict[LayerComponent, Written]),
    ] = {}
    outside: Annotated[
        dict[OutsideComponent, Component | None],
        BeforeValidator(_components, json_schema_input_type=dict[OutsideComponent, Written]),
    ] = {}
    exclude: Annotated[list[Exclusion], BeforeValidator(_items, json_schema_input_type=list[Exclusion])] = []
    sizes: Annotated[dict[str, Size], BeforeValidator(_sizes, json_schema_input_type=dict[str, Values])] = {}


class Table(dict[str, Any]):
    """A mapping of a YAML file that knows the line of each key."""

    places: dict[str, Location]


class Located(list[Any]):
    """A list of a YAML file that knows the line of each item."""

    places: list[Location]


@dataclass(frozen=True)
class Family:
    """An architecture's rules, once `extends:` is resolved. `layer` is the module path of a layer with its one hole."""

    name: str
    model_types: Sequence[str]
    layer: str
    components: Mapping[str, Component]
    outside: Mapping[str, Component]
    exclude: tuple[Exclusion, ...]
    sizes: tuple[Size, ...]
    location: Location

    @property
    def layer_path(self) -> str:
        """The module path of the list of layers: `model.layers`."""
        return self.layer.removesuffix("." + HOLE)
