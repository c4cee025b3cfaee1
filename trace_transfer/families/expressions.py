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
from typing import Any

from trace_transfer.errors import RulesError

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
        try:
            return _value(self.tree, lookup)
        except ZeroDivisionError:
            raise RulesError(f"'{self.text}' divides by zero") from None


def parse_expression(text: str) -> Expression:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _value(tree, lambda name: 1)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RulesError(f"'{text}' is not an arithmetic expression; {_ALLOWED}") from error
    except ZeroDivisionError:
        pass  # with these values
    return Expression(text, tree)


def _value(node: ast.expr, lookup: Callable[[str], int]) -> int:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            if all(part.isidentifier() and not part.startswith("_") for part in name.split(".")):
                return lookup(name)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, lookup), _value(right, lookup))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, lookup)
    raise ValueError(ast.unparse(node))


@dataclass(frozen=True)
class ConfigLookup:
    """Resolves names: first the sizes worked out so far, then the config."""

    config: Any
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, name: str) -> int:
        value = self.sizes.get(name)
        if value is None:
            value = self.config
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if isinstance(value, int):
            return int(value)
        if value is not None:
            raise RulesError(f"'{name}' is {value!r} in the config, not an integer")
        raise RulesError(f"'{name}' is not set in the config of {self.config.model_type}")


def first_that_resolves(choices: Sequence[Expression], lookup: Callable[[str], int]) -> int:
    """The value of the first expression whose names are all set: how a config's missing value gets its default."""
    reasons = []
    for choice in choices:
        try:
            return choice.evaluate(lookup)
        except RulesError as error:
            reasons.append(str(error))
    raise RulesError("; ".join(dict.fromkeys(reasons)))
