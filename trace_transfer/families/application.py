"""A family's rules applied to the real tensor names of a model: `Family` and `Inventory` → `Anatomy`.

Nothing is returned before everything is checked: each tensor belongs to exactly one component (or its parts tile
it, or all its components share it, or it is excluded with a reason), and each pattern matches something. An alias of a
tied tensor counts as a tensor that may be named, and becomes a unit on its owner. Layers may differ: the
principal of a component is the first member that the layer has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from trace_transfer.errors import RulesError, listing
from trace_transfer.families.anatomy import Anatomy, Unit, folded_name, layer_ranges
from trace_transfer.families.expressions import BrokenSizeError, ConfigLookup, first_that_resolves
from trace_transfer.families.language import NUMBER, Component, Exclusion, Family, Member, Part
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.models.sources import AXES, Inventory, Ranges


def ranges_of(part: Part, shape: tuple[int, ...], lookup: Callable[[str], int]) -> Ranges:
    """The half-open index ranges of a part along its dimension of a tensor of that shape, in order.

    Raises:
        RulesError: a name cannot be resolved, or the range is empty, reversed or outside of the tensor.
    """
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


@dataclass(frozen=True)
class Claim:
    """One component's hold on a tensor; `ranges` (and `dim`) of None is all of it. `who` names it in messages."""

    who: str
    dim: int | None
    ranges: Ranges | None
    shared: bool = False


def tiling_problems(claims: Sequence[Claim], shape: tuple[int, ...]) -> list[str]:
    """Why these claims on one tensor do not cover each of its elements exactly once; empty if they do.

    Needs at least one claim; shared claims on the same elements count as one. An overlap names both claims, a gap the
    claims on its two sides.
    """
    claims = [claim for index, claim in enumerate(claims) if not any(_both_share(claim, one) for one in claims[:index])]
    if len(claims) == 1 and claims[0].ranges is None:
        return []
    if any(claim.ranges is None for claim in claims):
        return ["is in two components: " + " and ".join(claim.who for claim in claims)]
    dims = sorted({claim.dim for claim in claims if claim.dim is not None})
    if len(dims) > 1:
        ways = " and ".join(f"along {AXES[dim]}" for dim in dims)
        return [f"is cut {ways}: " + " and ".join(claim.who for claim in claims)]
    size = shape[dims[0]]
    pieces = sorted((start, stop, claim.who) for claim in claims for start, stop in claim.ranges or ())
    problems, reached, before = [], 0, "its start"
    for start, stop, who in pieces:
        if start > reached:
            problems.append(f"has a gap [{reached}, {start}] between {before} and {who}")
        elif start < reached:
            problems.append(f"has an overlap [{start}, {min(reached, stop)}] of {before} and {who}")
        if stop > reached:
            reached, before = stop, who
    if reached < size:
        problems.append(f"has a gap [{reached}, {size}] between {before} and its end")
    return problems[:2]


def _both_share(one: Claim, other: Claim) -> bool:
    return one.shared and other.shared and (one.dim, one.ranges) == (other.dim, other.ranges)


def anatomy_of(inventory: Inventory, registry: FamilyRegistry) -> Anatomy:
    """Take a model apart by the rules for its `model_type`.

    Raises:
        RulesError: there are none, or they do not fit.
    """
    return apply_family(registry.for_model_type(inventory.model_type), inventory)


def apply_family(family: Family, inventory: Inventory) -> Anatomy:
    """Take a model apart by a family's rules.

    Raises:
        RulesError: lists every tensor in no component or in two, every pattern that matched nothing, and every
            fused tensor that its parts do not tile, each with file:line.
    """
    application = _Application(family, inventory, _LayerNames.of(family, inventory))
    matches = application.find_matches()
    excluded = application.find_excluded()
    application.check_layers()
    application.check_coverage(matches, excluded)
    application.raise_if_problems()
    order = {name: index for index, name in enumerate(inventory.shapes)}
    position = {one.unit: (order[one.unit.name], one.name != one.unit.name, one.unit.ranges or ()) for one in matches}
    return Anatomy(
        family=family.name,
        inventory=inventory,
        num_layers=application.names.num_layers,
        units=tuple(sorted(position, key=position.__getitem__)),
        excluded={name: f"{found.reason} ({found.location.short})" for name, found in excluded.items()},
        layer_path=family.layer_path,
        unexpanded=frozenset(
            name for name, component in {**family.components, **family.outside}.items() if not component.expand
        ),
    )


