"""Which rows, representation, transform and policy match layers best? Known truth and stability, as two tables.

    python -m tests.studies.layer_matching truth MODEL [--seeds 3]      disguised copies of a LLaMA model
    python -m tests.studies.layer_matching pair SOURCE TARGET           stability on two real models, both directions

Each model is read once; all kinds of rows, both representations and both transforms are taken from that one pass.
`--texts` and `--splits` make it shorter. Tables are Markdown, on stdout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from tests.disguise import disguise
from trace_transfer.data.probe import ProbeSet, Reading, RowPlan, load_probe, plan_rows
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.transfer.matching import agreement, split_half_stability
from trace_transfer.transfer.policies import POLICIES, Matrix, depth_pairs
from trace_transfer.transfer.probing import REPRESENTATIONS, TRANSFORMS, LayerRows, read_layers
from trace_transfer.transfer.records import LayerPair, rated
from trace_transfer.transfer.settings import MapSettings
from trace_transfer.transfer.similarity import SIMILARITIES, GramStack, pack_layer, packed_length, split_halves

ROWS = ("boundary", "word", "example")
Stacks = dict[tuple[str, str, str], GramStack]  # (rows, representation, transform)
COMBINED = {
    "mean of both": lambda stream_ST, update_ST: (stream_ST + update_ST) / 2,
    "scaled mean": lambda stream_ST, update_ST: (stream_ST / stream_ST.std() + update_ST / update_ST.std()) / 2,
}


class Variant(NamedTuple):
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
        return next((f"**{name}**" for name in MapSettings.PROFILES if self == Variant.of(MapSettings.of(name))), "")


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
    reading = Reading(readings["boundary"].ids, torch.cat([readings[kind].spans_R2 for kind in ROWS]))
    texts = torch.cat([plans[kind].texts_R for kind in ROWS])
    counts = [len(plans[kind].texts_R) for kind in ROWS]
    packed = {
        key: torch.empty(model.anatomy.num_layers, sum(map(packed_length, plans[key[0]].sizes)))
        for key in product(ROWS, REPRESENTATIONS, TRANSFORMS)
    }
    with Terminal().task(f"reading {model.name}", model.anatomy.num_layers) as advance:

        def consume(rows: LayerRows) -> None:
            parts = {name: dict(zip(ROWS, getattr(rows, name).split(counts), strict=True)) for name in REPRESENTATIONS}
            for (kind, name, transform), values in packed.items():
                pack_layer(TRANSFORMS[transform](parts[name][kind]), plans[kind].sizes, values[rows.layer])
            advance()

        weights, path = open_checkpoint(model.source), model.anatomy.layer_path
        read_layers(model.config, weights, path, reading, texts, consume, name=model.name)
    return {key: GramStack(values, plans[key[0]].texts_R.split(plans[key[0]].sizes)) for key, values in packed.items()}


def variants() -> Iterator[Variant]:
    policies = [name for name, one in POLICIES.items() if one.control is None]
    representations = (*REPRESENTATIONS, *COMBINED)
    yield from map(Variant._make, product(ROWS, representations, TRANSFORMS, ("cka-debiased",), policies))
    yield Variant.of(MapSettings.of("paper"))


def similarities(source: Stacks, target: Stacks, num_splits: int) -> dict[tuple[str, ...], list[Matrix]]:
    """Of each variant but its policy, [S, T] of all texts, then of both halves of each split."""
    found: dict[tuple[str, ...], list[Matrix]] = {}
    for key in dict.fromkeys(variant[:4] for variant in variants()):
        rows, representation, transform, name = key
        if combine := COMBINED.get(representation):  # they come after those that they are made of
            found[key] = list(map(combine, *(found[rows, one, transform, name] for one in REPRESENTATIONS)))
            continue
        both, measure = (source[key[:3]], target[key[:3]]), SIMILARITIES[name]
        halves = split_halves(*both, measure, num_splits=num_splits, seed=0)
        found[key] = [measure(*both).numpy(), *(half for split in halves for half in split)]
    return found


def matched(variant: Variant, similarity_ST: Matrix) -> tuple[tuple[LayerPair, ...], bool]:
    """The pairs, and whether target layers chose."""
    policy = POLICIES[variant.policy]
    by_target = policy.target_chooses(similarity_ST.shape)
    return rated(policy(similarity_ST), similarity_ST, by_target), by_target


def score_truth(variant: Variant, similarity_ST: Matrix, truth: list[int]) -> tuple[int, float]:
    """How many layers' true partner was chosen, and the median margin of these choices."""
    pairs, by_target = matched(variant, similarity_ST)
    chosen = {p.target: p.source for p in pairs} if by_target else {p.source: p.target for p in pairs}
    true = set(enumerate(truth))
    found = sum(chosen[t] == s if by_target else chosen.get(s) == t for s, t in true)
    margins = [p.margin for p in pairs if p.margin is not None and (p.source, p.target) in true]
    return found, float(np.median(margins)) if margins else float("nan")


