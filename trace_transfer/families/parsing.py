"""One YAML rules file → one `FamilyFile`, with every problem of the file found in one go, each with its line.

Reads the file's text only: no config, no model. Grammar (`?` after a name: it may be absent, depending on the config):

    family: NAME                          model_types: [NAME, …]          extends: NAME (optional)
    layer: MODULE.PATH.{layer}            where layer n lives
    components: {COMPONENT: MEMBERS}      names relative to the layer     (null: not taken over from `extends:`);
                                          a segment `{n}` stands for any number
    outside:    {COMPONENT: MEMBERS}      whole names
    MEMBERS   = [MEMBER, …]  or  {members: [MEMBER, …], expand: false}
    MEMBER    = NAME[?]      or  {name: NAME[?], role: ROLE, rows | columns | depth: RANGE, shared: true,
                                  unless: NAME, head: EXPRESSION | false}
    RANGE     = [FROM, TO]   or  {every: N, from: FROM, to: TO}
    exclude:    [{name: WHOLE.NAME.{layer}.X, reason: TEXT}  or  {module: MODULE.PATH, reason: TEXT}, …]
    sizes:      {NAME: EXPRESSION  or  [EXPRESSION, …]}                   the first that the config can resolve
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trace_transfer.errors import RulesError
from trace_transfer.families.language import (
    LAYER_COMPONENTS,
    NUMBER,
    OUTSIDE_COMPONENTS,
    Component,
    Exclusion,
    Expression,
    FamilyFile,
    Location,
    Member,
    Part,
    Size,
    parse_expression,
)
from trace_transfer.models.sources import AXES
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


TOP_KEYS = ("family", "model_types", "extends", "layer", "components", "outside", "exclude", "sizes")
HOLE = "{layer}"
_SEGMENT = re.compile(r"[A-Za-z0-9_]+")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def parse_file(path: Path) -> tuple[FamilyFile | None, list[Problem]]:
    """Read one rules file; the table is None if the file has no usable `family:`."""
    reader = NodeReader(path)
    root = reader.compose()
    if root is None:
        return None, reader.problems
    family = _FileParser(reader).parse(root)
    return family, reader.problems


def default_role(pattern: str) -> str:
    """`bias` by the last segment (also `…_bias`), `norm` by the module before it (`…norm…`, `ln_1`), else `weight`."""
    segments = [segment for segment in pattern.split(".") if segment != NUMBER and not segment.isdecimal()]
    if segments[-1] == "bias" or segments[-1].endswith("_bias"):
        return "bias"
    module = segments[-2] if len(segments) > 1 else ""
    return "norm" if "norm" in module or module.startswith("ln_") else "weight"


@dataclass(frozen=True)
class _FileParser:
    reader: NodeReader

    def parse(self, root: MappingNode) -> FamilyFile | None:
        entries = self.reader.mapping(root, "the file", TOP_KEYS)
        values = {key: value for key, (_, value) in entries.items()}
        name = self._required_word(values, root, "family")
        extends = self._word(values["extends"], "extends") if "extends" in values else None
        if "extends" not in values:
            for key in ("layer", "components", "outside"):
                if key not in values:
                    self.reader.complain(root, f"'{key}:' is missing; expected it, or 'extends:' of a family with it")
        components = self._section(values.get("components"), "components", LAYER_COMPONENTS, OUTSIDE_COMPONENTS)
        outside = self._section(values.get("outside"), "outside", OUTSIDE_COMPONENTS, LAYER_COMPONENTS)
        tables = {**components, **outside}
        result = FamilyFile(
            name=name or "",
            model_types=self._model_types(values, root),
            extends=extends,
            layer=self._layer(values["layer"]) if "layer" in values else None,
            components={key: value for key, (value, _) in components.items()},
            outside={key: value for key, (value, _) in outside.items()},
            exclude=self._exclusions(values.get("exclude")),
            sizes=self._sizes(values.get("sizes")),
            location=self.reader.location(root),
            extends_location=self.reader.location(values.get("extends", root)),
            removals={key: location for key, (value, location) in tables.items() if value is None},
        )
        return result if name else None

    def _required_word(self, values: Mapping[str, Node], root: Node, key: str) -> str | None:
        if key in values:
            return self._word(values[key], key)
        self.reader.complain(root, f"'{key}:' is missing; expected the family's name")
        return None

    def _word(self, node: Node, what: str) -> str | None:
        text = self.reader.text(node, what)
        if text is not None and not _WORD.fullmatch(text):
            self.reader.complain(node, f"{what}: found '{text}', expected one word of letters, digits and _ . -")
            return None
        return text

    def _model_types(self, values: Mapping[str, Node], root: Node) -> tuple[str, ...]:
        if "model_types" not in values:
            self.reader.complain(root, "'model_types:' is missing; expected the model_type of each config it is for")
            return ()
        words = [self._word(node, "model_types") for node in self.reader.sequence(values["model_types"], "model_types")]
        return tuple(word for word in words if word)

    def _layer(self, node: Node) -> str | None:
        text = self.reader.text(node, "layer")
        if text is None:
            return None
        path = text.removesuffix("." + HOLE)
        if path == text or not self._is_path(path):
            self.reader.complain(node, f"layer: found '{text}', expected a module path that ends in .{HOLE}")
            return None
        return text

    @staticmethod
    def _is_path(text: str) -> bool:
        return all(_SEGMENT.fullmatch(segment) for segment in text.split("."))

    def _section(
        self, node: Node | None, what: str, here: Mapping[str, str], elsewhere: Mapping[str, str]
    ) -> dict[str, tuple[Component | None, Location]]:
        """`components:` or `outside:`; a removed component is None, a broken one is left out."""
        found: dict[str, tuple[Component | None, Location]] = {}
        if node is None:
            return found
        for name, (key_node, value) in self.reader.mapping(node, what).items():
            if name in elsewhere:
                other = "outside" if what == "components" else "components"
                self.reader.complain(key_node, f"{what}: '{name}' belongs under '{other}:'")
            elif name not in here:
                self.reader.complain(key_node, f"{what}: unknown component '{name}'; {suggestion(name, here)}")
            elif is_null(value):
                found[name] = (None, self.reader.location(key_node))
            else:
                found[name] = (self._component(name, key_node, value), self.reader.location(key_node))
        return found

    def _component(self, name: str, key_node: Node, value: Node) -> Component:
        expand, members = True, value
        if isinstance(value, MappingNode):
            entries = self.reader.mapping(value, name, ("members", "expand"))
            if "expand" in entries:
                expand = self.reader.boolean(entries["expand"][1], f"{name}: expand") is not False
            if "members" not in entries:
                self.reader.complain(value, f"{name}: 'members:' is missing; expected a list of names")
                return Component(name, (), expand, self.reader.location(key_node))
            members = entries["members"][1]
        parsed = [self._member(node, name) for node in self.reader.sequence(members, name)]
        found = tuple(member for member in parsed if member is not None)
        self._check_roles(name, found)
        return Component(name, found, expand, self.reader.location(key_node))

    def _check_roles(self, name: str, members: tuple[Member, ...]) -> None:
        """No two of one role, unless one may be absent: whether both ever are there, only a model's layers tell."""
        first: dict[str, Member] = {}
        for member in members:
            other = first.setdefault(member.role, member)
            if other is not member and not (other.conditional or member.conditional):
                text = (
                    f"{name}: '{other.pattern}' (line {other.location.line}) and '{member.pattern}' have the same role "
                    f"'{member.role}'; tell them apart with {{name: …, role: …}}"
                )
                self.reader.problems.append(Problem(member.location.path, member.location.line, text))

    def _member(self, node: Node, component: str) -> Member | None:
        location = self.reader.location(node)
        if not isinstance(node, MappingNode):
            pattern, optional = self._name(node, component)
            return Member(pattern, default_role(pattern), optional, None, location) if pattern else None
        entries = {key: value for key, (_, value) in self.reader.mapping(node, component, _MEMBER_KEYS).items()}
        if "name" not in entries:
            self.reader.complain(node, f"{component}: 'name:' is missing in a member")
            return None
        pattern, optional = self._name(entries["name"], component)
        role = self._word(entries["role"], f"{component}: role") if "role" in entries else None
        cuts = [(dim, word) for dim, word in enumerate(AXES) if word in entries]
        if len(cuts) > 1:
            words = " and ".join(f"'{word}:'" for _, word in cuts)
            self.reader.complain(
                node, f"{component}: a part has one of 'rows:', 'columns:' and 'depth:'; found {words}"
            )
        parts = [self._part(entries[word], dim, f"{component}: {word}") for dim, word in cuts]
        shared = "shared" in entries and self.reader.boolean(entries["shared"], f"{component}: shared") is True
        unless, head = self._unless(entries.get("unless"), component), self._head(entries.get("head"), component)
        if not pattern:
            return None
        role = role or default_role(pattern)
        return Member(pattern, role, optional, parts[0] if parts else None, location, shared, unless, head)

    def _unless(self, node: Node | None, component: str) -> str | None:
        if node is None:
            return None
        pattern, optional = self._name(node, f"{component}: unless")
        if optional:
            self.reader.complain(node, f"{component}: unless: '{pattern}?' ends in '?', which says nothing here")
        return pattern or None

    def _head(self, node: Node | None, component: str) -> Expression | Literal[False] | None:
        """The size of a head; False where the rules say that there is none."""
        if node is None:
            return None
        if not component.startswith("attention."):
            self.reader.complain(node, f"{component}: head: only members of 'attention.…' have heads")
            return None
        return False if is_false(node) else self.reader.expression(node, f"{component}: head")

    def _name(self, node: Node, what: str) -> tuple[str, bool]:
        """A member's name and whether it ends in `?`; the name is empty if it is not usable."""
        text = self.reader.text(node, what)
        if text is None:
            return "", False
        name = text.removesuffix("?")
        if HOLE in name:
            self.reader.complain(
                node, f"{what}: '{text}' holds {HOLE}; names under 'components:' start below 'layer:', and no name "
                "under 'outside:' has a layer"
            )  # fmt: skip
            return "", False
        if not all(segment == NUMBER or _SEGMENT.fullmatch(segment) for segment in name.split(".")):
            self.reader.complain(node, f"{what}: '{text}' is not a whole parameter name (letters, digits, _ and dots)")
            return "", False
        return name, name != text

    def _part(self, node: Node, dim: int, what: str) -> Part | None:
        if isinstance(node, SequenceNode) and len(node.value) == 2:
            start, stop = (self.reader.expression(item, what) for item in node.value)
            return Part(dim, start, stop) if start and stop else None
        if not isinstance(node, MappingNode):
            self.reader.complain(node, f"{what}: found {describe(node)}, expected [from, to] or {_EVERY_FORM}")
            return None
        keys = ("every", "from", "to")
        entries = self.reader.mapping(node, what, keys)
        if missing := [key for key in keys if key not in entries]:
            self.reader.complain(node, f"{what}: {', '.join(missing)} missing; expected {_EVERY_FORM}")
            return None
        every, start, stop = (self.reader.expression(entries[key][1], f"{what}: {key}") for key in keys)
        return Part(dim, start, stop, every) if every and start and stop else None

    def _exclusions(self, node: Node | None) -> tuple[Exclusion, ...]:
        if node is None:
            return ()
        return tuple(found for item in self.reader.sequence(node, "exclude") if (found := self._exclusion(item)))

    def _exclusion(self, node: Node) -> Exclusion | None:
        entries = {key: value for key, (_, value) in self.reader.mapping(node, "exclude", _EXCLUDE_KEYS).items()}
        if not isinstance(node, MappingNode):
            return None
        kinds = [key for key in ("name", "module") if key in entries]
        if len(kinds) != 1 or "reason" not in entries:
            self.reader.complain(node, "exclude: expected {name: …, reason: …} or {module: …, reason: …}")
            return None
        pattern = self.reader.text(entries[kinds[0]], f"exclude: {kinds[0]}")
        reason = self.reader.text(entries["reason"], "exclude: reason")
        if pattern is None or reason is None:
            return None
        if not self._is_path(pattern.replace(HOLE, "0")):
            self.reader.complain(node, f"exclude: '{pattern}' is not a whole name; its only hole may be {HOLE}")
            return None
        return Exclusion(pattern, kinds[0] == "module", reason, self.reader.location(node))

    def _sizes(self, node: Node | None) -> dict[str, Size]:
        sizes: dict[str, Size] = {}
        if node is None:
            return sizes
        for name, (key_node, value) in self.reader.mapping(node, "sizes").items():
            if not name.isidentifier() or name.startswith("_"):
                self.reader.complain(key_node, f"sizes: '{name}' cannot be used as a name in expressions")
                continue
            items = [value] if isinstance(value, ScalarNode) else self.reader.sequence(value, f"sizes: {name}")
            choices: list[Expression | None] = [self.reader.expression(item, f"sizes: {name}") for item in items]
            sizes[name] = Size(name, tuple(filter(None, choices)), self.reader.location(key_node))
        return sizes


_MEMBER_KEYS = ("name", "role", *AXES, "shared", "unless", "head")
_EXCLUDE_KEYS = ("name", "module", "reason")
_EVERY_FORM = "{every: n, from: a, to: b}"
