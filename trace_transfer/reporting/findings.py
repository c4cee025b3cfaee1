"""Sections on what the run's steps found: layer matches, importance, overlap of core sets, what moved, embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import TypeVar

from trace_transfer.core_sets import overlap
from trace_transfer.core_sets.show import jaccard
from trace_transfer.reporting import numbers
from trace_transfer.reporting.blocks import (
    Block,
    Cells,
    Heading,
    Line,
    Paragraph,
    Picture,
    Plots,
    Section,
    code,
    strong,
)
from trace_transfer.reporting.contents import ROLES, CoreFound, MatchFound, ReportContents, VerifiedFound
from trace_transfer.reporting.heatmaps import importance_plot, importance_plots, match_plot, match_title

Found = TypeVar("Found", MatchFound, CoreFound)
MOST_FIGURES = 1_900_000  # bytes of importance figures in the page, beside plotly.js's 4.8 MB
MOST_PICTURE = 600_000  # bytes of a PNG in it


def layers(contents: ReportContents) -> Section | None:
    """Each policy's match, of the first seed that has it."""
    shown: dict[str, MatchFound] = {}
    for found in _of_main(contents.matches):
        shown.setdefault(found.match.policy, found)
    if not shown:
        return None
    rows = []
    for policy, found in shown.items():
        match = found.match
        depth, stability = match.depth, match.stability
        used = len({pair.target for pair in match.pairs})
        margins = sorted(pair.margin for pair in match.pairs if pair.margin is not None)
        rows.append(
            (match_title(policy), match.representation, match.similarity,
             f"{used} of {match.target.num_layers}",
             numbers.value(margins[len(margins) // 2]) if margins else "–",
             f"{stability.same:.2f} / {stability.within_one:.2f}" if stability else "–",
             f"{depth.agreement:.2f}" if depth else "–",
             numbers.signed(depth.mean_similarity_gain) if depth else "–", code(found.directory))
        )  # fmt: skip
    warnings = dict.fromkeys(warning for found in shown.values() for warning in found.match.warnings)
    probe = next(iter(shown.values())).match.probe
    blocks: tuple[Block, ...] = (
        Paragraph(
            f"Each layer of {contents.name_of('source')} was compared with each layer of "
            f"{contents.name_of('target')} on the same {numbers.several(probe.num_texts, 'text')} ({probe.name}, "
            f"{probe.rows} rows). A dot marks a pair that was matched, a diamond its runner-up; on the dashed line "
            "both layers are equally deep. CKA is 1 where both hold the same information up to rotation and scale, "
            "and about 0 where they have nothing in common."
        ),
        Plots(
            "plot-layers", "Similarity (CKA) of all pairs of layers, and the pairs that were chosen.",
            tuple(match_plot(contents, found) for found in shown.values()),
            tuple((match_title(p), found.picture) for p, found in shown.items() if found.picture is not None),
        ),
        Cells(
            "Layer matches. Stability: how often two halves without a text in common choose the same layer / give or "
            "take one. Agreement with depth: share of the pairs that a proportional map would have chosen.",
            ("match", "representation", "similarity", "target layers used", "median margin", "stability",
             "agreement with depth", "CKA gained over depth", "step"),
            tuple(rows), texts=frozenset({1, 2, 8}),
        ),
        *(Paragraph(warning, "note") for warning in warnings),
    )  # fmt: skip
    return Section("layers", "Layer match", blocks)


def importance(contents: ReportContents) -> Section | None:
    """Core files of the first seed: where the core sets lie; warm-start lengths side by side, where they were swept."""
    shown = _first_of_each(_of_main(contents.cores))
    if not shown:
        return None
    plots, left_out = importance_plots(contents, shown, MOST_FIGURES)
    blocks: list[Block] = [
        Paragraph(
            "Each cell is the score of one parameter for a task: layers upwards from 0, modules to the right "
            "(projections, then norms); what is outside the layers lies beyond them. A dot marks the core set, the "
            "parameters that are trained. Grey cells have no score: nothing was carried to them. "
            f"Shown are the core sets of seed {contents.seeds[0]}. Point at a cell for its parameter, score and rank."
        )
    ]
    if plots:
        places = dict.fromkeys(found.directory for found in shown)
        pictures = tuple((f"importance: {place}", contents.importance[place]) for place in places
                         if place in contents.importance)  # fmt: skip
        blocks.append(Plots("plot-importance", "Scores of parameters by layer and module.", plots, pictures))
    if left_out:
        blocks.append(
            Paragraph(f"{left_out} more are not drawn here, for the size of the page; see their steps' files.", "note")
        )
    blocks.append(_core_sizes(contents, shown))
    for task, cores in _by_length(contents).items():
        if plot := importance_plot([found.core for found in cores], f"{task}, by length of the warm start"):
            blocks.append(Heading(f"Importance for {task} by length of the warm start"))
            blocks.append(
                Plots(f"plot-importance-{task}", f"Importance for {task} after warm starts of several lengths "
                      "(the form of the paper's figures 6, A.1 and A.2).", (plot,))
            )  # fmt: skip
    return Section("importance", "Core sets: where they lie", tuple(blocks))


def _core_sizes(contents: ReportContents, cores: Sequence[CoreFound]) -> Cells:
    rows = tuple(
        (found.core.task, ROLES[found.role], found.score.upper(), _used_by(contents, found),
         f"{len(found.core.core):,} of {len(found.core.parameters):,}", f"{found.core.ratio_of_tensors:.2%}",
         f"{found.core.ratio_of_elements:.2%}")
        for found in cores
    )  # fmt: skip
    headings = ("task", "core set", "score", "used by", "tensors", "share of tensors", "share of elements")
    return Cells("Sizes of the core sets.", headings, rows, left=2, texts=frozenset({2, 3}))


def _used_by(contents: ReportContents, found: CoreFound) -> str:
    return ", ".join(dict.fromkeys(contents.title(use.method) for use in found.trained_by)) or "–"


def _of_main(found: Sequence[Found]) -> list[Found]:
    """What the main comparison used."""
    return [one for one in found if any(use.axis is None for use in one.uses)]


def _first_of_each(cores: Sequence[CoreFound]) -> list[CoreFound]:
    """Of each kind of core set of each task the first seed's; carried ones by the methods that use them."""
    shown: dict[tuple[object, ...], CoreFound] = {}
    for found in cores:
        methods = tuple(use.method for use in found.trained_by) if found.role == "carried" else ()
        shown.setdefault((found.core.task, found.role, found.score, methods), found)
    order = list(dict.fromkeys(found.core.task for found in cores))
    return sorted(shown.values(), key=lambda found: (list(ROLES).index(found.role), order.index(found.core.task)))


def _by_length(contents: ReportContents) -> dict[str, list[CoreFound]]:
    """Task → core files of its warm starts of several lengths, of one model, score and seed."""
    swept = [found for found in contents.cores if found.role != "carried"]
    groups: dict[tuple[object, ...], dict[object, CoreFound]] = {}
    for found in swept:
        seeds = {use.seed for use in found.uses if use.axis in (None, "warm_start_epochs")}
        length = (found.core.method.model_extra or {}).get("epochs", 1)
        for seed in seeds:
            key = (found.core.task, found.role, found.score, seed)
            groups.setdefault(key, {}).setdefault(length, found)
    shown: dict[str, list[CoreFound]] = {}
    for (task, *_), lengths in groups.items():
        if len(lengths) > 1:
            shown.setdefault(str(task), [lengths[key] for key in sorted(lengths, key=str)])
    return shown


def common(contents: ReportContents) -> Section | None:
    """Overlap between tasks, and of carried core sets with those identified on the target."""
    blocks: list[Block] = []
    if between := _between_tasks(contents):
        blocks += [
            Paragraph(
                "Jaccard index: what two core sets share, divided by what either holds; 1 for equal sets. By chance is "
                "what two random sets of these sizes share on average. Ranges are over seeds."
            ),
            between,
        ]
    if twins := _carried_and_identified(contents):
        blocks.append(twins)
    return Section("overlap", "Core sets: what they have in common", tuple(blocks)) if blocks else None


def _between_tasks(contents: ReportContents) -> Cells | None:
    pairs: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    by_place: dict[str, list[CoreFound]] = {}
    for found in _of_main(contents.cores):
        by_place.setdefault(found.directory, []).append(found)
    for cores in by_place.values():
        for number, one in enumerate(cores):
            for other in cores[number + 1 :]:
                what = ROLES[one.role] + (f", {_used_by(contents, one)}" if one.role == "carried" else "")
                key = (f"{one.core.task}, {other.core.task}", what, one.score.upper())
                pairs.setdefault(key, []).append(_overlap(one, other))
    rows = tuple((*key, *_ranges(values)) for key, values in pairs.items())
    headings = ("tasks", "core sets", "score", "tensors", "elements", "tensors by chance")
    return Cells("Between tasks.", headings, rows, left=2, texts=frozenset({2})) if rows else None


def _carried_and_identified(contents: ReportContents) -> Cells | None:
    main = _of_main(contents.cores)
    own = {
        (found.core.task, found.score, use.seed): found
        for found in main if found.role == "target" for use in found.uses if use.axis is None
    }  # fmt: skip
    pairs: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    for found in main:
        if found.role == "carried":
            for use in found.trained_by:
                other = own.get((found.core.task, found.score, use.seed))
                if other is not None and other.core.model.names_sha256 == found.core.model.names_sha256:
                    key = (found.core.task, contents.title(use.method), found.score.upper())
                    pairs.setdefault(key, []).append(_overlap(found, other))
    rows = tuple((*key, *_ranges(values)) for key, values in pairs.items())
    headings = ("task", "carried by", "score", "tensors", "elements", "tensors by chance")
    caption = "Carried core sets against those that were identified on the target with the same score and seed."
    return Cells(caption, headings, rows, left=2, texts=frozenset({2})) if rows else None


def _overlap(one: CoreFound, other: CoreFound) -> tuple[float, float, float]:
    """In tensors, in elements, and in tensors by chance: p q / (p + q − p q) of shares p and q."""
    shares = [one.core.ratio_of_tensors, other.core.ratio_of_tensors]
    chance = overlap.jaccard_by_chance(harmonic_mean(shares)) if all(shares) else math.nan
    return (*jaccard(one.core, other.core), chance)


def _ranges(values: Sequence[tuple[float, float, float]]) -> tuple[str, ...]:
    """Mean over seeds, and from the least to the largest."""
    found = []
    for column in zip(*values, strict=True):
        known = [value for value in column if not math.isnan(value)]
        if not known:
            found.append("–")
            continue
        mean, low, high = math.fsum(known) / len(known), min(known), max(known)
        found.append(f"{mean:.2f}" + (f" ({low:.2f}–{high:.2f})" if f"{low:.2f}" != f"{high:.2f}" else ""))
    return tuple(found)


def moved(contents: ReportContents) -> Section | None:
    """Every tuned model, compared bit for bit with the base."""
    by_method: dict[str, list[VerifiedFound]] = {}
    for found in contents.verified:
        for use in found.uses:
            if use.axis is None:
                by_method.setdefault(use.method, []).append(found)
    if not by_method:
        return None
    rows = []
    for method in (name for name in contents.titles if name in by_method):
        models = by_method[method]
        totals = {
            kind: [sum(getattr(one.counts[kind], what) for one in models) / len(models)
                   for what in ("parameters", "elements")]
            for kind in models[0].counts
        }  # fmt: skip
        cells: list[Line] = [contents.title(method), f"{len(models)}"]
        for kind, (parameters, elements) in totals.items():
            cell = f"{parameters:,.0f} ({elements:,.0f})"
            cells.append(strong(cell) if kind == "frozen MOVED" and elements else cell)
        rows.append(tuple(cells))
    kinds = list(next(iter(by_method.values()))[0].counts)
    broken = sum(not one.ok for one in contents.verified)
    told = (
        "Nothing moved that was frozen."
        if not broken
        else f"In {numbers.several(broken, 'model')} frozen parameters moved: their masks did not hold."
    )
    return Section(
        "moved",
        "What moved",
        (
            Paragraph("Each tuned model was compared with the base bit for bit, parameter by parameter. ", "plain"),
            Paragraph(told, "answer" if not broken else "warning"),
            Cells("Parameters (elements), mean over the models.", ("method", "models", *kinds), tuple(rows)),
        ),
    )


def representations(contents: ReportContents) -> Section | None:
    """Embeddings of the tasks' texts in the last layer (the paper's figure 3)."""
    blocks: list[Block] = []
    for found in contents.representations:
        file, path = found.file, f"{found.directory}/representation.png"
        if found.png is not None and len(found.png) <= MOST_PICTURE:
            blocks.append(Picture("Last-layer embeddings of the tasks' texts, t-SNE", path, found.png))
        elif found.png is not None:
            blocks.append(Paragraph(("The picture is large and stands beside this page: ", code(path)), "note"))
        pairs = [(i, j) for i in range(len(file.tasks)) for j in range(i + 1, len(file.tasks))]
        rows = tuple(
            (model.label, f"{model.silhouette:.3f}",
             *(numbers.value(model.distances[i][j]) for i, j in pairs),
             *(numbers.value(spread) for spread in model.spread))
            for model in file.models
        )  # fmt: skip
        headings = (
            "model", "silhouette", *(f"distance {file.tasks[i]}, {file.tasks[j]}" for i, j in pairs),
            *(f"spread of {task}" for task in file.tasks),
        )  # fmt: skip
        blocks.append(
            Cells("Of the embeddings themselves, not of their t-SNE: silhouette (−1 to 1, more is apart), Euclidean "
                  "distances between the tasks' centroids, mean distance of a task's texts from its own.",
                  headings, rows)
        )  # fmt: skip
    return Section("representations", "Representations", tuple(blocks)) if blocks else None
