"""`report`: a run → one self-contained `report.html` and `report.md`.

The document is written by `templates/report.md.j2`; the page is made of it. Here is what it shows: tables of what the
run's steps found, and the figures at their places.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np

from trace_transfer import figures as drawing
from trace_transfer.core_sets.overlap import jaccard_by_chance, jaccard_of_cores
from trace_transfer.errors import UserError
from trace_transfer.files import held, size, write_text
from trace_transfer.identification.draw import figure as importance_figure
from trace_transfer.pages import Figures, Markdown, Plot, Shades, code, document, page, picture, place
from trace_transfer.printable import printable
from trace_transfer.reporting import numbers, plots, summary_tables
from trace_transfer.reporting.finished_run import CoreFound, FinishedRun, MatchFound, Role, grouped, read_run
from trace_transfer.reporting.records import Summary
from trace_transfer.reporting.summarising import summarise
from trace_transfer.represent.draw import table_of
from trace_transfer.settings import flat
from trace_transfer.tables import NOTHING, Cell, Table, to_markdown
from trace_transfer.transfer import draw as match_figure

HTML, MARKDOWN = "report.html", "report.md"
MOST_FIGURES = 1_900_000  # bytes of importance figures in the page, beside plotly.js's 4.8 MB
MOST_PICTURE = 600_000  # bytes of a PNG in it
MATCHES = {"depth": "proportional to depth", "shuffled": "shuffled"}
ROLES: dict[Role, str] = {
    "source": "identified on the source",
    "target": "identified on the target",
    "carried": "carried to the target",
}


@dataclass(frozen=True)
class Reported:
    """What was written; `unfinished` steps are not in it."""

    files: tuple[Path, ...]
    unfinished: tuple[str, ...]


def write_report(directory: str | Path, out: str | Path | None = None) -> Reported:
    """Write the report of the run in a directory, by default into it."""
    run = read_run(directory)
    with held(directory if out is None else out) as target:
        return Reported(write_pages(run, summarise(run), target), tuple(run.unfinished))


def write_pages(run: FinishedRun, summary: Summary, target: Path) -> tuple[Path, ...]:
    """Write both files into a directory that is held; returns them."""
    # Markdown points at pictures of the run, which it does not hold.
    to_run = Path(os.path.relpath(run.directory, target.resolve())).as_posix()
    to_run = "" if to_run == "." else f"{to_run}/"
    matches = [first for first, *_ in grouped((one.match.policy, one) for one in run.matches).values()]
    names = run.name_of("source"), run.name_of("target")
    titled = ((one, match_title(one.match.policy)) for one in matches)
    rows = [match_figure.row(one.similarity, one.match.pairs, one.match, names, title) for one, title in titled]
    cores = _first_cores(run)
    importance = _importance(run, cores)
    drawn: dict[str, list[Plot]] = {
        "plot-front": plots.front(summary),
        "plot-curves": plots.curves(summary),
        **{place(f"plot-sweep-{one.axis}"): plots.sweep(summary, one) for one in summary.sweeps},
        "plot-layers": [drawing.plot(row) for row in rows],
        "plot-importance": importance,
    }  # fmt: skip
    shown = {name: found for name, found in drawn.items() if found}
    representation, held_pictures = None, {}
    if run.representation is not None:
        where, file, png = run.representation
        path = f"{to_run}{where}/representation.png"
        held_pictures = {path: png} if png is not None and len(png) <= MOST_PICTURE else {}
        representation = {"path": path, "there": png is not None, "shown": path in held_pictures,
                          "table": table_of(file)}  # fmt: skip
    pictures = {one.directory: one.picture for one in cores if one.picture}
    text = document(
        "report.md.j2", run=run, summary=summary, summary_tables=summary_tables, figures=shown, table=to_markdown,
        match_pictures=[picture(match_title(one.match.policy), to_run + one.picture) for one in matches if one.picture],
        importance_pictures=[picture(f"importance: {name}", to_run + path) for name, path in pictures.items()],
        several=numbers.several, count=numbers.count, size=size,
        seconds=lambda number: numbers.seconds(numbers.single(number)),
        again=again(run), settings=settings(run.record.settings), matches=matches, layers=_layers(matches),
        core_sizes=_core_sizes(run, cores), num_left_out=len(cores) - len(importance),
        overlaps=[one for one in (_between_tasks(run), _carried_and_identified(run)) if one.rows],
        moved=_moved(run), num_broken=sum(not one.ok for _, one in run.verified), representation=representation,
    )  # fmt: skip
    files = (target / HTML, target / MARKDOWN)
    write_text(files[0], page(text, Figures(shown, _shades(summary), held_pictures)))
    write_text(files[1], text)
    return files


def _shades(summary: Summary) -> dict[str, Shades]:
    every = np.concatenate([matrix.means for matrix in summary.matrices])
    low, high = every.min(axis=0), every.max(axis=0)
    better = [one.higher_is_better for one in summary.evaluations]
    found: dict[str, Shades] = {}
    for matrix in summary.matrices:
        shares = (np.array(matrix.means) - low) / np.where(high > low, high - low, 1.0)
        shares = np.where(better, shares, 1 - shares)
        found[f"matrix_{matrix.method}"] = {(row, column + 1): value for (row, column), value in np.ndenumerate(shares)}
    return found


def match_title(policy: str) -> str:
    """`policy coverage`, in words where the policy is a control."""
    return MATCHES.get(policy, f"policy {policy}")


def _layers(found: Sequence[MatchFound]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        match = one.match
        margins = sorted(pair.margin for pair in match.pairs if pair.margin is not None)
        rows.append(
            (match_title(match.policy), match.representation, match.similarity,
             f"{len({pair.target for pair in match.pairs})} of {match.target.num_layers}",
             f"{margins[len(margins) // 2]:.3f}" if margins else NOTHING,
             f"{match.stability.same:.2f} / {match.stability.within_one:.2f}" if match.stability else NOTHING,
             f"{match.depth.agreement:.2f}" if match.depth else NOTHING,
             f"{match.depth.mean_similarity_gain:+.3f}" if match.depth else NOTHING, code(one.directory))
        )  # fmt: skip
    headings = ("match", "representation", "similarity", "target layers used", "median margin", "stability",
                "agreement with depth", "CKA gained over depth", "step")  # fmt: skip
    note = (
        "Stability: how often two halves without a text in common choose the same layer / give or take one. Agreement "
        "with depth: share of the pairs that a proportional map would have chosen."
    )
    return Table("layers", "Layer matches", headings, tuple(rows), note)


def _first_cores(run: FinishedRun) -> list[CoreFound]:
    """Of each kind of core set of each task the first seed's; carried ones by the methods that use them."""
    shown: dict[tuple[object, ...], CoreFound] = {}
    for found in run.cores:
        methods = tuple(cell.method for cell in found.trained_by) if found.role == "carried" else ()
        shown.setdefault((found.core.task, found.role, found.score, methods), found)
    order = list(dict.fromkeys(found.core.task for found in shown.values()))
    return sorted(shown.values(), key=lambda found: (list(ROLES).index(found.role), order.index(found.core.task)))


