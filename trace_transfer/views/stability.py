"""How far core sets depend on the seed: overlap within a task beside overlap between tasks."""

from __future__ import annotations

import io

from rich.console import Console

from trace_transfer.artefacts import MethodStability, StabilityFile, TaskStability
from trace_transfer.views.terminal import Page

WIDTH = 100


def render_stability(report: StabilityFile) -> str:
    """The report as text of at most 100 columns."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    draw_stability(report, Page(console))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


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
            (method.method, f"{100 * method.ratio:.3g} % of {method.unit}", task.task, f"{task.within_tensors:.2f}",
             f"{task.within_elements:.2f}", f"{task.between_tensors:.2f}", f"{task.between_elements:.2f}",
             f"{method.chance:.2f}", "yes" if task.clear else "no")
            for method in report.methods
            for task in method.tasks
        ),
    )  # fmt: skip
    if report.reliability:
        page.line()
        shown = ", ".join(f"{task} {value:.2f}" for task, value in report.reliability.items())
        page.line(f"cosine of two warm starts' deltas (median over parameters): {shown}")
    several = len({method.method for method in report.methods}) > 1
    for method in report.methods:
        for task in method.tasks:
            if not task.clear:
                name = f"{task.task} ({method.method})" if several else task.task
                page.line(f"! {name}: {_doubt(method, task)}", "yellow")


def _doubt(method: MethodStability, task: TaskStability) -> str:
    """What is wrong with a set that is not clearly its task's, in the unit that its ratio counts."""
    of_tensors = method.unit == "tensors"
    within = task.within_tensors if of_tensors else task.within_elements
    between = task.between_tensors if of_tensors else task.between_elements
    return (
        f"two warm starts of the same task share {within:.2f} of their core sets, different tasks {between:.2f}: "
        "the set says little about the task"
    )
