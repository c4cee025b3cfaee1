"""Parts of fused tensors: from symbolic bounds to index ranges, and the check that the parts tile their tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trace_transfer.errors import RulesError
from trace_transfer.families.tables import Part
from trace_transfer.models.sources import AXES, Ranges


def ranges_of(part: Part, shape: tuple[int, ...], lookup: Callable[[str], int]) -> Ranges:
    """The half-open index ranges of a part along its dimension of a tensor of that shape, in order.

    Raises:
        RulesError: a name cannot be resolved, or the range is empty, reversed or outside of the tensor.
    """
    kind = AXES[part.dim]
    if part.dim >= len(shape):
        raise RulesError(f"{part}: a tensor of shape {list(shape)} has no {kind}")
    size = shape[part.dim]
    start, stop = part.start.evaluate(lookup), part.stop.evaluate(lookup)
    every = size if part.every is None else part.every.evaluate(lookup)
    if every < 1 or size % every:
        raise RulesError(f"{part}: blocks of {every} do not divide the {size} {kind} of shape {list(shape)}")
    if not 0 <= start < stop <= every:
        limit = f"a block of {every}" if part.every else f"the {size} {kind} of shape {list(shape)}"
        raise RulesError(f"{part} is [{start}, {stop}], which is empty, reversed or outside of {limit}")
    return tuple((offset + start, offset + stop) for offset in range(0, size, every))


@dataclass(frozen=True)
class Claim:
    """One component's hold on a parameter; `ranges` (and `dim`) of None is all of it. `who` names it in messages."""

    who: str
    dim: int | None
    ranges: Ranges | None
    shared: bool = False


def tiling_problems(claims: Sequence[Claim], shape: tuple[int, ...]) -> list[str]:
    """Why these claims on one parameter do not cover each of its elements exactly once; empty if they do.

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
