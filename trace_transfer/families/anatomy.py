"""A model taken apart: every parameter as one or several units, each of one component. Made by `rules.application`.

A tied parameter has one owner, and every alias that a rule names becomes a unit on that owner: with a tied head the
embedding's weight is a unit of `embedding` and a unit of `head`. A parameter that its rules call `shared` (one norm
before attention and MLP) is likewise a unit of each component that it serves. There is no other way to be in two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from trace_transfer.models.sources import Inventory, Ranges, part_numel

Place = tuple[str, Ranges | None, Ranges | None, Ranges | None]


@dataclass(frozen=True)
class Unit:
    """A parameter, or the part of a fused parameter that belongs to one component.

    `shape` is that of the whole parameter. `rows` (dim 0), `columns` (dim 1) and `depth` (dim 2) are half-open ranges,
    None for all; at most one of them is set. The principal is the first member that its layer has. `layer` counts from
    0 and is None outside the layers; `rule` is the line that says so, `qwen3.yaml:7`. `head` is the size of one
    attention head in it, where the rules say one: 0 if it has no heads, None if it is as the config says.
    """

    name: str
    shape: tuple[int, ...]
    component: str
    role: str
    principal: bool
    layer: int | None
    # Not hashed: interleaved parts have thousands of ranges, and component and role tell parts apart as well.
    rows: Ranges | None = field(hash=False)
    columns: Ranges | None = field(hash=False)
    rule: str
    depth: Ranges | None = field(default=None, hash=False)
    head: int | None = None

    @property
    def place(self) -> Place:
        """Name, rows, columns and depth: the same for two units that are one tensor, tied or shared."""
        return self.name, self.rows, self.columns, self.depth

    @property
    def dim(self) -> int | None:
        """The dimension along which this is a part; None for a whole parameter."""
        return next((dim for dim, ranges in enumerate(self.place[1:]) if ranges is not None), None)

    @property
    def ranges(self) -> Ranges | None:
        """The ranges of that dimension."""
        return next((ranges for ranges in self.place[1:] if ranges is not None), None)

    @property
    def num_elements(self) -> int:
        """Elements of this part alone."""
        return part_numel(self.shape, self.rows, self.columns, self.depth)

    @property
    def part(self) -> str:
        """`[0:576]` for rows, `[:, 0:576]` for columns, `[0:8 of every 24]` for interleaved ones, or nothing."""
        ranges = self.ranges
        if ranges is None:
            return ""
        text = f"{ranges[0][0]}:{ranges[0][1]}"
        text += f" of every {ranges[1][0] - ranges[0][0]}" if len(ranges) > 1 else ""
        return f"[{':, ' * (self.dim or 0)}{text}]"

    @property
    def label(self) -> str:
        """The name with its part."""
        return self.name + self.part


@dataclass(frozen=True)
class Anatomy:
    """All units of a model in model order, and the excluded parameters with the reason (and its rule) of each.

    `layer_path` is the module path of the list of layers; `unexpanded` are the components with `expand: false`.
    """

    family: str
    inventory: Inventory
    num_layers: int
    units: tuple[Unit, ...]
    excluded: Mapping[str, str]
    layer_path: str
    unexpanded: frozenset[str] = frozenset()

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[Unit, ...]]:
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.name, []).append(unit)
        return {name: tuple(units) for name, units in found.items()}

    def units_of(self, name: str) -> tuple[Unit, ...]:
        """The units of a parameter, an alias meaning its owner: several if fused, tied or shared, none if excluded."""
        return self._by_name.get(self.inventory.tied.get(name, name), ())

    @cached_property
    def components(self) -> frozenset[str]:
        return frozenset(unit.component for unit in self.units)


def layer_ranges(layers: Iterable[int]) -> str:
    """`0-31` or `0, 2-4, 7`: distinct layers in order, runs joined."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
