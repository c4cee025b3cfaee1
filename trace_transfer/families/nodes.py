"""YAML nodes that know their lines: typed reading which collects every problem instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trace_transfer.errors import RulesError
from trace_transfer.families.expressions import Expression, parse_expression
from trace_transfer.families.tables import Location
from trace_transfer.text_formats import MAX_YAML_BYTES, MalformedTextError, compose_yaml, read_text

_TAG = "tag:yaml.org,2002:"
_QUOTE_HINT = "; a name with '?' or '{layer}' inside [ ] or { } needs quotes"


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong at a line of a file."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{Location(self.path, self.line)}: {self.text}"


def suggestion(word: str, allowed: Collection[str]) -> str:
    """`did you mean 'x'?` if something is close, else all that is allowed."""
    close = get_close_matches(word, list(allowed), 1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(allowed)}"


@dataclass
class NodeReader:
    """Reads the nodes of one file; what is wrong goes to `problems` and the caller gets None or what is left."""

    path: Path
    problems: list[Problem] = field(default_factory=list)

    def location(self, node: Node) -> Location:
        return Location(self.path, node.start_mark.line + 1)

    def complain(self, node: Node | None, text: str) -> None:
        self.problems.append(Problem(self.path, node.start_mark.line + 1 if node else 1, text))

    def compose(self) -> MappingNode | None:
        """The file's top mapping, or None if it cannot be read, is not YAML, or is something else."""
        try:
            root = compose_yaml(read_text(self.path, RulesError, MAX_YAML_BYTES))
        except MalformedTextError as error:
            hint = _QUOTE_HINT if "'?'" in error.problem or "'{'" in error.problem else ""
            self.problems.append(Problem(self.path, error.line, f"not valid YAML: {error.problem}{hint}"))
            return None
        except RulesError as error:
            self.complain(None, str(error).removeprefix(f"{self.path}: "))
            return None
        if not isinstance(root, MappingNode):
            self.complain(root, f"found {describe(root)}, expected a mapping with 'family:', 'layer:', 'components:' …")
            return None
        return root

    def mapping(self, node: Node, what: str, allowed: Collection[str] | None = None) -> dict[str, tuple[Node, Node]]:
        """Key → (key node, value node); complains about other kinds of node, duplicate keys and unknown keys."""
        entries: dict[str, tuple[Node, Node]] = {}
        if not isinstance(node, MappingNode):
            self.complain(node, f"{what}: found {describe(node)}, expected a mapping")
            return entries
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None:
                self.complain(key_node, f"{what}: found {describe(key_node)} as a key, expected a word")
            elif key in entries:
                first = entries[key][0].start_mark.line + 1
                self.complain(key_node, f"{what}: '{key}' stands here a second time (first at line {first})")
            elif allowed is not None and key not in allowed:
                self.complain(key_node, f"{what}: unknown key '{key}'; {suggestion(key, allowed)}")
            else:
                entries[key] = (key_node, value_node)
        return entries

    def sequence(self, node: Node, what: str) -> list[Node]:
        """The items of a non-empty list."""
        if not isinstance(node, SequenceNode):
            self.complain(node, f"{what}: found {describe(node)}, expected a list")
            return []
        if not node.value:
            self.complain(node, f"{what}: the list is empty")
        return list(node.value)

    def text(self, node: Node, what: str) -> str | None:
        """A non-empty string."""
        if isinstance(node, ScalarNode) and node.tag == _TAG + "str" and node.value.strip():
            return str(node.value)
        self.complain(node, f"{what}: found {describe(node)}, expected a text")
        return None

    def boolean(self, node: Node, what: str) -> bool | None:
        """`true` or `false`."""
        if isinstance(node, ScalarNode) and node.tag == _TAG + "bool":
            return node.value.lower() in ("true", "yes", "on")
        self.complain(node, f"{what}: found {describe(node)}, expected true or false")
        return None

    def expression(self, node: Node, what: str) -> Expression | None:
        """An integer or an arithmetic expression."""
        if not isinstance(node, ScalarNode) or node.tag not in (_TAG + "str", _TAG + "int"):
            self.complain(node, f"{what}: found {describe(node)}, expected an integer or an arithmetic expression")
            return None
        try:
            return parse_expression(node.value)
        except RulesError as error:
            self.complain(node, f"{what}: {error}")
            return None


def is_null(node: Node) -> bool:
    """True for `null`, `~` and nothing at all."""
    return isinstance(node, ScalarNode) and node.tag == _TAG + "null"


def is_false(node: Node) -> bool:
    """True for `false`, `no` and `off`."""
    return isinstance(node, ScalarNode) and node.tag == _TAG + "bool" and node.value.lower() in ("false", "no", "off")


def describe(node: Node | None) -> str:
    """What a node is, for messages."""
    if node is None or is_null(node):
        return "nothing"
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    kind = node.tag.removeprefix(_TAG)
    return f"'{node.value}'" if kind == "str" else f"{node.value} ({kind})"