@click.group()
def main() -> None:
    quiet_libraries()


@main.command()
@click.argument("model")
@click.option("--seeds", default=3, show_default=True)
@click.option("--texts", default=480, show_default=True)
def truth(model: str, seeds: int, texts: int) -> None:
    """Disguised copies of MODEL, a directory of a LLaMA model: how many layers does each variant find?"""
    registry, probe = load_families(), shortened(texts)
    original = open_model(model, registry)
    results: dict[Variant, list[tuple[int, float]]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as directory:
            known = disguise(Path(model), Path(directory) / "copy", insert=3, seed=seed)
            copy = open_model(Path(directory) / "copy", registry)
            found = similarities(*read_pair(original, copy, probe), 0)
        for variant in variants():
            results.setdefault(variant, []).append(score_truth(variant, *found[variant[:4]], known))
    print(f"\n{seeds} disguised copies of {original.name}, 3 layers inserted in each, {texts} texts.\n")
    print("| rows | representation | transform | similarity | policy | layers found | median margin | |")
    print("|---|---|---|---|---|---|---|---|")
    for variant, scores in results.items():
        found = " ".join(str(count) for count, _ in scores) + f" of {original.anatomy.num_layers}"
        print(f"| {' | '.join(variant)} | {found} | {np.mean([m for _, m in scores]):.4f} | {variant.label} |")


@main.command()
@click.argument("source")
@click.argument("target")
@click.option("--texts", default=480, show_default=True)
@click.option("--splits", default=10, show_default=True)
def pair(source: str, target: str, texts: int, splits: int) -> None:
    """Stability over texts, coverage, margins and agreement with depth, for two real models in both directions."""
    registry = load_families()
    models = open_model(source, registry), open_model(target, registry)
    found = similarities(*read_pair(*models, shortened(texts)), splits)
    for one, other, turn in ((*models, False), (*models[::-1], True)):
        print(f"\n{one.name} → {other.name}, {texts} texts, {splits} splits into halves without a text in common.\n")
        print("| rows | representation | transform | similarity | policy | target layers used | median margin | "
              "same choice | ±1 | as by depth, ±1 | gain over depth, held out | |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for variant in variants():
            print(row(variant, [matrix.T if turn else matrix for matrix in found[variant[:4]]]), flush=True)


def row(variant: Variant, matrices: list[Matrix]) -> str:
    whole, halves = matrices[0], tuple(zip(matrices[1::2], matrices[2::2], strict=True))
    rated_pairs, by_target = matched(variant, whole)
    pairs = tuple((pair.source, pair.target) for pair in rated_pairs)
    stability, _, (mean, deviation) = split_half_stability(halves, POLICIES[variant.policy], pairs, by_target)
    used, margin = len({target for _, target in pairs}), np.median([p.margin for p in rated_pairs])
    _, near = agreement(pairs, depth_pairs(whole.shape, by_target=by_target), by_target)
    told = f"{used} of {whole.shape[1]} | {margin:+.4f} | {stability.same:.3f} | {stability.within_one:.3f}"
    return f"| {' | '.join(variant)} | {told} | {near:.2f} | {mean:+.3f} ± {deviation:.3f} | {variant.label} |"


def shortened(texts: int) -> ProbeSet:
    probe = load_probe()
    return ProbeSet(f"first {texts} of {probe.name}", probe.texts[:texts])


if __name__ == "__main__":
    main()