@dataclass(frozen=True)
class _LayerNames:
    """The model's names by their place below a layer: `self_attn.q_proj.weight` → layer → whole name."""

    by_pattern: Mapping[str, Mapping[int, str]]
    num_layers: int
    layers: frozenset[int]

    @classmethod
    def of(cls, family: Family, inventory: Inventory) -> _LayerNames:
        whole = re.compile(re.escape(family.layer_path) + r"\.(0|[1-9][0-9]*)\.(.+)")
        by_pattern: dict[str, dict[int, str]] = {}
        layers = set()
        for name in (*inventory.shapes, *inventory.tied):
            if found := whole.fullmatch(name):
                layers.add(int(found[1]))
                by_pattern.setdefault(found[2], {})[int(found[1])] = name
        return cls(by_pattern, len(layers), frozenset(layers))


@dataclass(frozen=True)
class _Match:
    """A member and one tensor that it names: `name` as the rule says it, perhaps an alias; `unit` on the owner."""

    name: str
    member: Member
    unit: Unit

    @property
    def claim(self) -> Claim:
        who = f"{self.unit.component} ({self.member.location})"
        return Claim(who, self.unit.dim, self.unit.ranges, self.member.shared)


@dataclass
class _Application:
    """One family, one model; `problems` maps each message to the layers it stands for (None: outside the layers)."""

    family: Family
    inventory: Inventory
    names: _LayerNames
    problems: dict[str, set[int | None]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

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
        sizes: dict[str, int | None] = {}
        for size in self.family.sizes:
            try:
                sizes[size.name] = first_that_resolves(size.choices, ConfigLookup(self.inventory.config, sizes))
            except BrokenSizeError:
                sizes[size.name] = None
            except RulesError as error:
                sizes[size.name] = None
                self.complain(f"{size.location}: sizes: '{size.name}' cannot be worked out: {error}")
        return ConfigLookup(self.inventory.config, sizes)

    def find_matches(self) -> list[_Match]:
        lookup = self.lookup()
        whole = {name: {None: name} for name in (*self.inventory.shapes, *self.inventory.tied)}
        matches: list[_Match] = []
        for components, by_pattern in ((self.family.components, self.names.by_pattern), (self.family.outside, whole)):
            for component in components.values():
                found = []
                for member in component.members:
                    names = _named(member.pattern, by_pattern)
                    self._check_found(component, member, names, by_pattern)
                    instead = {layer for layer, _ in _named(member.unless or "", by_pattern)}
                    standing = [(layer, name) for layer, name in names if layer not in instead]
                    found += self._units(component, member, standing, lookup)
                matches += self._with_principals(component, found)
        return matches

    def _with_principals(self, component: Component, matches: list[_Match]) -> list[_Match]:
        """One component's matches, the first member of each layer as principal; roles must differ within a layer."""
        first: dict[int | None, Member] = {}
        roles: dict[tuple[int | None, str], Member] = {}
        for match in matches:
            layer, role, member = match.unit.layer, match.unit.role, match.member
            first.setdefault(layer, member)
            other = roles.setdefault((layer, role), member)
            if other is not member:
                self.complain(
                    f"{member.location}: {component.name}: '{other.pattern}' (line {other.location.line}) and "
                    f"'{member.pattern}' are of one role '{role}' and both there; tell them apart with "
                    "{name: …, role: …}",
                    layer,
                )
        return [
            replace(match, unit=replace(match.unit, principal=match.member is first[match.unit.layer]))
            for match in matches
        ]

    def _check_found(self, component: Component, member: Member, found: Sequence[object], known: Iterable[str]) -> None:
        if found or member.optional:
            return
        close = get_close_matches(member.pattern, list(known), 1, cutoff=0.7)
        hint = f" (close: '{close[0]}')" if close else ""
        self.complain(
            f"{member.location}: {component.name}: '{member.pattern}' matches no tensor{hint}; correct it, or write "
            f"'{member.pattern}?' if some models of this family lack it"
        )

    def _units(
        self, component: Component, member: Member, found: Iterable[tuple[int | None, str]], lookup: ConfigLookup
    ) -> list[_Match]:
        by_shape: dict[tuple[int, ...], tuple[Ranges | None, int | None]] = {}
        matches = []
        for layer, name in found:
            owner = self.inventory.tied.get(name, name)
            shape = self.inventory.shapes[owner]
            try:
                if shape not in by_shape:
                    ranges = ranges_of(member.part, shape, lookup) if member.part else None
                    by_shape[shape] = ranges, _head_of(member, lookup)
            except RulesError as error:
                if not isinstance(error, BrokenSizeError):
                    self.complain(f"{member.location}: {component.name}: '{member.pattern}': {error}", layer)
                self.damaged.add(name)
                continue
            ranges, head = by_shape[shape]
            rows, columns, depth = (ranges if member.part and member.part.dim == dim else None for dim in range(3))
            unit = Unit(
                name=owner,
                shape=shape,
                component=component.name,
                role=member.role,
                principal=False,
                layer=layer,
                rows=rows,
                columns=columns,
                depth=depth,
                rule=member.location.short,
                head=head,
            )
            matches.append(_Match(name, member, unit))
        return matches

    def find_excluded(self) -> dict[str, Exclusion]:
        excluded: dict[str, Exclusion] = {}
        for exclusion in self.family.exclude:
            tail = r"\..+" if exclusion.module else ""
            whole = re.compile(re.escape(exclusion.pattern).replace(r"\{layer\}", "(?:0|[1-9][0-9]*)") + tail)
            found = [name for name in (*self.inventory.shapes, *self.inventory.tied) if whole.fullmatch(name)]
            if not found:
                self.complain(f"{exclusion.location}: exclude: '{exclusion.pattern}' matches no tensor")
            for name in found:
                if name in self.inventory.shapes:
                    excluded.setdefault(name, exclusion)
        return excluded

    def check_layers(self) -> None:
        layers = self.names.layers
        if layers != set(range(len(layers))) or not layers:
            found = f"layers {layer_ranges(layers)}" if layers else "no tensor"
            self.complain(f"{self.family.location}: found {found} below '{self.family.layer}', expected 0, 1, 2 …")

    def check_coverage(self, matches: Iterable[_Match], excluded: Mapping[str, Exclusion]) -> None:
        by_name: dict[str, list[_Match]] = {}
        owners = set(self.damaged)
        for match in matches:
            by_name.setdefault(match.name, []).append(match)
            owners.add(match.unit.name)
        for name, claims in by_name.items():
            if name not in self.damaged:
                self._check_tiling(name, claims)
            if name in excluded:
                where = f"{excluded[name].location}: exclude: '{excluded[name].pattern}'"
                first = claims[0]
                self.complain(f"{where} is also in {first.unit.component} ({first.member.location})", first.unit.layer)
        inside = {name: layer for found in self.names.by_pattern.values() for layer, name in found.items()}
        for name in self.inventory.shapes:
            if name not in owners and name not in excluded:
                self.complain(
                    f"{self.family.location}: tensor '{self._template(name, inside)}' is in no component; add it to "
                    "one, or exclude it with a reason",
                    inside.get(name),
                )

    def _check_tiling(self, name: str, claims: list[_Match]) -> None:
        layer, first = claims[0].unit.layer, claims[0]
        for problem in tiling_problems([match.claim for match in claims], first.unit.shape):
            shown = name if layer is None else f"{self.family.layer}.{first.member.pattern}"
            self.complain(f"{first.member.location}: '{shown}' {list(first.unit.shape)} {problem}", layer)

    def _template(self, name: str, inside: Mapping[str, int]) -> str:
        return folded_name(name) if name in inside else name


def _named(pattern: str, by_pattern: Mapping[str, Mapping[Any, str]]) -> list[tuple[Any, str]]:
    """(layer, whole name) of every tensor that a pattern names."""
    if NUMBER not in pattern:
        return list(by_pattern.get(pattern, {}).items())
    whole = re.compile(re.escape(pattern).replace(re.escape(NUMBER), "(?:0|[1-9][0-9]*)"))
    return [one for name, found in by_pattern.items() if whole.fullmatch(name) for one in found.items()]


def _head_of(member: Member, lookup: ConfigLookup) -> int | None:
    """The size of a head in a member: 0 if it has none, None if the rules do not say."""
    if member.head is None or member.head is False:
        return None if member.head is None else 0
    size = member.head.evaluate(lookup)
    if size < 1:
        raise RulesError(f"head: '{member.head.text}' is {size}, expected at least 1")
    return size
