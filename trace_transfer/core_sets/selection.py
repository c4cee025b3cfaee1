"""The top r of scored parameters: the one place where a ratio becomes a core set."""

from __future__ import annotations

from collections.abc import Sequence

from trace_transfer.core_sets.core_file import CoreParameter

ROUNDING = 1e-9  # keeps 0.29 * 100, which is 28.999999999999996, at 29
UNITS = ("tensors", "elements", "rows")


def select(parameters: Sequence[CoreParameter], ratio: float, unit: str = "tensors") -> tuple[CoreParameter, ...]:
    """Mark the top r as core.

    Args:
        parameters: in order of preference where scores tie; parameters without a score are never chosen. With `rows`,
            an entry is a head or a neuron, or a whole parameter that has none.
        ratio: in (0, 1]; 1 selects everything that has a score.
        unit: `tensors`: max(1, floor(r · entries)), as the paper. `elements` and `rows`: in score order, whatever still
            fits into r of all elements; an embedding larger than that is passed over, however high its score. Where
            nothing fits the best one alone is taken.

    Returns:
        All parameters, best score first, those without a score last; equal scores in the order given.

    Raises:
        ValueError: no such unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r} is none of {', '.join(UNITS)}")
    ranked = sorted(parameters, key=_best_first)
    chosen = _within_count(ranked, ratio) if unit == "tensors" else _within_budget(ranked, ratio)
    # Copies are slow, and with rows there are a million entries: only what changes is copied.
    return tuple(
        p if p.core == core else p.model_copy(update={"core": core}) for p, core in zip(ranked, chosen, strict=True)
    )


def ties_at_the_cut(parameters: Sequence[CoreParameter]) -> bool:
    """Whether an entry of the core set and one outside have the same score, so that their order alone decided."""
    inside = {p.score for p in parameters if p.core}
    return any(p.score in inside for p in parameters if not p.core)


def _best_first(parameter: CoreParameter) -> tuple[bool, float]:
    return parameter.score is None, -(parameter.score or 0.0)


def _within_count(ranked: Sequence[CoreParameter], ratio: float) -> list[bool]:
    count = max(1, int(ratio * len(ranked) + ROUNDING))
    return [index < count and p.score is not None for index, p in enumerate(ranked)]


def _within_budget(ranked: Sequence[CoreParameter], ratio: float) -> list[bool]:
    sizes = [p.num_elements for p in ranked]
    budget = int(ratio * sum(sizes) + ROUNDING)
    chosen, used = [], 0
    for parameter, size in zip(ranked, sizes, strict=True):
        fits = parameter.score is not None and used + size <= budget
        used += size if fits else 0
        chosen.append(fits)
    if not any(chosen) and ranked and ranked[0].score is not None:
        chosen[0] = True
    return chosen
