"""What `evaluate` prints: the scores of a model with their standard errors, or what would be run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trace_transfer.data.rendering import pieces_lines, visible
from trace_transfer.evaluation.records import EvaluationFile, Member, Score
from trace_transfer.records import model_line
from trace_transfer.terminal import Page, Shown, as_text

if TYPE_CHECKING:
    from pathlib import Path

    from trace_transfer.evaluation.evaluating import EvaluationPlan


def draw_evaluation(page: Page, evaluation: EvaluationFile) -> None:
    """The scores with their standard errors; those of a group's members below it."""
    headings = ("evaluation", "kind", "metric", "value", "± s.e.", "", "examples", "seconds")
    rows = [row for score in evaluation.scores for row in _rows(score)]
    page.table(headings, rows, f"{evaluation.suite}: {model_line(evaluation.model)}")
    if not all(score.higher_is_better for score in evaluation.scores):
        page.line("↓: lower is better")
    page.line("s.e.: standard error, over the examples that were drawn; not over trainings")
    for score in evaluation.scores:
        if score.num_errors:
            page.line(f"! {score.name}: {score.num_errors} programs were killed; they count as wrong")


render_evaluation = as_text(draw_evaluation)


def _rows(score: Score) -> Iterator[tuple[Shown, ...]]:
    better = "" if score.higher_is_better else "↓"
    every: tuple[Score | Member, ...] = (score, *(score.members or ()))
    for one in every:
        stderr = None if one.stderr is None else f"{one.stderr:.4f}"
        told = (one.name, score.kind, score.metric) if one is score else (f"  {one.name}", "", "")
        seconds = f"{score.seconds:.1f}" if one is score else ""
        yield (*told, f"{one.value:.4f}", stderr, better, one.num_examples, seconds)


@as_text
def render_evaluation_plan(page: Page, plan: EvaluationPlan, out: Path) -> None:
    """What would be run, with numbers of examples."""
    rows, notes = [], []
    for one in plan.prepared:
        told = one.settings
        shown = [f"{told['shots']} shots"] if told.get("shots") else []
        shown += [f"up to {told['max_new_tokens']} tokens"] if told.get("max_new_tokens") else []
        shown += [f"template {told['template']}"] + ([f"{told['num_cut']} cut"] if told.get("num_cut") else [])
        notes += [f"! {one.spec.name}: {note}" for note in told.get("notes") or ()]
        if told.get("stop"):
            notes.append(f"answers of {one.spec.name} stop at {visible(' or '.join(told['stop']))}")
        state = "finished" if plan.finished(one, out) else "to be run"
        rows.append((one.spec.name, one.spec.kind, one.metric, one.num_examples, ", ".join(shown), state))
    title = f"{plan.suite.name}: {model_line(plan.identity)}, {len(plan.state.patches)} patches"
    page.table(("evaluation", "kind", "metric", "examples", "how", ""), rows, title)
    at_once = plan.settings.examples_at_once
    how = "as many examples at a time as memory holds" if at_once == "auto" else f"{at_once} examples at a time"
    engine = "" if plan.settings.backend == "hf" else f"{plan.settings.backend}, "
    page.line(f"{engine}on {plan.device} in {plan.dtype}, {how}")
    page.lines(notes)
    for one in plan.prepared:
        if one.shown:
            page.line()
            page.lines(pieces_lines(f"the first of {one.spec.name} as the model reads it", one.shown, "the answer"))
