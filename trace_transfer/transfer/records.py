"""What `map` finds: which layer goes with which, and which tensor with which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from trace_transfer.records import ModelIdentity, Name, Range, Strict
from trace_transfer.transfer.policies import POLICIES, Matrix, Pairs

OFTEN = 0.25  # half of the texts choose another layer more often than this: the pair is ambiguous
UNSTABLE = 0.5  # fewer layers keep their partner on other texts, or more pairs are ambiguous: mostly chance


class ProbeRecord(Strict):
    """Which texts, and which rows of them, the layers were compared on."""

    name: Name
    sha256: str
    num_texts: int
    rows: Literal["boundary", "word", "example", "none"]
    num_minibatches: int
    num_rows: int
    max_length: int
    seed: int


class LayerPair(Strict):
    """A matched pair; `margin` is how much more alike it is than the runner-up, negative where order overruled it."""

    source: int
    target: int
    similarity: float | None = None
    margin: float | None = None
    runner_up: int | None = None
    flip_rate: float | None = None

    @property
    def is_ambiguous(self) -> bool:
        """Whether the texts do not tell its layers from their runner-up."""
        return self.flip_rate is not None and self.flip_rate > OFTEN


def rated(
    pairs: Pairs, similarity_ST: Matrix, by_target: bool, flip_rates: Mapping[int, float] | None = None
) -> tuple[LayerPair, ...]:  # fmt: skip
    """Chosen pairs with margins, runners-up (among source layers if target layers chose) and flip rates by chooser."""
    found = []
    for s, t in pairs:
        value, (chooser, chosen) = similarity_ST[s, t], (t, s) if by_target else (s, t)
        others = (similarity_ST[:, t] if by_target else similarity_ST[s]).copy()
        others[chosen] = np.nan
        known = not np.isnan(others).all() and not np.isnan(value)
        runner_up = int(np.nanargmax(others)) if known else None
        found.append(
            LayerPair(
                source=s, target=t, similarity=None if np.isnan(value) else float(value),
                margin=None if runner_up is None else float(value - others[runner_up]), runner_up=runner_up,
                flip_rate=None if flip_rates is None else flip_rates.get(chooser),
            )
        )  # fmt: skip
    return tuple(found)


class Stability(Strict):
    """Share of layers for which two disjoint random halves of the texts choose the same layer, or one next to it."""

    num_splits: int
    same: float
    within_one: float


class Depth(Strict):
    """Comparison with the match by relative depth alone; `held_out_gain` is the mean over splits of the gain on texts
    that chose no pair, with its standard deviation."""

    agreement: float
    within_one: float
    mean_similarity_gain: float
    held_out_gain: tuple[float, float] | None = None

    @property
    def is_as_good(self) -> bool:
        """Whether the gain is within the noise of the texts."""
        return self.held_out_gain is not None and self.held_out_gain[0] <= 2 * self.held_out_gain[1]


class LayerMatch(Strict):
    """`layer_match.json`; the whole matrix lies beside it in `similarity.safetensors`."""

    format: Literal["trace-transfer/layer-match"] = "trace-transfer/layer-match"
    version: Literal[1] = 1
    source: ModelIdentity
    target: ModelIdentity
    probe: ProbeRecord
    similarity: str
    representation: str
    transform: str
    policy: str
    chosen_by: Literal["source", "target"]
    pairs: tuple[LayerPair, ...]
    unmatched_sources: tuple[int, ...] = ()
    unmatched_targets: tuple[int, ...] = ()
    degenerate_sources: tuple[int, ...] = ()
    degenerate_targets: tuple[int, ...] = ()
    stability: Stability | None = None
    depth: Depth | None = None
    policy_agreement: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One line: whether the match can be used, and why."""
        if not self.probe.num_texts:
            return "by relative depth alone: --match coverage reads both models and says what it gains over that"
        if self.stability is None:
            return "untested: too few texts, or no --splits, to test the match on other texts"
        word, ambiguous = "usable", sum(pair.is_ambiguous for pair in self.pairs)
        if self.policy in POLICIES and POLICIES[self.policy].control:
            word = "a control"
        elif self.stability.same < UNSTABLE or ambiguous > UNSTABLE * len(self.pairs):
            word = "unstable"
        elif self.depth and self.depth.is_as_good:
            word = "no better than matching by depth"
        told = [f"{self.stability.same:.0%} of the layers keep their partner on other texts"]
        if self.depth and self.depth.held_out_gain:
            told.append(f"CKA {self.depth.held_out_gain[0]:+.3f} over matching by depth")
        return f"{word}: " + ", ".join([*told, f"{ambiguous} of {len(self.pairs)} pairs ambiguous"])


class ListedPart(Strict):
    """A tensor, or ranges of one of its dimensions."""

    name: Name
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    depth: tuple[Range, ...] | None = None


class ListedTarget(ListedPart):
    """What a source tensor is carried to, by which lines of the rules."""

    rule: str


class ListedSource(ListedPart):
    """A source tensor with its targets, or the reason why it has none."""

    components: tuple[str, ...]
    targets: tuple[ListedTarget, ...]
    dropped: str | None = None


class UnreachedTarget(ListedPart):
    """A target tensor that nothing is carried to, and why."""

    reason: str


class CorrespondenceFile(Strict):
    """`correspondence.json`: every source tensor with its targets or the reason why it has none."""

    format: Literal["trace-transfer/correspondence"] = "trace-transfer/correspondence"
    version: Literal[1] = 1
    source: ModelIdentity
    target: ModelIdentity
    layer_match_sha256: str
    parameters: tuple[ListedSource, ...]
    unreached_targets: tuple[UnreachedTarget, ...]
    counts: dict[str, int]
    libraries: dict[str, str] = Field(default_factory=dict)
