"""All that scores are made of, entry by entry: deltas, Fisher information and the model's anatomy as arrays.

An entry is a parameter, or with `unit: rows` a head or neuron of it. Nothing is read here but what other stages read.

Shapes: P entries, N deltas (tasks times replicates), K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trace_transfer.families.anatomy import Anatomy, Split, unit_kinds, unit_parts
from trace_transfer.identification.differencing import Deltas, grams_of
from trace_transfer.identification.inner_products import averaged, cosines_of
from trace_transfer.identification.records import FisherFile
from trace_transfer.identification.saliency import Statistics
from trace_transfer.models.sources import Ranges, part_numel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """What is scored: a parameter, or some rows or columns of it. `component` is `a+b` if it is of several."""

    name: str
    shape: tuple[int, ...]
    rows: Ranges | None
    columns: Ranges | None
    component: str
    layer: int | None

    @property
    def num_elements(self) -> int:
        return part_numel(self.shape, self.rows, self.columns)


@dataclass(frozen=True)
class Fisher:
    """Fisher information of one task or replicate; `units` has that of the units of each parameter that has any."""

    file: FisherFile
    units: Mapping[str, Tensor]


@dataclass(frozen=True)
class Evidence:
    """Arrays over entries and deltas; `deltas_of_K` are the indices of each task's deltas among the N."""

    tasks: tuple[str, ...]
    deltas_of_K: tuple[tuple[int, ...], ...]
    entries: tuple[Entry, ...]
    gram_PNN: Array
    base_norms_P: Array
    fisher_PN: Array | None

    @property
    def num_replicates(self) -> int:
        """Replicates that every task has."""
        return min(map(len, self.deltas_of_K))

    def statistics(self) -> Statistics:
        """Of each task's mean delta over its replicates, and its mean Fisher information."""
        groups = self.deltas_of_K
        fisher_PK = None
        if self.fisher_PN is not None:
            fisher_PK = np.stack([self.fisher_PN[:, list(group)].mean(axis=1) for group in groups], axis=1)
        return self._statistics(averaged(self.gram_PNN, groups), fisher_PK, self._reliability())

    def replicate(self, index: int) -> Statistics:
        """Of one replicate of each task: nothing in it depends on the others'."""
        chosen = [group[index] for group in self.deltas_of_K]
        fisher_PK = None if self.fisher_PN is None else self.fisher_PN[:, chosen]
        return self._statistics(self.gram_PNN[:, chosen][:, :, chosen], fisher_PK, None)

    def replicate_cosines(self) -> Mapping[str, float]:
        """Task → median over entries of the cosine of its two replicates' deltas."""
        cosines_PNN = cosines_of(self.gram_PNN)
        return {
            task: float(np.nanmedian(cosines_PNN[:, group[0], group[1]]))
            for task, group in zip(self.tasks, self.deltas_of_K, strict=True)
            if len(group) == 2
        }

    def _reliability(self) -> Array | None:
        """How much of the squared mean delta two replicates agree on: <first, second> / |mean|².

        With it cos(k, j) / √(rel_k rel_j) is <k, j> / √(<k1, k2> <j1, j2>), in which noise has no expectation.
        """
        if self.num_replicates < 2:
            return None
        means_PKK = averaged(self.gram_PNN, self.deltas_of_K)
        agreed_PK = np.stack([self.gram_PNN[:, group[0], group[1]] for group in self.deltas_of_K], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return agreed_PK / np.diagonal(means_PKK, axis1=1, axis2=2)

    def _statistics(self, gram_PKK: Array, fisher_PK: Array | None, reliability_PK: Array | None) -> Statistics:
        return Statistics(
            gram_PKK=gram_PKK,
            numel_P=np.array([entry.num_elements for entry in self.entries]),
            fisher_PK=fisher_PK,
            base_norms_P=self.base_norms_P,
            kinds_P=tuple(entry.component for entry in self.entries),
            reliability_PK=reliability_PK,
            tasks_K=self.tasks,
        )


def gather(
    anatomy: Anatomy, deltas: Deltas, fisher: Sequence[Fisher] | None, splits: Mapping[str, Split] | None
) -> Evidence:
    """Bring everything into one order.

    Args:
        fisher: one for each delta, in their order; None where the method needs none.
        splits: how parameters are cut into units; None for whole parameters.
    """
    tuned = deltas.file.tuned
    tasks = tuple(dict.fromkeys(one.task for one in tuned))
    groups = tuple(tuple(index for index, one in enumerate(tuned) if one.task == task) for task in tasks)
    whole_PNN = grams_of(deltas.file)
    entries: list[Entry] = []
    grams, base_norms, values = [], [], []
    whole_fisher = [{p.name: p.value for p in one.file.parameters} for one in fisher or ()]
    for index, parameter in enumerate(deltas.file.parameters):
        name, split = parameter.name, (splits or {}).get(parameter.name)
        entries += entries_of(anatomy, name, parameter.shape, split)
        if split is None:
            grams.append(whole_PNN[index][None])
            base_norms.append([parameter.base_norm])
            if fisher is not None:
                values.append(np.array([[one[name] for one in whole_fisher]]))
        else:
            grams_UNN = deltas.units[name].numpy()
            grams.append(grams_UNN[:, :-1, :-1])
            base_norms.append(np.sqrt(grams_UNN[:, -1, -1]))
            if fisher is not None:
                values.append(np.stack([one.units[name].numpy() for one in fisher], axis=-1))
    return Evidence(
        tasks=tasks,
        deltas_of_K=groups,
        entries=tuple(entries),
        gram_PNN=np.concatenate(grams),
        base_norms_P=np.concatenate(base_norms),
        fisher_PN=np.concatenate(values) if fisher is not None else None,
    )


def entries_of(anatomy: Anatomy, name: str, shape: tuple[int, ...], split: Split | None) -> list[Entry]:
    """The entries of one parameter, first rows (or columns) first."""
    units = anatomy.units_of(name)
    layer = units[0].layer if units else None
    return [
        Entry(name, shape, rows, columns, kind, layer)
        for (rows, columns), kind in zip(unit_parts(name, shape, split), unit_kinds(anatomy, name, split), strict=True)
    ]
