"""The top r of scored parameters: the one place where a ratio becomes a core set."""

from __future__ import annotations

from collections.abc import Sequence

from trace_transfer.artefacts import CoreParameter

ROUNDING = 1e-9  # keeps 0.29 * 100, which is 28.999999999999996, at 29


def select(parameters: Sequence[CoreParameter], ratio: float, unit: str = "tensors") -> tuple[CoreParameter, ...]:
    """Mark the top r as core.

    Args:
        parameters: in order of preference where scores tie; parameters without a score are never chosen.
        ratio: in (0, 1]; 1 selects everything that has a score.
        unit: `tensors`: max(1, floor(r · entries)), as the paper. `elements`: in score order, whatever still fits into
            r of all elements; the best one always does.

    Returns:
        All parameters, best score first, those without a score last.
    """
    ranked = sorted(parameters, key=lambda p: (p.score is None, -(p.score or 0.0)))
    if unit == "tensors":
        count = max(1, int(ratio * len(ranked) + ROUNDING))
        chosen = [index < count and p.score is not None for index, p in enumerate(ranked)]
    else:
        budget = int(ratio * sum(p.num_elements for p in ranked) + ROUNDING)
        chosen, used = [], 0
        for index, parameter in enumerate(ranked):
            fits = parameter.score is not None and (index == 0 or used + parameter.num_elements <= budget)
            used += parameter.num_elements if fits else 0
            chosen.append(fits)
    return tuple(p.model_copy(update={"core": core}) for p, core in zip(ranked, chosen, strict=True))
