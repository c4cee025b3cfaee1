"""What `evaluate` prints: the scores of a model with their standard errors, or what would be run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trace_transfer.data.show import pieces_lines, visible
from trace_transfer.evaluation.records import EvaluationFile, Member, Score
from trace_transfer.terminal import Page, drawn
from trace_transfer.terminal_pictures import model_line

if TYPE_CHECKING:
    from pathlib import Path

    from trace_transfer.evaluation.evaluating import EvaluationPlan


def render_evaluation(evaluation: EvaluationFile) -> str:
    """The scores as text as wide as the terminal."""
    return drawn(lambda page: draw_evaluation(evaluation, page))


def draw_evaluation(evaluation: EvaluationFile, page: Page) -> None:
    """Draw the scores within a page's width."""
    page.line(f"{evaluation.suite}: {model_line(evaluation.model)}", "bold")
    page.table(
        [("evaluation", "left"), ("kind", "left"), ("metric", "left"), ("value", "right"), ("± s.e.", "right"),
         ("", "left"), ("examples", "right"), ("seconds", "right")],
        (row for score in evaluation.scores for row in _rows(score)),
    )  # fmt: skip
    if not all(score.higher_is_better for score in evaluation.scores):
        page.line("↓: lower is better")
    page.line("s.e.: standard error, over the examples that were drawn; not over trainings")
    for score in evaluation.scores:
        if score.num_errors:
            page.line(f"! {score.name}: {score.num_errors} programs were killed; they count as wrong", "yellow")


def _rows(score: Score) -> Iterator[tuple[str, ...]]:
    """The score, and those of its members below it."""
    better = "" if score.higher_is_better else "↓"
    first = (score.name, score.kind, score.metric)
    yield (*first, *_numbers(score), better, f"{score.num_examples:,}", f"{score.seconds:.1f}")
    for member in score.members or ():
        yield (f"  {member.name}", "", "", *_numbers(member), better, f"{member.num_examples:,}", "")


def _numbers(one: Score | Member) -> tuple[str, str]:
    return f"{one.value:.4f}", "-" if one.stderr is None else f"{one.stderr:.4f}"


def render_evaluation_plan(plan: EvaluationPlan, out: Path) -> str:
    """What would be run, with numbers of examples, as text as wide as the terminal."""
    return drawn(lambda page: _draw_plan(plan, out, page))


def _draw_plan(plan: EvaluationPlan, out: Path, page: Page) -> None:
    page.line(f"{plan.suite.name}: {model_line(plan.identity)}, {len(plan.state.patches)} patches", "bold")
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for one in plan.prepared:
        told = one.settings
        shown = [f"{told['shots']} shots"] if told.get("shots") else []
        shown += [f"up to {told['max_new_tokens']} tokens"] if told.get("max_new_tokens") else []
        shown += [f"template {told['template']}"] + ([f"{told['num_cut']} cut"] if told.get("num_cut") else [])
        notes += [f"! {one.spec.name}: {note}" for note in told.get("notes") or ()]
        notes += (
            [f"answers of {one.spec.name} stop at {visible(' or '.join(told['stop']))}"] if told.get("stop") else []
        )
        state = "finished" if plan.finished(one, out) else "to be run"
        rows.append((one.spec.name, one.spec.kind, one.metric, f"{one.num_examples:,}", ", ".join(shown), state))
    headings = ("evaluation", "kind", "metric", "examples", "how", "")
    page.table([(name, "right" if name == "examples" else "left") for name in headings], rows)
    at_once = plan.settings.examples_at_once
    how = "as many examples at a time as memory holds" if at_once == "auto" else f"{at_once} examples at a time"
    engine = "" if plan.settings.backend == "hf" else f"{plan.settings.backend}, "
    page.line(f"{engine}on {plan.device} in {plan.dtype}, {how}")
    for note in notes:
        page.line(note)
    for one in plan.prepared:
        if pieces := one.shown(plan.tokenizer):
            page.line()
            for line in pieces_lines(f"the first of {one.spec.name} as the model reads it", pieces, "the answer"):
                page.line(line)
