"""Which rows, representation, transform and policy match layers best? Known truth and stability, as two tables.

    python -m tests.studies.layer_matching truth MODEL [--seeds 3]      disguised copies of a LLaMA model
    python -m tests.studies.layer_matching pair SOURCE TARGET           stability on two real models

Each model is read once; all kinds of rows, both representations and both transforms are taken from that one pass.
`--texts` and `--splits` make it shorter. Tables are Markdown, on stdout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from tests.disguise import disguise
from trace_transfer.data.probe import ProbeSet, Reading, RowPlan, load_probe, plan_rows
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.transfer.matching import match_layers, split_half_stability
from trace_transfer.transfer.policies import POLICIES
from trace_transfer.transfer.probing import REPRESENTATIONS, TRANSFORMS, LayerRows, read_layers
from trace_transfer.transfer.settings import PROFILES, MapSettings
from trace_transfer.transfer.similarity import (
    SIMILARITIES,
    GramStack,
    Halves,
    pack_layer,
    packed_length,
    split_halves,
)

ROWS = ("boundary", "word", "example")
Stacks = dict[tuple[str, str, str], GramStack]  # (rows, representation, transform)


@dataclass(frozen=True)
class Variant:
    """One way to match layers."""

    rows: str
    representation: str
    transform: str
    similarity: str
    policy: str

    @classmethod
    def of(cls, settings: MapSettings) -> Variant:
        return cls(settings.rows, settings.representation, settings.transform, settings.similarity, settings.match)

    @property
    def label(self) -> str:
        for name in PROFILES:
            if self == Variant.of(MapSettings.of(name)):
                return f"**{name}**"
        return ""


def read_pair(source: OpenModel, target: OpenModel, probe: ProbeSet, max_length: int = 128) -> tuple[Stacks, Stacks]:
    """Gram matrices of both models for all kinds of rows, representations and transforms, each model read once."""
    tokenizers = load_tokenizer(source.source), load_tokenizer(target.source)
    plans = {
        kind: plan_rows(
            probe, *tokenizers, kind=kind, num_minibatches=1 if kind == "example" else 8, max_length=max_length
        )
        for kind in ROWS
    }
    return (
        _read(source, plans, {kind: plan.source for kind, plan in plans.items()}),
        _read(target, plans, {kind: plan.target for kind, plan in plans.items()}),
    )


def _read(model: OpenModel, plans: dict[str, RowPlan], readings: dict[str, Reading]) -> Stacks:
    ids = readings["boundary"].ids
    spans = torch.cat([readings[kind].spans_R2 for kind in ROWS])
    texts = torch.cat([plans[kind].texts_R for kind in ROWS])
    counts = [len(plans[kind].texts_R) for kind in ROWS]
    packed = {
        (kind, name, transform): torch.empty(model.anatomy.num_layers, sum(map(packed_length, plans[kind].sizes)))
        for kind in ROWS
        for name in REPRESENTATIONS
        for transform in TRANSFORMS
    }
    with Terminal().task(f"reading {model.name}", model.anatomy.num_layers) as advance:

        def consume(rows: LayerRows) -> None:
            for name in REPRESENTATIONS:
                for kind, part in zip(ROWS, getattr(rows, name).split(counts), strict=True):
                    for transform, function in TRANSFORMS.items():
                        pack_layer(function(part), plans[kind].sizes, packed[kind, name, transform][rows.layer])
            advance()

        read_layers(
            model.config,
            open_checkpoint(model.source),
            model.anatomy.layer_path,
            Reading(ids, spans),
            texts,
            consume,
            name=model.name,
        )
    return {key: GramStack(values, plans[key[0]].minibatch_texts) for key, values in packed.items()}


def variants(similarities: tuple[str, ...] = ("cka-debiased",)) -> Iterator[Variant]:
    for rows in ROWS:
        for representation in REPRESENTATIONS:
            for transform in TRANSFORMS:
                for similarity in similarities:
                    for policy in (name for name, one in POLICIES.items() if one.control is None):
                        yield Variant(rows, representation, transform, similarity, policy)
    yield Variant.of(MapSettings.of("paper"))


@dataclass(frozen=True)
class Truth:
    """How a variant did on one disguised copy."""

    found: int
    total: int
    margin: float


def score_truth(variant: Variant, source: Stacks, target: Stacks, truth: list[int]) -> Truth:
    """Layers whose true partner was chosen, and the median margin of the choices."""
    key = (variant.rows, variant.representation, variant.transform)
    match = match_layers(source[key], target[key], similarity=variant.similarity, policy=variant.policy, num_splits=0)
    pairs = set(match.as_pairs)
    if match.by_target:
        chosen = {t: s for s, t in pairs}
        found = sum(chosen[t] == s for s, t in enumerate(truth))
    else:
        chosen = dict(pairs)
        found = sum(chosen.get(s) == t for s, t in enumerate(truth))
    true_pairs = set(enumerate(truth))
    margins = [p.margin for p in match.pairs if p.margin is not None and (p.source, p.target) in true_pairs]
    return Truth(found, len(truth), float(np.median(margins)) if margins else float("nan"))


@click.group()
def main() -> None:
    quiet_libraries()


@main.command()
@click.argument("model")
@click.option("--seeds", default=3, show_default=True)
@click.option("--texts", default=480, show_default=True)
@click.option("--insert", default=3, show_default=True)
def truth(model: str, seeds: int, texts: int, insert: int) -> None:
    """Disguised copies of MODEL, a directory of a LLaMA model: how many layers does each variant find?"""
    registry, probe = load_families(), shortened(texts)
    original = open_model(model, registry)
    results: dict[Variant, list[Truth]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as directory:
            known = disguise(Path(model), Path(directory) / "copy", insert=insert, seed=seed)
            copy = open_model(Path(directory) / "copy", registry)
            source, target = read_pair(original, copy, probe)
        for variant in variants():
            results.setdefault(variant, []).append(score_truth(variant, source, target, known))
    print(f"\n{seeds} disguised copies of {original.name}, {insert} layers inserted in each, {texts} texts.\n")
    print("| rows | representation | transform | similarity | policy | layers found | median margin | |")
    print("|---|---|---|---|---|---|---|---|")
    for variant, scores in results.items():
        found = " ".join(str(s.found) for s in scores) + f" of {scores[0].total}"
        print(f"| {_cells(variant)} | {found} | {np.mean([s.margin for s in scores]):.4f} | {variant.label} |")


@main.command()
@click.argument("source")
@click.argument("target")
@click.option("--texts", default=480, show_default=True)
@click.option("--splits", default=10, show_default=True)
@click.option("--similarity", "similarities", multiple=True, default=("cka-debiased",), show_default=True)
def pair(source: str, target: str, texts: int, splits: int, similarities: tuple[str, ...]) -> None:
    """Stability over texts, coverage, margins and agreement with depth, for two real models."""
    registry = load_families()
    models = open_model(source, registry), open_model(target, registry)
    stacks = read_pair(*models, shortened(texts))
    print(
        f"\n{models[0].name} → {models[1].name}, {texts} texts, {splits} splits into halves without a text in common.\n"
    )
    print("| rows | representation | transform | similarity | policy | target layers used | median margin | "
          "same choice | ±1 | as by depth, ±1 | gain over depth, held out | |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    halves_of: dict[tuple[str, ...], Halves] = {}
    for variant in variants(similarities):
        key = (variant.rows, variant.representation, variant.transform)
        measure = SIMILARITIES[variant.similarity]
        halves = halves_of.get((*key, variant.similarity))
        if halves is None:
            halves = split_halves(stacks[0][key], stacks[1][key], measure, num_splits=splits, seed=0)
            halves_of[(*key, variant.similarity)] = halves
        match = match_layers(
            stacks[0][key], stacks[1][key], similarity=variant.similarity, policy=variant.policy, num_splits=0
        )
        split = split_half_stability(halves, POLICIES[variant.policy], match.as_pairs, match.by_target)
        used = match.similarity.shape[1] - len(match.unmatched_targets)
        margin = np.median([p.margin for p in match.pairs])
        mean, deviation = split.gain_over_depth
        print(
            f"| {_cells(variant)} | {used} of {match.similarity.shape[1]} | {margin:+.4f} | {split.same:.3f} | "
            f"{split.within_one:.3f} | {match.depth.within_one:.2f} | {mean:+.3f} ± {deviation:.3f} | "
            f"{variant.label} |",
            flush=True,
        )


def shortened(texts: int) -> ProbeSet:
    probe = load_probe()
    return ProbeSet(f"first {texts} of {probe.name}", probe.texts[:texts])


def _cells(variant: Variant) -> str:
    return " | ".join((variant.rows, variant.representation, variant.transform, variant.similarity, variant.policy))


if __name__ == "__main__":
    main()
