"""Where each parameter of a core file stands in an importance heatmap: its layer, its component, its role.

A core file says component and layer of each parameter where they were known when it was made. Where it does not (made
by another tool, or before a family was known), the family's member names are compared with the parameter's whole name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter
from trace_transfer.families.language import NUMBER, Component, Family, Member, default_role
from trace_transfer.families.registry import FamilyRegistry, load_families
from trace_transfer.models.sources import AXES
from trace_transfer.records import ModelIdentity

BIAS, NORM = "bias", "norm"  # roles
EXCLUDED = "excluded"  # the component of what a family's rules leave out


@dataclass(frozen=True)
class Place:
    """`layer` counts from 0, None outside the layers; `role` is `weight`, `norm`, `bias` or what the rules call it."""

    layer: int | None
    component: str
    role: str


@dataclass(frozen=True)
class Claim:
    """A member of a component and the layer in which its name was found."""

    layer: int | None
    component: str
    member: Member

    @property
    def place(self) -> Place:
        return Place(self.layer, self.component, self.member.role)


@dataclass(frozen=True)
class FamilyNames:
    """The names that a family's rules know, or none where there is no such family."""

    family: Family | None

    @classmethod
    def of(cls, model: ModelIdentity, registry: FamilyRegistry | None = None) -> FamilyNames:
        """The family of a model, by its name or else by the `model_type`; the shipped rules unless others are given."""
        families = registry or load_families()
        return cls(families.families.get(model.family) or families.by_model_type.get(model.model_type))

    @cached_property
    def _inside(self) -> Mapping[str, list[tuple[str, Member]]]:
        return _by_pattern(self.family.components) if self.family else {}

    @cached_property
    def _outside(self) -> Mapping[str, list[tuple[str, Member]]]:
        return _by_pattern(self.family.outside) if self.family else {}

    @cached_property
    def _layer_name(self) -> re.Pattern[str] | None:
        return re.compile(re.escape(self.family.layer_path) + r"\.(0|[1-9][0-9]*)\.(.+)") if self.family else None

    def claims(self, name: str) -> list[Claim]:
        """All members that a whole name is, in the order of the rules: several for a fused parameter."""
        found = self._layer_name.fullmatch(name) if self._layer_name else None
        if found:
            numbers = (NUMBER if segment.isdecimal() else segment for segment in found[2].split("."))
            members = self._inside.get(found[2]) or self._inside.get(".".join(numbers), [])
            return [Claim(int(found[1]), component, member) for component, member in members]
        return [Claim(None, component, member) for component, member in self._outside.get(name, ())]

    def places(self, core: CoreFile) -> tuple[tuple[Place, ...], ...]:
        """The places of each parameter, in the file's order: none if unknown, several if it is fused or tied."""
        parts: dict[str, list[CoreParameter]] = {}
        for parameter in core.parameters:
            if _start(parameter) is not None:
                parts.setdefault(parameter.name, []).append(parameter)
        for listed in parts.values():
            listed.sort(key=lambda parameter: _start(parameter) or 0)
        return tuple(self._places(parameter, parts.get(parameter.name, [])) for parameter in core.parameters)

    def _places(self, parameter: CoreParameter, parts: list[CoreParameter]) -> tuple[Place, ...]:
        claims = self.claims(parameter.name)
        if parameter.component is not None:
            roles = {claim.component: claim.member.role for claim in claims}
            components = parameter.component.split("+")
            if components == [EXCLUDED]:
                return ()
            role = default_role(parameter.name)
            return tuple(Place(parameter.layer, name, roles.get(name, role)) for name in components)
        if _start(parameter) is None:
            return tuple(claim.place for claim in claims)
        if len(claims) == 1:
            return (claims[0].place,)
        shared: dict[str, list[Place]] = {}  # the same part of several components
        for claim in claims:
            shared.setdefault(str(claim.member.part), []).append(claim.place)
        if len(shared) == len(parts):  # parts stand in the tensor in the order in which the rules name them
            return next(tuple(places) for places, part in zip(shared.values(), parts, strict=True) if part is parameter)
        return ()


def _by_pattern(components: Mapping[str, Component]) -> dict[str, list[tuple[str, Member]]]:
    found: dict[str, list[tuple[str, Member]]] = {}
    for name, component in components.items():
        for member in component.members:
            found.setdefault(member.pattern, []).append((name, member))
    return found


def _start(parameter: CoreParameter) -> int | None:
    """Where a part begins in its parameter; None for a whole one."""
    ranges = parameter.rows or parameter.columns or parameter.depth
    return ranges[0][0] if ranges else None


def label(parameter: CoreParameter) -> str:
    """Name and ranges of a parameter."""
    text = parameter.name
    for word, ranges in zip(AXES, parameter.place[1:], strict=True):
        if ranges:
            shown = ", ".join(f"{start}:{stop}" for start, stop in ranges[:2])
            text += f" [{word} {shown}{', …' if len(ranges) > 2 else ''}]"
    return text
