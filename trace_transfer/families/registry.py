"""Rules files → `FamilyRegistry`: which rules each `model_type` has, with `extends:` resolved.

Reads: the shipped rules and the user's own file, files or directory; their text only, no config, no model. Everything
is checked before anything is returned, and all problems of all files are raised together, each with its line. The
grammar is `language.FamilyFile`; what may be written short:

    MEMBERS = [MEMBER, …]  or  {members: [MEMBER, …], expand: false}
    MEMBER  = NAME         or  {name: NAME, role: ROLE, rows: RANGE, …}
    RANGE   = [FROM, TO]   or  {every: N, from: FROM, to: TO}
    SIZE    = EXPRESSION   or  [EXPRESSION, …]               the first that the config can resolve
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trace_transfer.errors import RulesError, listing
from trace_transfer.families.language import (
    LAYER_COMPONENTS,
    OUTSIDE_COMPONENTS,
    PLACE,
    PLACES,
    Component,
    Exclusion,
    Family,
    FamilyFile,
    Located,
    Location,
    Member,
    Span,
    Table,
)
from trace_transfer.models.sources import AXES
from trace_transfer.text_formats import MAX_YAML_BYTES, MalformedTextError, compose_yaml, read_text

_QUOTE_HINT = "; a name with '?' or '{layer}' inside [ ] or { } needs quotes"
SECTIONS = {"components": LAYER_COMPONENTS, "outside": OUTSIDE_COMPONENTS}
RULES: dict[str, type[BaseModel]] = {"components": Component, "outside": Component, "exclude": Exclusion}
SHORT = ("members", "choices", "name", "[key]", *map(chr, range(3)))  # steps that say nothing to a reader


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong at a line of a file."""

    location: Location
    text: str

    def __str__(self) -> str:
        return f"{self.location}: {self.text}"


def suggestion(word: str, allowed: Collection[str]) -> str:
    """`did you mean 'x'?` if something is close, else all that is allowed."""
    close = get_close_matches(word, list(allowed), 1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(allowed)}"


def parse_file(path: Path) -> tuple[FamilyFile | None, list[Problem]]:
    """Read one rules file; None where there are problems."""
    reader = _Reader(path)
    found = reader.read()
    return (None if reader.problems else found), reader.problems


