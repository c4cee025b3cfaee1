"""A model taken apart: every tensor as one or several units, each of one component; and the rows inside of them.

A tied tensor has one owner, and every alias that a rule names becomes a unit on that owner: with a tied head the
embedding's weight is a unit of `embedding` and a unit of `head`. A tensor that its rules call `shared` (one norm
before attention and MLP) is likewise a unit of each component that it serves. There is no other way to be in two.

Rows (attention heads, MLP neurons, experts) are scored and selected one by one where a core set is made of them: a
head's rows of queries, keys or values, a head's columns of the attention output, one neuron's row of gate and up, one
neuron's column of down, a token's row of embedding and head, one entry of a norm or of a bias without heads. Of a
layer's experts, which are one tensor of three dimensions (their biases one of two), it is a whole expert, and of the
router an expert's row. Left whole are latent projections, and a tensor of a single row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import ModelError, listing
from trace_transfer.models.sources import Inventory, Ranges, part_numel

if TYPE_CHECKING:
    from torch import nn

Place = tuple[str, Ranges | None, Ranges | None, Ranges | None]
Part = tuple[Ranges | None, Ranges | None]
PER_HEAD = ("attention.query", "attention.key", "attention.value")
PER_NEURON = ("mlp.gate", "mlp.up")
PER_TOKEN = ("embedding", "embedding.position", "head")
BIAS, NORM = "bias", "norm"  # roles


@dataclass(frozen=True)
class Unit:
    """A tensor, or the part of a fused tensor that belongs to one component.

    `shape` is that of the whole tensor. A part has half-open `ranges` along `dim` (0 rows, 1 columns, 2 depth); both
    are None for a whole tensor. The principal is the first member that its layer has. `layer` counts from 0 and is None
    outside the layers; `rule` is the line that says so, `qwen3.yaml:7`. `head` is the size of one attention head in it,
    where the rules say one: 0 if it has no heads, None if it is as the config says."""

    name: str
    shape: tuple[int, ...]
    component: str
    role: str
    principal: bool
    layer: int | None
    rule: str
    dim: int | None = None
    # Not hashed: interleaved parts have thousands of ranges, and component and role tell parts apart as well.
    ranges: Ranges | None = field(default=None, hash=False)
    head: int | None = None

    @property
    def place(self) -> Place:
        """Name, rows, columns and depth: the same for two units that are one tensor, tied or shared."""
        rows, columns, depth = (self.ranges if self.dim == dim else None for dim in range(3))
        return self.name, rows, columns, depth

    @property
    def num_elements(self) -> int:
        return part_numel(self.shape, *self.place[1:])

    @property
    def part(self) -> str:
        """`[0:576]` for rows, `[:, 0:576]` for columns, `[0:8 of every 24]` for interleaved ones, or nothing."""
        if self.ranges is None:
            return ""
        (start, stop), *others = self.ranges
        every = f" of every {others[0][0] - start}" if others else ""
        return f"[{':, ' * (self.dim or 0)}{start}:{stop}{every}]"

    @property
    def label(self) -> str:
        return self.name + self.part


@dataclass(frozen=True)
class Anatomy:
    """All units of a model in model order, and the excluded tensors with the reason (and its rule) of each.

    `layer_path` is the module path of the list of layers; `unexpanded` are the components with `expand: false`."""

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
        """The units of a tensor, an alias meaning its owner: several if fused, tied or shared, none if excluded."""
        return self._by_name.get(self.inventory.tied.get(name, name), ())

    def describe(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A tensor's name, and its components, each once."""
        return name, tuple(dict.fromkeys(unit.component for unit in self.units_of(name)))

    @cached_property
    def components(self) -> frozenset[str]:
        return frozenset(unit.component for unit in self.units)


def folded_name(name: str) -> str:
    """`model.layers.3.mlp.experts.0.w1` → `model.layers.{layer}.mlp.experts.{n}.w1`: the first number, and others."""
    segments, holes = [], iter(["{layer}"])
    for segment in name.split("."):
        segments.append(next(holes, "{n}") if segment.isdecimal() else segment)
    return ".".join(segments)


