"""A family's rules applied to the real tensor names of a model: `Family` and `Inventory` → `Anatomy`.

Nothing is returned before everything is checked: each tensor belongs to exactly one component (or its parts tile
it, or all its components share it, or it is excluded with a reason), and each pattern matches something. An alias of a
tied tensor counts as a tensor that may be named, and becomes a unit on its owner. Layers may differ: the
principal of a component is the first member that the layer has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from trace_transfer.errors import RulesError, listing
from trace_transfer.families.anatomy import Anatomy, Unit, folded_name, layer_ranges
from trace_transfer.families.expressions import ConfigLookup, first_that_resolves
from trace_transfer.families.language import NUMBER, Component, Exclusion, Family, Member, Part
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.models.sources import AXES, Inventory, Ranges


def ranges_of(part: Part, shape: tuple[int, ...], lookup: Callable[[str], int]) -> Ranges:
    """The half-open index ranges of a part along its dimension of a tensor of that shape, in order."""
    kind = AXES[part.dim]
    if part.dim >= len(shape):
        raise RulesError(f"{part}: a tensor of shape {list(shape)} has no {kind}")
    size = shape[part.dim]
    start, stop = part.span.start.evaluate(lookup), part.span.stop.evaluate(lookup)
    every = size if part.span.every is None else part.span.every.evaluate(lookup)
    if every < 1 or size % every:
        raise RulesError(f"{part}: blocks of {every} do not divide the {size} {kind} of shape {list(shape)}")
    if not 0 <= start < stop <= every:
        limit = f"a block of {every}" if part.span.every else f"the {size} {kind} of shape {list(shape)}"
        raise RulesError(f"{part} is [{start}, {stop}], which is empty, reversed or outside of {limit}")
    return tuple((offset + start, offset + stop) for offset in range(0, size, every))


def anatomy_of(inventory: Inventory, registry: FamilyRegistry) -> Anatomy:
    """Take a model apart by the rules for its `model_type`."""
    return apply_family(registry.for_model_type(inventory.model_type), inventory)


def apply_family(family: Family, inventory: Inventory) -> Anatomy:
    application = _Application(family, inventory)
    matches = application.find_matches()
    excluded = application.find_excluded()
    application.check_layers()
    application.check_coverage(matches, excluded)
    application.raise_if_problems()
    order = {name: index for index, name in enumerate(inventory.shapes)}
    position = {one.unit: (order[one.unit.name], one.name != one.unit.name, one.unit.ranges or ()) for one in matches}
    components = {**family.components, **family.outside}
    return Anatomy(
        family=family.name,
        inventory=inventory,
        num_layers=len(application.layers),
        units=tuple(sorted(position, key=position.__getitem__)),
        excluded={name: f"{found.reason} ({found.location.short})" for name, found in excluded.items()},
        layer_path=family.layer_path,
        unexpanded=frozenset(name for name, component in components.items() if not component.expand),
    )


@dataclass(frozen=True)
class _Match:
    """A member and one tensor that it names: `name` as the rule says it, perhaps an alias; `unit` on the owner."""

    name: str
    member: Member
    unit: Unit

    @property
    def who(self) -> str:
        return f"{self.unit.component} ({self.member.location})"


def _tiling_problems(claims: Sequence[_Match], shape: tuple[int, ...]) -> list[str]:
    """Why these claims on one tensor do not cover each of its elements exactly once; empty if they do.

    Shared claims on the same elements count as one. An overlap names both claims, a gap those on its two sides."""
    held = {(one.unit.dim, one.unit.ranges) if one.member.shared else id(one): one for one in reversed(claims)}
    claims = list(reversed(held.values()))
    if len(claims) == 1 and claims[0].unit.ranges is None:
        return []
    if any(claim.unit.ranges is None for claim in claims):
        return ["is in two components: " + " and ".join(claim.who for claim in claims)]
    dims = sorted({claim.unit.dim for claim in claims if claim.unit.dim is not None})
    if len(dims) > 1:
        ways = " and ".join(f"along {AXES[dim]}" for dim in dims)
        return [f"is cut {ways}: " + " and ".join(claim.who for claim in claims)]
    size = shape[dims[0]]
    # Texts are made of what is wrong alone: a large model has hundreds of thousands of pieces.
    pieces = sorted(((*piece, claim) for claim in claims for piece in claim.unit.ranges or ()), key=lambda one: one[:2])
    problems, reached, before = [], 0, None
    for start, stop, claim in (*pieces, (size, size, None)):
        if start != reached:
            sides = f"{before.who if before else 'its start'} and {claim.who if claim else 'its end'}"
            gap, overlap = f"gap [{reached}, {start}] between", f"overlap [{start}, {min(reached, stop)}] of"
            problems.append(f"has {'a ' + gap if start > reached else 'an ' + overlap} {sides}")
        if stop > reached:
            reached, before = stop, claim
    return problems[:2]


Names = Mapping[str, Mapping[Any, str]]  # the place below a layer (or the whole name) → layer (None) → whole name


@dataclass
class _Application:
    """One family, one model; `problems` maps each message to the layers it stands for (None: outside the layers)."""

    family: Family
    inventory: Inventory
    problems: dict[str, set[int | None]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        whole = re.compile(re.escape(self.family.layer_path) + r"\.(0|[1-9][0-9]*)\.(.+)")
        self.layers: set[int] = set()
        self.below: dict[str, dict[Any, str]] = {}
        self.outside: Names = {name: {None: name} for name in (*self.inventory.shapes, *self.inventory.tied)}
        for name in self.outside:
            if found := whole.fullmatch(name):
                self.layers.add(int(found[1]))
                self.below.setdefault(found[2], {})[int(found[1])] = name

    def complain(self, text: str, layer: int | None = None) -> None:
        self.problems.setdefault(text, set()).add(layer)

    def raise_if_problems(self) -> None:
        if not self.problems:
            return
        texts = []
        for text, found in self.problems.items():
            layers = layer_ranges(layer for layer in found if layer is not None)
            texts.append(f"{text} (layers {layers})" if layers else text)
        count = f"{len(texts)} problem" + ("" if len(texts) == 1 else "s")
        raise RulesError(
            f"the rules of family '{self.family.name}' do not fit this {self.inventory.model_type} model: {count}\n"
            + listing(texts)
        )

    def lookup(self) -> ConfigLookup:
        """Sizes are worked out in order, each from the config and the sizes above it."""
        sizes: dict[str, int] = {}
        lookup = ConfigLookup(self.inventory.config, sizes)
        for size in self.family.sizes:
            try:
                sizes[size.name] = first_that_resolves(size.choices, lookup)
            except RulesError as error:
                self.complain(f"{size.location}: sizes: '{size.name}' cannot be worked out: {error}")
        self.raise_if_problems()  # before those that follow from them
        return lookup

    def find_matches(self) -> list[_Match]:
        lookup = self.lookup()
        matches: list[_Match] = []
        for components, known in ((self.family.components, self.below), (self.family.outside, self.outside)):
            for component in components.values():
                first: dict[int | None, Member] = {}  # that a layer has: its principal
                found = []
                for member in component.members:
                    names = _named(member.pattern, known)
                    if not names and not member.optional:
                        self.complain(
                            f"{member.location}: {component.name}: '{member.pattern}' matches no tensor; correct "
                            f"it, or write '{member.pattern}?' if some models of this family lack it"
                        )
                    instead = {layer for layer, _ in _named(member.unless or "", known)}
                    standing = [(layer, name) for layer, name in names if layer not in instead]
                    found += self._units(component, member, standing, lookup, first)
                self._check_roles(component, found)
                matches += found
        return matches

    def _check_roles(self, component: Component, matches: Iterable[_Match]) -> None:
        """The members of a component must differ in their roles within a layer."""
        roles: dict[tuple[int | None, str], Member] = {}
        for match in matches:
            layer, role, member = match.unit.layer, match.unit.role, match.member
            other = roles.setdefault((layer, role), member)
            if other is not member:
                self.complain(
                    f"{member.location}: {component.name}: '{other.pattern}' (line {other.location.line}) and "
                    f"'{member.pattern}' are of one role '{role}' and both there; tell them apart with "
                    "{name: …, role: …}",
                    layer,
                )

    def _units(
        self, component: Component, member: Member, found: Iterable[tuple[int | None, str]], lookup: ConfigLookup,
        first: dict[int | None, Member],
    ) -> list[_Match]:  # fmt: skip
        ranges_at = cache(lambda shape: ranges_of(member.part, shape, lookup) if member.part else None)
        matches = []
        for layer, name in found:
            owner = self.inventory.tied.get(name, name)
            shape = self.inventory.shapes[owner]
            try:
                ranges = ranges_at(shape)
                head = None if member.head is None else member.head.evaluate(lookup) if member.head else 0
            except RulesError as error:
                self.complain(f"{member.location}: {component.name}: '{member.pattern}': {error}", layer)
                self.damaged.add(name)
                continue
            unit = Unit(
                name=owner, shape=shape, component=component.name, role=member.role,
                principal=first.setdefault(layer, member) is member, layer=layer, rule=member.location.short,
                dim=member.part.dim if member.part else None, ranges=ranges, head=head,
            )  # fmt: skip
            matches.append(_Match(name, member, unit))
        return matches

    def find_excluded(self) -> dict[str, Exclusion]:
        excluded: dict[str, Exclusion] = {}
        for exclusion in self.family.exclude:
            tail = r"\..+" if exclusion.module else ""
            whole = re.compile(re.escape(exclusion.pattern).replace(r"\{layer\}", "(?:0|[1-9][0-9]*)") + tail)
            found = [name for name in self.outside if whole.fullmatch(name)]
            if not found:
                self.complain(f"{exclusion.location}: exclude: '{exclusion.pattern}' matches no tensor")
            for name in self.inventory.shapes.keys() & found:
                excluded.setdefault(name, exclusion)
        return {name: excluded[name] for name in self.inventory.shapes if name in excluded}

    def check_layers(self) -> None:
        if self.layers != set(range(len(self.layers))) or not self.layers:
            found = f"layers {layer_ranges(self.layers)}" if self.layers else "no tensor"
            self.complain(f"{self.family.location}: found {found} below '{self.family.layer}', expected 0, 1, 2 …")

    def check_coverage(self, matches: Iterable[_Match], excluded: Mapping[str, Exclusion]) -> None:
        by_name: dict[str, list[_Match]] = {}
        for match in matches:
            by_name.setdefault(match.name, []).append(match)
        for name, claims in by_name.items():
            first, layer = claims[0], claims[0].unit.layer
            shown = name if layer is None else f"{self.family.layer}.{first.member.pattern}"
            for problem in () if name in self.damaged else _tiling_problems(claims, first.unit.shape):
                self.complain(f"{first.member.location}: '{shown}' {list(first.unit.shape)} {problem}", layer)
            if name in excluded:
                where = f"{excluded[name].location}: exclude: '{excluded[name].pattern}'"
                self.complain(f"{where} is also in {first.who}", layer)
        known = {match.unit.name for found in by_name.values() for match in found} | self.damaged | excluded.keys()
        inside = {name: layer for found in self.below.values() for layer, name in found.items()}
        for name in self.inventory.shapes:
            if name not in known:
                self.complain(
                    f"{self.family.location}: tensor '{folded_name(name) if name in inside else name}' is in no "
                    "component; add it to one, or exclude it with a reason",
                    inside.get(name),
                )


def _named(pattern: str, by_pattern: Names) -> list[tuple[Any, str]]:
    """(layer, whole name) of every tensor that a pattern names."""
    if NUMBER not in pattern:
        return list(by_pattern.get(pattern, {}).items())
    whole = re.compile(re.escape(pattern).replace(re.escape(NUMBER), "(?:0|[1-9][0-9]*)"))
    return [one for name, found in by_pattern.items() if whole.fullmatch(name) for one in found.items()]
