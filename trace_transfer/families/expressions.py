"""Sizes in rules files: integer arithmetic over names from a model's config.

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
from typing import Any

from trace_transfer.errors import RulesError

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
