"""Rules files → `FamilyRegistry`: which rules each `model_type` has, with `extends:` resolved.

Reads: the shipped rules and the user's own file, files or directory. Everything is checked before anything is
returned, and all problems of all files are raised together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from pathlib import Path

from trace_transfer.errors import RulesError, listing
from trace_transfer.families.language import Component, Exclusion, Family, FamilyFile, Location, Member, Size
from trace_transfer.families.parsing import Problem, parse_file, suggestion
from trace_transfer.models.sources import Inventory


@dataclass(frozen=True)
class FamilyRegistry:
    """All families that can be used, by name, and the family of each `model_type`."""

    families: Mapping[str, Family]
    by_model_type: Mapping[str, Family]

    def for_model_type(self, model_type: str, inventory: Inventory | None = None) -> Family:
        """The rules for a config's `model_type`; `inventory` makes the message for an unknown one more helpful.

        Raises:
            RulesError: no rules file is for it; says which file to write, from what.
        """
        if model_type in self.by_model_type:
            return self.by_model_type[model_type]
        known = ", ".join(sorted(self.by_model_type))
        lines = [f"no rules file is for model_type '{model_type}' (there are rules for: {known})."]
        lines.append(
            f"`trace-transfer rules draft` with this model writes {model_type}.yaml, a draft of rules that say which "
            f"parameter belongs to which component; look through it, and pass it with --rules {model_type}.yaml."
        )
        lines.append(self._nearest(model_type, inventory))
        if inventory is not None:
            counts = Counter(folded_name(name) for name in inventory.shapes)
            lines.append("The model's parameters:")
            lines += [f"    {name}" + (f"  ({count} times)" if count > 1 else "") for name, count in counts.items()]
        raise RulesError("\n".join(line for line in lines if line))

    def _nearest(self, model_type: str, inventory: Inventory | None) -> str:
        if inventory is None:
            close = get_close_matches(model_type, self.families, 1, cutoff=0.5)
            return f"The nearest family by name is '{close[0]}': try 'extends: {close[0]}'." if close else ""
        patterns = {folded_name(name) for name in inventory.shapes}
        known = {name: _patterns(family) for name, family in sorted(self.families.items())}
        fits = {
            name: (len(patterns & names), -len(names - patterns), SequenceMatcher(None, model_type, name).ratio())
            for name, names in known.items()
        }
        nearest = max(fits, key=fits.__getitem__)
        if not fits[nearest][0]:
            return "No known family has parameters of these names."
        return (
            f"The nearest family is '{nearest}', whose rules know {fits[nearest][0]} of the {len(patterns)} names "
            f"below: start with 'extends: {nearest}'."
        )


def folded_name(name: str) -> str:
    """A parameter's name with its first number as `{layer}` and further ones as `{n}`.

    `model.layers.3.mlp.experts.0.w1` becomes `model.layers.{layer}.mlp.experts.{n}.w1`.
    """
    segments, holes = [], iter(["{layer}"])
    for segment in name.split("."):
        segments.append(next(holes, "{n}") if segment.isdecimal() else segment)
    return ".".join(segments)


def _patterns(family: Family) -> set[str]:
    inside = {f"{family.layer}.{member.pattern}" for part in family.components.values() for member in part.members}
    return inside | {member.pattern for part in family.outside.values() for member in part.members}


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
        raise RulesError(f"{_count(len(unique), 'problem')} in rules files:\n{listing([str(p) for p in unique])}")
    by_model_type: dict[str, Family] = {}
    for family in [*shipped_families.values(), *own_families.values()]:
        if family.name not in own_families or family is own_families[family.name]:
            by_model_type.update(dict.fromkeys(family.model_types, family))
    return FamilyRegistry({**shipped_families, **own_families}, by_model_type)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def rules_files(path: Path) -> list[Path]:
    """The rules files that a path names: itself, or the *.yaml and *.yml in a directory.

    Raises:
        RulesError: there is none.
    """
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
            problems.append(_problem(family.location, f"family '{family.name}' is also in {other.location}"))
            continue
        for kind in family.model_types:
            other = owners.setdefault(kind, family)
            if other is not family:
                text = f"model_type '{kind}' is also claimed by '{other.name}' ({other.location})"
                problems.append(_problem(family.location, text))
    return families


def _problem(location: Location, text: str) -> Problem:
    return Problem(location.path, location.line, text)


@dataclass(frozen=True)
class _Resolver:
    """Turns `FamilyFile`s into `Family`s: merges parents and checks what only the merged tables show."""

    own: Mapping[str, FamilyFile]
    shipped: Mapping[str, FamilyFile]
    problems: list[Problem]

    def resolve(self, file: FamilyFile, own: bool) -> Family:
        layer: str | None = None
        components: dict[str, Component | None] = {}
        outside: dict[str, Component | None] = {}
        exclude: tuple[Exclusion, ...] = ()
        sizes: dict[str, Size] = {}
        for one in reversed(self._line_of_descent(file, own)):
            layer = one.layer or layer
            for name, location in one.removals.items():
                if name not in components and name not in outside:
                    text = f"'{name}: null' removes nothing: no family above '{one.name}' has this component"
                    self.problems.append(_problem(location, text))
            components, outside = {**components, **one.components}, {**outside, **one.outside}
            exclude, sizes = (*exclude, *one.exclude), {**sizes, **one.sizes}
        family = Family(
            name=file.name,
            model_types=file.model_types,
            layer=layer or "",
            components={name: value for name, value in components.items() if value is not None},
            outside={name: value for name, value in outside.items() if value is not None},
            exclude=exclude,
            sizes=tuple(sizes.values()),
            location=file.location,
        )
        for section in (family.components, family.outside):
            self._check_whole_members_once(section)
            self._check_unless(section)
        return family

    def _line_of_descent(self, file: FamilyFile, own: bool) -> list[FamilyFile]:
        """The file, its parent, its parent's parent …; stops with a problem at an unknown parent or in a circle."""
        line = [file]
        while (name := line[-1].extends) is not None:
            child = line[-1]
            own = own and name in self.own and name != child.name
            parents = self.own if own else self.shipped
            parent = parents.get(name)
            if parent is None:
                known = sorted({*self.own, *self.shipped} - {child.name})
                text = f"extends: there is no family '{name}'; {suggestion(name, known)}"
                self.problems.append(_problem(child.extends_location, text))
                return line
            if parent in line:
                circle = " → ".join([one.name for one in line[line.index(parent) :]] + [parent.name])
                self.problems.append(_problem(child.extends_location, f"extends: a circle: {circle}"))
                return line
            line.append(parent)
        return line

    def _check_unless(self, section: Mapping[str, Component]) -> None:
        known = {member.pattern for component in section.values() for member in component.members}
        for name, component in section.items():
            for member in component.members:
                if member.unless is not None and member.unless not in known:
                    text = f"{name}: unless: '{member.unless}' is no member of a component; "
                    self.problems.append(_problem(member.location, text + suggestion(member.unless, sorted(known))))

    def _check_whole_members_once(self, section: Mapping[str, Component]) -> None:
        """A name that is whole in one component must not stand in another one, unless both share it.

        Parts are checked against shapes.
        """
        seen: dict[str, tuple[str, Member]] = {}
        sharing: dict[tuple[str, str], dict[str, Member]] = {}
        for name, component in section.items():
            for member in component.members:
                if member.shared:
                    sharing.setdefault((member.pattern, str(member.part or "")), {}).setdefault(name, member)
                other_name, other = seen.setdefault(member.pattern, (name, member))
                together = member.shared and other.shared and name != other_name
                if other is not member and not together and (other.part is None or member.part is None):
                    text = (
                        f"'{member.pattern}' is in two components: {other_name} ({other.location}) and {name}; give "
                        "both 'rows:' (or 'columns:', 'depth:') if each has a part of it, or 'shared: true' if it "
                        "serves both"
                    )
                    self.problems.append(_problem(member.location, text))
        for (pattern, part), found in sharing.items():
            if len(found) == 1:
                ((name, member),) = found.items()
                what = f"'{pattern}'" + (f", {part}," if part else "")
                text = f"{name}: {what} is shared, but no other component has it; say 'shared: true' there as well"
                self.problems.append(_problem(member.location, text))
