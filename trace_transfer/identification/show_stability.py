"""How far core sets depend on the seed: overlap within a task beside overlap between tasks."""

from __future__ import annotations

from collections.abc import Sequence

from trace_transfer.identification.records import MethodStability, StabilityFile, TaskStability
from trace_transfer.terminal import Page, drawn


def render_stability(report: StabilityFile) -> str:
    """The report as text as wide as the terminal."""
    return drawn(lambda page: draw_stability(report, page))


def draw_stability(report: StabilityFile, page: Page) -> None:
    """Draw the report within a page's width."""
    model = report.model
    page.line(f"Stability of core sets: {model.id} ({model.family}, {model.num_layers} layers)", "bold")
    page.line("overlap (Jaccard) of the core sets of two warm starts of one task, and of different tasks")
    page.line()
    columns = [("method", "left"), ("ratio", "right"), ("task", "left")]
    columns += [(f"{where}\n{what}", "right") for where in ("within:", "between:") for what in ("tensors", "elements")]
    columns += [("chance", "right"), ("clear", "left")]
    page.table(
        columns,
        (
            (method.method, f"{100 * method.ratio:.3g} % of {method.unit}", task.task, _share(task.within_tensors),
             _share(task.within_elements), _share(task.between_tensors), _share(task.between_elements),
             f"{method.chance:.2f}", {True: "yes", False: "no", None: "-"}[task.clear])
            for method in report.methods
            for task in method.tasks
        ),
    )  # fmt: skip
    if report.reliability:
        page.line()
        shown = ", ".join(f"{task} {value:.2f}" for task, value in report.reliability.items())
        page.line(f"cosine of two warm starts' deltas (median over parameters): {shown}")
    for method in report.methods:
        doubtful = [task for task in method.tasks if task.clear is False]
        if doubtful:
            page.line(f"! {method.method}: {_doubt(method, doubtful)}", "yellow")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _doubt(method: MethodStability, tasks: Sequence[TaskStability]) -> str:
    """What is wrong with sets that are not clearly their task's, in the unit that their ratio counts."""
    of_tensors = method.unit == "tensors"
    shown = ", ".join(
        f"{task.task} {_share(task.within_tensors if of_tensors else task.within_elements)} against up to "
        f"{_share(task.highest_between)}"
        for task in tasks
    )
    return (
        "two warm starts of one task agree no more than those of some other task, so that these sets say little about "
        f"their tasks: {shown}"
    )
