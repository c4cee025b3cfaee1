"""What a rules file says, checked and free of YAML: the vocabulary of components, sizes as expressions, and the tables.

A rules file may use the names of components below and no others, so that every family can be paired with every other
one. What is like an MLP is in its components: experts as principals, shared experts as satellites. What stands between
the residual stream and queries, keys or values (latent projections and their norms) is a satellite of what it leads to.

    expression = integer | name | expression (+ | - | * | //) expression | -expression | (expression)
    name       = a size defined above it in the file's `sizes:` table, or else an attribute of the config;
                 dots reach into nested configs (`text_config.head_dim`); false is 0 and true is 1

An expression is parsed by Python's grammar and walked over a whitelist of nodes; nothing is ever executed. Parsing
needs no config, so a bad expression is found when the file is read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from trace_transfer.errors import RulesError
from trace_transfer.models.sources import AXES

# Inside a layer, in the order in which the residual stream passes through them.
LAYER_COMPONENTS = MappingProxyType(
    {
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
)

# Outside the layers.
OUTSIDE_COMPONENTS = MappingProxyType(
    {
        "embedding": "token → residual stream",
        "embedding.position": "learned position → residual stream",
        "norm.final": "normalises the residual stream before the head",
        "head": "residual stream → logits",
    }
)


MAX_LENGTH = 200
_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_ALLOWED = "allowed are integers, names from the config, dots, + - * // and parentheses"


@dataclass(frozen=True)
class Expression:
    """A parsed expression; equal to another one if its text is equal."""

    text: str
    tree: ast.expr = field(compare=False, repr=False)

    def evaluate(self, lookup: Callable[[str], int]) -> int:
        """The value, with every name (dotted as written) resolved by `lookup`.

        Raises:
            RulesError: `lookup` does not know a name, or there is a division by zero.
        """
        try:
            return _evaluate(self.tree, lookup)
        except ZeroDivisionError:
            raise RulesError(f"'{self.text}' divides by zero") from None


def parse_expression(text: str) -> Expression:
    """Parse an expression.

    Raises:
        RulesError: it is not one; says which part of it is not allowed.
    """
    if len(text) > MAX_LENGTH:
        raise RulesError(f"an expression of {len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RulesError(f"'{text}' is not an arithmetic expression; {_ALLOWED}") from None
    _check(tree, text)
    return Expression(text, tree)


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return
        case ast.Name() | ast.Attribute():
            _dotted_name(node, text)
            return
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            _check(left, text)
            _check(right, text)
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, text)
            return
    found = ast.unparse(node)
    hint = " (divide integers with //)" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else ""
    raise RulesError(f"'{text}' holds '{found}', which is not allowed{hint}; {_ALLOWED}")


def _dotted_name(node: ast.expr, text: str) -> str:
    if isinstance(node, ast.Name):
        name = node.id
    elif isinstance(node, ast.Attribute):
        name = f"{_dotted_name(node.value, text)}.{node.attr}"
    else:
        raise RulesError(f"'{text}' holds '{ast.unparse(node)}' before a dot, which is not a name; {_ALLOWED}")
    if any(part.startswith("_") for part in name.split(".")):
        raise RulesError(f"'{text}' holds '{name}'; a name must not start with an underscore")
    return name


def _evaluate(node: ast.expr, lookup: Callable[[str], int]) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(op=op, left=left, right=right):
            return _OPERATORS[type(op)](_evaluate(left, lookup), _evaluate(right, lookup))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, lookup)
    return lookup(_dotted_name(node, ""))


class BrokenSizeError(RulesError):
    """A name stands for a size that could not be worked out, which has been reported already."""


@dataclass(frozen=True)
class ConfigLookup:
    """Resolves names: first the sizes worked out so far (None: a broken one), then the config."""

    config: Any
    sizes: Mapping[str, int | None] = field(default_factory=dict)

    def __call__(self, name: str) -> int:
        """The integer of that name.

        Raises:
            RulesError: there is none, or it is None or not an integer; names close matches.
            BrokenSizeError: it is a size that could not be worked out.
        """
        if name in self.sizes:
            size = self.sizes[name]
            if size is None:
                raise BrokenSizeError(f"the size '{name}' could not be worked out")
            return size
        value = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if isinstance(value, int):
            return int(value)
        if value is not None:
            raise RulesError(f"'{name}' is {value!r} in the config, not an integer")
        known = sorted({*self.sizes, *_config_names(self.config)} - {name})
        close = get_close_matches(name, known, 2, cutoff=0.75)
        hint = f" (close: {', '.join(close)})" if close else ""
        kind = getattr(self.config, "model_type", "this model")
        raise RulesError(f"'{name}' is not set in the config of {kind}{hint}")


def _config_names(config: Any) -> Sequence[str]:
    to_dict = getattr(config, "to_dict", None)
    return list(to_dict() if to_dict else vars(config))


def first_that_resolves(choices: Sequence[Expression], lookup: Callable[[str], int]) -> int:
    """The value of the first expression whose names are all set: how a config's missing value gets its default.

    Raises:
        RulesError: none does; gives the reason for each.
        BrokenSizeError: one needs a size that could not be worked out.
    """
    reasons = []
    for choice in choices:
        try:
            return choice.evaluate(lookup)
        except BrokenSizeError:
            raise
        except RulesError as error:
            reasons.append(str(error))
    raise RulesError("; ".join(dict.fromkeys(reasons)))


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
