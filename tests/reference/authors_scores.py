"""Both profiles written out by hand, number by number: the paper's text, and what its authors' published code does.

Slow and obvious on purpose: Python floats, one element at a time, one tensor at a time. `base` and `tuned` are
tensors by name (tied ones once, in model order), gradients are of the mean answer loss of one example, or of one
batch, by tensor name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass
class Reference:
    """Scores and their terms by tensor (None: cannot be scored), and the core set, best first."""

    scores: dict[str, float | None]
    core: list[str]
    terms: dict[str, dict[str, float]] = field(default_factory=dict)


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.reshape(-1).tolist()


def difference(base: Tensors, tuned: Tensors, name: str) -> list[float]:
    return [after - before for before, after in zip(numbers(base[name]), numbers(tuned[name]), strict=True)]


def sum_of_squares(values: list[float]) -> float:
    return sum(value * value for value in values)


def from_zero_to_one(values: dict[str, float]) -> dict[str, float]:
    low, high = min(values.values()), max(values.values())
    if low == high:
        return dict.fromkeys(values, 0.0)
    return {name: (value - low) / (high - low) for name, value in values.items()}


def combined(l2: dict[str, float], fisher: dict[str, float], count: int, alpha: float) -> Reference:
    l2_score, fisher_score = from_zero_to_one(l2), from_zero_to_one(fisher)
    scores, terms = {}, {}
    for name in l2:
        scores[name] = alpha * l2_score[name] + (1 - alpha) * fisher_score[name]
        terms[name] = {
            "l2_delta": l2[name], "fisher_info": fisher[name],
            "l2_norm_score": l2_score[name], "fisher_norm_score": fisher_score[name],
        }  # fmt: skip
    order = sorted(scores, key=lambda name: -scores[name])  # stable: the model's order where scores are equal
    return Reference(scores, order[:count], terms)


def paper_lf(
    base: Tensors, tuned: Tensors, per_example_grads: Sequence[Tensors], ratio: float, alpha: float = 0.5
) -> Reference:
    """Equations 3 to 5: plain norms, squared gradients of single examples summed over elements; floor(r n) ≥ 1."""
    l2, fisher = {}, {}
    for name in base:
        l2[name] = math.sqrt(sum_of_squares(difference(base, tuned, name)))
        squares = [sum_of_squares(numbers(gradients[name])) for gradients in per_example_grads]
        fisher[name] = sum(squares) / len(squares)
    return combined(l2, fisher, max(1, math.floor(ratio * len(base))), alpha)


def authors_lf(
    base: Tensors, tuned: Tensors, batch_grads: Sequence[Tensors], ratio: float, alpha: float = 0.5
) -> Reference:
    """Root mean squares, and the mean over elements of squared gradients of batches; int(ratio · n)."""
    l2, fisher = {}, {}
    for name in base:
        delta = difference(base, tuned, name)
        l2[name] = math.sqrt(sum_of_squares(delta)) / math.sqrt(len(delta))
        means = [sum_of_squares(numbers(gradients[name])) / len(delta) for gradients in batch_grads]
        fisher[name] = sum(means) / len(means)
    return combined(l2, fisher, int(ratio * len(base)), alpha)


def cosine(one: list[float], other: list[float]) -> float | None:
    """None where one of the two is zero."""
    length = math.sqrt(sum_of_squares(one)) * math.sqrt(sum_of_squares(other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else None


def paper_cs(base: Tensors, tuned_by_task: Mapping[str, Tensors], task: str, ratio: float) -> Reference:
    """Equations 6 to 8; the paper says nothing of zero deltas: such a pair has no cosine and is left out."""
    scores: dict[str, float | None] = {}
    terms = {}
    for name in base:
        mine = difference(base, tuned_by_task[task], name)
        found = [cosine(mine, difference(base, t, name)) for other, t in tuned_by_task.items() if other != task]
        known = [value for value in found if value is not None]
        scores[name] = 1 - sum(known) / len(known) if known else None
        terms[name] = {"mean_cosine": sum(known) / len(known)} if known else {}
    order = sorted((name for name in scores if scores[name] is not None), key=lambda name: -scores[name])
    return Reference(scores, order[: max(1, math.floor(ratio * len(base)))], terms)


def authors_cs(base: Tensors, tuned_by_task: Mapping[str, Tensors], task: str, ratio: float) -> Reference:
    """The mean cosine, least first, with cosine 0 for a zero delta; at least one. (They take it in bfloat16.)"""
    similarity = {}
    for name in base:
        mine = difference(base, tuned_by_task[task], name)
        found = [cosine(mine, difference(base, t, name)) or 0.0 for other, t in tuned_by_task.items() if other != task]
        similarity[name] = sum(found) / len(found)
    order = sorted(similarity, key=lambda name: similarity[name])
    scores: dict[str, float | None] = {name: 1 - value for name, value in similarity.items()}
    terms = {name: {"mean_cosine": value} for name, value in similarity.items()}
    return Reference(scores, order[: max(1, int(ratio * len(base)))], terms)