@dataclass
class _Reader:
    """Reads one file; what is wrong goes to `problems`."""

    path: Path
    problems: list[Problem] = field(default_factory=list)

    def read(self) -> FamilyFile | None:
        try:
            root = compose_yaml(read_text(self.path, RulesError, MAX_YAML_BYTES))
        except MalformedTextError as error:
            hint = _QUOTE_HINT if "'?'" in error.problem or "'{'" in error.problem else ""
            self._complain(error.line or 1, f"not valid YAML: {error.problem}{hint}")
            return None
        except RulesError as error:
            self._complain(1, str(error).removeprefix(f"{self.path}: "))
            return None
        table = self._plain(root) if root else None
        if not isinstance(table, Table):
            self._complain(1, f"found {_describe(table)}, expected a mapping with 'family:', 'layer:', 'components:' …")
            return None
        places = dict(table.places)
        for section in SECTIONS:
            places |= written.places if isinstance(written := table.get(section), Table) else {}
        first = min(places.values(), default=Location(self.path, 1))
        try:
            return FamilyFile.model_validate({**table, PLACE: first, PLACES: places})
        except ValidationError as error:
            for one in error.errors():
                self._tell(one, table, first)
            return None

    def _complain(self, line: int, text: str) -> None:
        self.problems.append(Problem(Location(self.path, line), text))

    def _place(self, node: Node) -> Location:
        return Location(self.path, node.start_mark.line + 1)

    def _plain(self, node: Node) -> Any:
        """What a node says; lists and mappings with the lines of what is in them."""
        if isinstance(node, SequenceNode):
            items = Located(self._plain(item) for item in node.value)
            items.places = [self._place(item) for item in node.value]
            return items
        if isinstance(node, ScalarNode):
            return SafeConstructor().construct_object(node)
        table = Table()
        table.places = {}
        for key, value in node.value if isinstance(node, MappingNode) else ():
            table[key.value], table.places[key.value] = self._plain(value), self._place(key)
        return table

    def _tell(self, error: Any, table: Table, first: Location) -> None:
        """One problem of pydantic's, at the line of what it is about."""
        value: Any = table
        place, steps = first, error["loc"]
        for step in steps:
            inside = isinstance(value, Table) and step in value
            if inside or (isinstance(value, Located) and isinstance(step, int)):
                place, value = value.places[step], value[step]  # one written short stays where it is
        names = [str(step) for step in steps if step not in SHORT and isinstance(step, str)]
        told, cause = error["msg"], error.get("ctx", {}).get("error")
        if error["type"] == "missing":
            names, told = names[: len(names) - (steps[-1] == names[-1])], f"'{steps[-1]}:' is missing"
        if error["type"] == "extra_forbidden":
            rule = Span if set(steps[:-1]) & set(AXES) else Member if "members" in steps else RULES.get(str(steps[0]))
            fields = (rule if rule and len(steps) > 1 else FamilyFile).model_fields.items()
            keys = [one.alias or name for name, one in fields if (one.alias or name).isprintable()]
            told = f"unknown key; {suggestion(str(steps[-1]), keys)}"
        elif error["type"] == "literal_error" and names[-1] in LAYER_COMPONENTS.keys() | OUTSIDE_COMPONENTS.keys():
            told = f"belongs under '{'outside' if names[-1] in OUTSIDE_COMPONENTS else 'components'}:'"
        elif error["type"] == "literal_error":
            told = f"unknown component; {suggestion(names[-1], SECTIONS.get(names[0], LAYER_COMPONENTS))}"
        elif error["type"] not in ("missing", "too_short"):
            told = f"found {_describe(value)}, {cause or told}" if str(cause or "expected").startswith("exp") else cause
        self._complain(place.line, ": ".join([*names, str(told)]))


def _describe(value: Any) -> str:
    """What a value is, for messages."""
    if value is None or isinstance(value, (dict, list)):
        return "nothing" if value is None else "a mapping" if isinstance(value, dict) else "a list"
    return f"'{value}'" if isinstance(value, str) else f"{str(value).lower()} ({type(value).__name__})"


@dataclass(frozen=True)
class FamilyRegistry:
    """All families that can be used, by name, and the family of each `model_type`."""

    families: Mapping[str, Family]
    by_model_type: Mapping[str, Family]

    def for_model_type(self, model_type: str) -> Family:
        """The rules for a config's `model_type`."""
        if model_type in self.by_model_type:
            return self.by_model_type[model_type]
        close = get_close_matches(model_type, self.families, 1, cutoff=0.5)
        hint = f"; if it names its tensors as '{close[0]}' does, 'extends: {close[0]}' is all" if close else ""
        raise RulesError(
            f"no rules file is for model_type '{model_type}' (there are rules for: "
            f"{', '.join(sorted(self.by_model_type))}).\n`trace-transfer rules draft` with this model writes "
            f"{model_type}.yaml, a draft from the family whose names are most like its own{hint}. Look through it, and "
            f"pass it with --rules {model_type}.yaml."
        )


def shipped_rules() -> Path:
    """The directory of the rules that come with the package: inside a wheel, or at the top of the repository."""
    package = Path(__file__).parent.parent
    inside = package / "shipped_rules"
    return inside if inside.is_dir() else package.parent / "rules"


