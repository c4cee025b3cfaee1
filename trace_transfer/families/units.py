"""Parameters cut into the units of `rows`: attention heads, MLP neurons and experts, scored and selected one by one.

A unit is a run of rows or columns of one parameter: a head's rows of queries, keys or values, a head's columns of the
attention output, one neuron's row of gate and up, one neuron's column of down. Of a layer's experts, which are one
parameter of three dimensions (their biases one of two), it is a whole expert, and of the router an expert's row. Left
whole are norms shared by heads, latent projections, biases that add to the residual stream, embedding and head, and a
parameter of a single unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import ModelError, listing
from trace_transfer.families.anatomy import Anatomy, Unit
from trace_transfer.models.sources import Ranges

if TYPE_CHECKING:
    from torch import nn

PER_HEAD_OUT = frozenset({"attention.query", "attention.key", "attention.value"})
PER_HEAD_IN = frozenset({"attention.output"})
PER_NEURON_OUT = frozenset({"mlp.gate", "mlp.up"})
PER_NEURON_IN = frozenset({"mlp.down"})
PER_EXPERT = frozenset({"mlp.router"})
BIAS = "bias"  # a role
Part = tuple[Ranges | None, Ranges | None]


@dataclass(frozen=True)
class Split:
    """How a parameter is cut into units: `size` consecutive rows (dim 0) or columns (dim 1) each."""

    dim: int
    size: int


def splits_of(anatomy: Anatomy, config: Any, transposed: Callable[[str], bool]) -> dict[str, Split]:
    """The parameters that consist of several heads or neurons, in model order, each with how it is cut.

    Args:
        config: the model's config; a text model's is found inside a multimodal one.
        transposed: whether a weight is stored [in, out] (`transposed_names`) instead of [out, in].

    Raises:
        ModelError: a parameter, or one component's part of it, is not a whole number of units; all are listed.
    """
    head_dim = _head_dim(config)
    splits: dict[str, Split] = {}
    problems = []
    for name, shape in anatomy.inventory.shapes.items():
        units = anatomy.units_of(name)
        found = {_split(unit, head_dim, transposed(name)) for unit in units}
        if len(found) > 1:
            problems.append(f"{name}: its parts ({_components(units)}) are cut in different ways")
            continue
        split = next(iter(found), None)
        if split is None or shape[split.dim] == split.size:
            continue
        bounds = {bound for unit in units if unit.dim == split.dim for one in unit.ranges or () for bound in one}
        if any(bound % split.size for bound in (shape[split.dim], *bounds)):
            problems.append(f"{name} {list(shape)}: its parts are no multiples of the {split.size} of one head")
            continue
        splits[name] = split
    if problems:
        raise ModelError("this model cannot be scored by rows; use tensors or elements:\n" + listing(problems))
    return splits


def unit_parts(name: str, shape: tuple[int, ...], split: Split | None) -> list[Part]:
    """(rows, columns) of each unit of a parameter in order, as a core file has them; (None, None) for a whole one.

    Raises:
        ValueError: the parameter is not a whole number of units.
    """
    if split is None:
        return [(None, None)]
    if split.dim >= len(shape) or shape[split.dim] % split.size:
        raise ValueError(f"{name}: shape {list(shape)} is not a whole number of units of {split}")
    starts = range(0, shape[split.dim], split.size)
    if split.dim == 0:
        return [(((start, start + split.size),), None) for start in starts]
    return [(None, ((start, start + split.size),)) for start in starts]


def unit_kinds(anatomy: Anatomy, name: str, split: Split | None) -> list[str]:
    """The component of each unit of a parameter; those of a whole one joined by `+`, `excluded` if it has none.

    Joined are also those of parts that every unit has something of, as each expert has of gate and up.
    """
    units = anatomy.units_of(name)
    whole = _components(units) or "excluded"
    if split is None:
        return [whole]
    kinds = [whole] * (anatomy.inventory.shapes[name][split.dim] // split.size)
    for unit in units:
        for start, stop in (unit.ranges or ()) if unit.dim == split.dim else ():
            kinds[start // split.size : stop // split.size] = [unit.component] * ((stop - start) // split.size)
    return kinds


def transposed_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights that transformers stores [in, out] (`Conv1D`, as GPT-2 has them)."""
    from transformers.pytorch_utils import Conv1D

    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))


def _head_dim(config: Any) -> int:
    text = config.get_text_config()
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _split(unit: Unit, head_dim: int, transposed: bool) -> Split | None:
    """By what a unit's parameter is cut; vectors have outputs only, so those of a component cut by input stay whole."""
    per_neuron = unit.component in PER_NEURON_OUT | PER_NEURON_IN
    if unit.component in PER_EXPERT or (per_neuron and _of_experts(unit)):
        return Split(0, 1)
    size = 1 if per_neuron else head_dim if unit.head is None else unit.head
    if not size:
        return None
    if unit.component in PER_HEAD_OUT | PER_NEURON_OUT:
        return Split(1 if transposed and len(unit.shape) > 1 else 0, size)
    if unit.component in PER_HEAD_IN | PER_NEURON_IN and len(unit.shape) > 1:
        return Split(0 if transposed else 1, size)
    return None


def _of_experts(unit: Unit) -> bool:
    """Whether the first dimension counts experts: weights of all of them have three, their biases two."""
    return len(unit.shape) == (2 if unit.role == BIAS else 3)


def _components(units: tuple[Unit, ...]) -> str:
    return "+".join(dict.fromkeys(unit.component for unit in units))