def layer_ranges(layers: Iterable[int]) -> str:
    """`0-31` or `0, 2-4, 7`: distinct layers in order, runs joined."""
    runs = [
        [layer for _, layer in run] for _, run in groupby(enumerate(sorted(set(layers))), lambda one: one[1] - one[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True)
class Split:
    """How a tensor is cut into units: `size` consecutive rows (dim 0) or columns (dim 1) each."""

    dim: int
    size: int


def splits_of(anatomy: Anatomy, config: Any, transposed: Callable[[str], bool]) -> dict[str, Split]:
    """The tensors that consist of several heads or neurons, in model order, each with how it is cut. A weight
    may be stored `transposed` ([in, out], see `transposed_names`); of a multimodal config its text's is read."""
    text = config.get_text_config()
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    splits: dict[str, Split] = {}
    problems = []
    for name, shape in anatomy.inventory.shapes.items():
        units = anatomy.units_of(name)
        found = {_split(unit, head_dim, transposed(name)) for unit in units}
        if len(found) > 1:
            problems.append(f"{name}: its parts ({'+'.join(anatomy.describe(name)[1])}) are cut in different ways")
            continue
        split = next(iter(found), None)
        if split is None or shape[split.dim] == split.size:
            continue
        bounds = {bound for unit in units if unit.dim == split.dim for one in unit.ranges or () for bound in one}
        if any(bound % split.size for bound in (shape[split.dim], *bounds)):
            problems.append(f"{name} {list(shape)}: its parts are no multiples of the {split.size} of one head")
        splits[name] = split
    if problems:
        raise ModelError("this model cannot be scored by rows; use tensors or elements:\n" + listing(problems))
    return splits


def unit_parts(shape: tuple[int, ...], split: Split | None) -> list[Part]:
    """(rows, columns) of each unit of a tensor in order, as a core file has them; (None, None) for a whole one."""
    if split is None:
        return [(None, None)]
    ranges = [((start, start + split.size),) for start in range(0, shape[split.dim], split.size)]
    return [(None, one) if split.dim else (one, None) for one in ranges]


def unit_kinds(anatomy: Anatomy, name: str, split: Split | None) -> list[str]:
    """The component of each unit of a tensor; those of a whole one joined by `+`, `excluded` if it has none, and those
    of parts that every unit has something of, as each expert has of gate and up."""
    whole = "+".join(anatomy.describe(name)[1]) or "excluded"
    if split is None:
        return [whole]
    kinds = [whole] * (anatomy.inventory.shapes[name][split.dim] // split.size)
    for unit in anatomy.units_of(name):
        for start, stop in (unit.ranges or ()) if unit.dim == split.dim else ():
            kinds[start // split.size : stop // split.size] = [unit.component] * ((stop - start) // split.size)
    return kinds


def transposed_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights that transformers stores [in, out] (`Conv1D`, as GPT-2 has them)."""
    from transformers.pytorch_utils import Conv1D

    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))


def _split(unit: Unit, head_dim: int, transposed: bool) -> Split | None:
    single = Split(0, 1) if len(unit.shape) == 1 or unit.component in PER_TOKEN else None
    per_neuron = unit.component in (*PER_NEURON, "mlp.down")
    of_experts = len(unit.shape) == (2 if unit.role == BIAS else 3)  # the first dimension counts experts
    if unit.component == "mlp.router" or (per_neuron and of_experts):
        return Split(0, 1)
    size = 1 if per_neuron else head_dim if unit.head is None else unit.head
    if not size or unit.role == NORM:
        return single
    if unit.component in PER_HEAD + PER_NEURON:
        return Split(1 if transposed and len(unit.shape) > 1 else 0, size)
    if unit.component in ("attention.output", "mlp.down") and len(unit.shape) > 1:
        return Split(0 if transposed else 1, size)
    return single