def load_families(extra: Path | Sequence[Path] | None = None) -> FamilyRegistry:
    """Read the shipped rules and the user's (`extra`: a file, a directory of *.yaml, or several of either).

    A user's family replaces the shipped one of its name, and takes over every `model_type` that it lists. `extends:`
    looks among the user's families first and then among the shipped ones; a family that extends its own name means
    the shipped one. Shipped families extend shipped families only.

    Raises:
        RulesError: a file cannot be read or is wrong; lists all problems of all files with their lines.
    """
    extras = [] if extra is None else [extra] if isinstance(extra, Path) else list(extra)
    shipped, found = _read_shipped(shipped_rules())
    problems = list(found)
    own = _read_layer(extras, problems)
    resolver = _Resolver(own, shipped, problems)
    shipped_families = {name: resolver.resolve(file, own=False) for name, file in shipped.items()}
    own_families = {name: resolver.resolve(file, own=True) for name, file in own.items()}
    if problems:
        unique = sorted(set(problems))
        count = f"{len(unique)} problem" + ("" if len(unique) == 1 else "s")
        raise RulesError(f"{count} in rules files:\n{listing([str(one) for one in unique])}")
    by_model_type: dict[str, Family] = {}
    for family in [*shipped_families.values(), *own_families.values()]:
        if family.name not in own_families or family is own_families[family.name]:
            by_model_type.update(dict.fromkeys(family.model_types, family))
    return FamilyRegistry({**shipped_families, **own_families}, by_model_type)


def rules_files(path: Path) -> list[Path]:
    """The rules files that a path names: itself, or the *.yaml and *.yml in a directory."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.suffix in (".yaml", ".yml")) if path.is_dir() else []
    if not found:
        what = "has no *.yaml file" if path.is_dir() else "does not exist"
        raise RulesError(f"rules: {path} {what}; expected a rules file, or a directory with rules files")
    return found


@cache
def _read_shipped(directory: Path) -> tuple[dict[str, FamilyFile], tuple[Problem, ...]]:
    """Once in a process: the files of the package do not change, and reading them takes longer than using them."""
    problems: list[Problem] = []
    return _read_layer([directory], problems), tuple(problems)


def _read_layer(paths: Iterable[Path], problems: list[Problem]) -> dict[str, FamilyFile]:
    """All files of the shipped rules, or of the user's; two of them must not claim one name or one `model_type`."""
    families: dict[str, FamilyFile] = {}
    owners: dict[str, FamilyFile] = {}
    for path in dict.fromkeys(file for given in paths for file in rules_files(given)):
        family, found = parse_file(path)
        problems += found
        if family is None:
            continue
        other = families.setdefault(family.name, family)
        if other is not family:
            problems.append(Problem(family.location, f"family '{family.name}' is also in {other.location}"))
            continue
        for kind in family.model_types:
            other = owners.setdefault(kind, family)
            if other is not family:
                text = f"model_type '{kind}' is also claimed by '{other.name}' ({other.location})"
                problems.append(Problem(family.location, text))
    return families


NOTHING = Family("", (), "", {}, {}, (), (), Location(Path(), 0))


@dataclass(frozen=True)
class _Resolver:
    """Turns `FamilyFile`s into `Family`s: merges parents and checks what only the merged tables show."""

    own: Mapping[str, FamilyFile]
    shipped: Mapping[str, FamilyFile]
    problems: list[Problem]

    def resolve(self, file: FamilyFile, own: bool, below: tuple[FamilyFile, ...] = ()) -> Family:
        """The family of a file that those `below` extend; `own` if it is the user's."""
        name, parent = file.extends, NOTHING
        if name is not None:
            own = own and name in self.own and name != file.name
            found = (self.own if own else self.shipped).get(name)
            if found is not None and found not in (*below, file):
                parent = self.resolve(found, own, (*below, file))
            else:
                hint = suggestion(name, sorted({*self.own, *self.shipped} - {file.name}))
                what = f"a circle back to '{name}'" if found else f"there is no family '{name}'; {hint}"
                self.problems.append(Problem(file.places["extends"], f"extends: {what}"))
        for one, written in (*file.components.items(), *file.outside.items()):
            if written is None and one not in parent.components and one not in parent.outside:
                text = f"'{one}: null' removes nothing: no family above '{file.name}' has this component"
                self.problems.append(Problem(file.places[one], text))
        components, outside = {**parent.components, **file.components}, {**parent.outside, **file.outside}
        return Family(
            name=file.name,
            model_types=file.model_types,
            layer=file.layer or parent.layer,
            components={name: one for name, one in components.items() if one is not None},
            outside={name: one for name, one in outside.items() if one is not None},
            exclude=(*parent.exclude, *file.exclude),
            sizes=tuple(({size.name: size for size in parent.sizes} | file.sizes).values()),
            location=file.location,
        )