def _importance(run: FinishedRun, cores: Sequence[CoreFound]) -> list[Plot]:
    """Scores by layer and module, a figure per core file, as long as they take few bytes together."""
    drawn: list[Plot] = []
    taken = 0
    for found in cores:
        if taken >= MOST_FIGURES:
            break
        title = f"{found.core.task}, {ROLES[found.role]}, by {found.score}"
        title += f" ({_used_by(run, found)})" if found.role == "carried" else ""
        try:
            (row,) = importance_figure([found.core]).rows
        except UserError:  # no tensor is of a known component
            continue
        drawn.append(drawing.plot(row, title))
        taken += len(json.dumps(drawn[-1].spec))
    return drawn


def _core_sizes(run: FinishedRun, cores: Sequence[CoreFound]) -> Table:
    rows = tuple(
        (found.core.task, ROLES[found.role], found.score, _used_by(run, found),
         f"{len(found.core.core):,} of {len(found.core.parameters):,}", f"{found.core.ratio_of_tensors:.2%}",
         f"{found.core.ratio_of_elements:.2%}")
        for found in cores
    )  # fmt: skip
    headings = ("task", "core set", "score", "used by", "tensors", "share of tensors", "share of parameters")
    return Table("core-sizes", "Sizes of the core sets", headings, rows)


