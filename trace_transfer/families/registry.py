"""Rules files → `FamilyRegistry`: which rules each `model_type` has, with `extends:` resolved.

Reads: the shipped rules and the user's own file, files or directory; their text only, no config, no model. Everything
is checked before anything is returned, and all problems of all files are raised together, each with its line. The
grammar is `language.FamilyFile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trace_transfer.errors import RulesError, listing, suggestion
from trace_transfer.families.language import PLACE, PLACES, SECTIONS, Family, FamilyFile, Located, Location, Table
from trace_transfer.text_formats import MAX_YAML_BYTES, MalformedTextError, compose_yaml, kind_of, read_text

SHORT = ("members", "choices", "name", "[key]", *map(chr, range(3)))  # steps that say nothing to a reader
NOTHING = Family("", (), "", {}, {}, (), (), Location(Path(), 0))
Problem = tuple[Location, str]  # something wrong at a line of a file


def parse_file(path: Path) -> tuple[FamilyFile | None, list[Problem]]:
    """Read one rules file; None where there are problems."""
    first = Location(path, 1)
    try:
        root = compose_yaml(read_text(path, RulesError, MAX_YAML_BYTES))
    except MalformedTextError as error:
        return None, [(Location(path, error.line or 1), f"not valid YAML: {error.problem}")]
    except RulesError as error:
        return None, [(first, str(error).removeprefix(f"{path}: "))]
    table = _plain(root, path) if root else None
    if not isinstance(table, Table):
        expected = "a mapping with 'family:', 'layer:', 'components:' …"
        return None, [(first, f"found {_described(table)}, expected {expected}")]
    places = dict(table.places)
    for section in SECTIONS:
        places |= written.places if isinstance(written := table.get(section), Table) else {}
    first = min(places.values(), default=first)
    try:
        return FamilyFile.model_validate({**table, PLACE: first, PLACES: places}), []
    except ValidationError as error:
        return None, [_told(one, table, first) for one in error.errors()]


def _plain(node: Node, path: Path) -> Any:
    """What a node says; lists and mappings with the lines of what is in them."""

    def place(of: Node) -> Location:
        return Location(path, of.start_mark.line + 1)

    if isinstance(node, SequenceNode):
        items = Located(_plain(item, path) for item in node.value)
        items.places = [place(item) for item in node.value]
        return items
    if isinstance(node, ScalarNode):
        return SafeConstructor().construct_object(node)
    pairs = node.value if isinstance(node, MappingNode) else []
    table = Table({key.value: _plain(value, path) for key, value in pairs})
    table.places = {key.value: place(key) for key, _ in pairs}
    return table


def _told(error: Any, table: Table, first: Location) -> Problem:
    """One problem of pydantic's, at the line of what it is about."""
    value: Any = table
    place, steps = first, error["loc"]
    for step in steps:
        inside = isinstance(value, Table) and step in value
        if inside or (isinstance(value, Located) and isinstance(step, int)):
            place, value = value.places[step], value[step]  # one written short stays where it is
    names = [step for step in steps if isinstance(step, str) and step not in SHORT]
    told, cause = error["msg"], error.get("ctx", {}).get("error")
    if error["type"] == "missing":
        names, told = names[: len(names) - (steps[-1] == names[-1])], f"'{steps[-1]}:' is missing"
    elif error["type"] == "extra_forbidden":
        told = "unknown key"
    elif error["type"] == "literal_error":
        told = f"unknown component; {suggestion(names[-1], SECTIONS[names[0]])}"
    elif error["type"] != "too_short":
        told = cause if cause and not str(cause).startswith("exp") else f"found {_described(value)}, {cause or told}"
    return place, ": ".join([*names, str(told)])


def _described(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else kind_of(value)


@dataclass(frozen=True)
class FamilyRegistry:
    """All families that can be used, by name, and the family of each `model_type`."""

    families: Mapping[str, Family]
    by_model_type: Mapping[str, Family]

    def for_model_type(self, model_type: str) -> Family:
        """The rules for a config's `model_type`."""
        if model_type in self.by_model_type:
            return self.by_model_type[model_type]
        raise RulesError(
            f"no rules file is for model_type '{model_type}' (there are rules for: "
            f"{', '.join(sorted(self.by_model_type))}).\n`trace-transfer rules draft` with this model writes "
            f"{model_type}.yaml, a draft from the family whose names are most like its own. Look through it, and pass "
            f"it with --rules {model_type}.yaml."
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
    the shipped one. Shipped families extend shipped families only."""
    extras = [] if extra is None else [extra] if isinstance(extra, Path) else list(extra)
    shipped, found = _read_shipped()
    problems = list(found)
    own = _read_layer(extras, problems)
    shipped_families = {name: _resolved(file, [shipped], problems) for name, file in shipped.items()}
    own_families = {name: _resolved(file, [own, shipped], problems) for name, file in own.items()}
    if problems:
        unique = [f"{place}: {text}" for place, text in sorted(set(problems))]
        count = f"{len(unique)} problem" + ("" if len(unique) == 1 else "s")
        raise RulesError(f"{count} in rules files:\n{listing(unique)}")
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
def _read_shipped() -> tuple[dict[str, FamilyFile], list[Problem]]:
    """Once in a process: the files of the package do not change, and reading them takes longer than using them."""
    problems: list[Problem] = []
    return _read_layer([shipped_rules()], problems), problems


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
            problems.append((family.location, f"family '{family.name}' is also in {other.location}"))
            continue
        for kind in family.model_types:
            other = owners.setdefault(kind, family)
            if other is not family:
                text = f"model_type '{kind}' is also claimed by '{other.name}' ({other.location})"
                problems.append((family.location, text))
    return families


def _resolved(
    file: FamilyFile, layers: Sequence[Mapping[str, FamilyFile]], problems: list[Problem],
    below: tuple[FamilyFile, ...] = (),
) -> Family:  # fmt: skip
    """The family of a file that those `below` extend, merged with its parents, of which the first layer has the next;
    checked is what only the merged tables show."""
    name, parent = file.extends, NOTHING
    if name is not None:
        known = {one for layer in layers for one in layer}
        layers = layers[-1:] if name == file.name or name not in layers[0] else layers
        found = layers[0].get(name)
        if found is not None and found not in (*below, file):
            parent = _resolved(found, layers, problems, (*below, file))
        else:
            hint = suggestion(name, sorted(known - {file.name}))
            what = f"a circle back to '{name}'" if found else f"there is no family '{name}'; {hint}"
            problems.append((file.places["extends"], f"extends: {what}"))
    for one, written in (*file.components.items(), *file.outside.items()):
        if written is None and one not in parent.components and one not in parent.outside:
            text = f"'{one}: null' removes nothing: no family above '{file.name}' has this component"
            problems.append((file.places[one], text))
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