def _used_by(run: FinishedRun, found: CoreFound) -> str:
    return ", ".join(dict.fromkeys(run.title(cell.method) for cell in found.trained_by)) or NOTHING


Overlaps = list[tuple[tuple[str, ...], tuple[float, float, float]]]


def _between_tasks(run: FinishedRun) -> Table:
    pairs: Overlaps = []
    for one, other in combinations(run.cores, 2):
        if one.directory == other.directory:
            what = ROLES[one.role] + (f", {_used_by(run, one)}" if one.role == "carried" else "")
            pairs.append(((f"{one.core.task}, {other.core.task}", what, one.score), _overlap(one, other)))
    return _overlaps("Between tasks", ("tasks", "core sets", "score"), pairs)


def _carried_and_identified(run: FinishedRun) -> Table:
    pairs: Overlaps = []
    on_target = [(found, cell.seed) for found in run.cores if found.role == "target" for cell in found.uses]
    own = {(found.core.task, found.score, seed): found for found, seed in on_target}
    for found in run.cores:
        for cell in found.trained_by if found.role == "carried" else ():
            other = own.get((found.core.task, found.score, cell.seed))
            if other is not None and other.core.model.names_sha256 == found.core.model.names_sha256:
                pairs.append(((found.core.task, run.title(cell.method), found.score), _overlap(found, other)))
    title = "Carried core sets against those that were identified on the target with the same score and seed"
    return _overlaps(title, ("task", "carried by", "score"), pairs)


def _overlaps(title: str, headings: tuple[str, ...], pairs: Overlaps) -> Table:
    rows = []
    for key, values in grouped(pairs).items():
        cells = []
        for column in zip(*values, strict=True):
            ends = dict.fromkeys(f"{end(column):.2f}" for end in (min, max))
            cells.append(f"{fmean(column):.2f}" + (f" ({'–'.join(ends)})" if len(ends) > 1 else ""))
        rows.append((*key, *cells))
    return Table("overlaps", title, (*headings, "tensors", "parameters", "tensors by chance"), tuple(rows))


def _overlap(one: CoreFound, other: CoreFound) -> tuple[float, float, float]:
    """In tensors, in parameters, and in tensors by chance: p q / (p + q − p q) of shares p and q."""
    shares = [one.core.ratio_of_tensors, other.core.ratio_of_tensors]
    chance = jaccard_by_chance(harmonic_mean(shares)) if all(shares) else 0.0
    return (*jaccard_of_cores(one.core, other.core), chance)


def _moved(run: FinishedRun) -> Table:
    rows, kinds = [], list(run.verified[0][1].counts) if run.verified else []
    for method in dict.fromkeys(cell.method for cell in run.main):
        models = [one for uses, one in run.verified if any(cell.method == method for cell in uses)]
        cells = [run.title(method), f"{len(models)}"]
        for kind in kinds if models else ():
            tensors = fmean(one.counts[kind].parameters for one in models)
            parameters = fmean(one.counts[kind].elements for one in models)
            cell = f"{tensors:,.0f} ({parameters:,.0f})"
            cells.append(Markdown(f"**{cell}**") if kind == "frozen MOVED" and parameters else cell)
        if models:
            rows.append(tuple(cells))
    return Table("moved", "Tensors (parameters), mean over the models", ("method", "models", *kinds), tuple(rows))


def again(run: FinishedRun) -> str:
    """Commands for a shell, from the directory of the run file."""
    file = Path(os.path.normpath(run.directory / str(run.record.settings.get("run_file", "run.yaml"))))
    paths = str(file.parent), file.name, os.path.relpath(run.directory, file.parent)
    where, name, out = (shlex.quote(printable(path)) for path in paths)
    return f"cd {where}\ntrace-transfer run {name} --out {out}\ntrace-transfer report {out}"


def settings(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting by its path; lists as they are written in the file."""
    each = flat(found).items()
    return [(name, one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) for name, one in each]
