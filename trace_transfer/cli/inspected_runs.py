"""What a run leaves, in the terminal: scores along a stream, embeddings, steps, the run itself, its summary."""

from __future__ import annotations

from trace_transfer.evaluation.scores import ScoreMatrix
from trace_transfer.files import size
from trace_transfer.reporting.records import RunFile, StepFile, Summary
from trace_transfer.reporting.summary_tables import short_tables
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.tables import to_text
from trace_transfer.terminal import Page
from trace_transfer.terminal_pictures import model_line


def draw_scores(file: ScoreMatrix, page: Page) -> None:
    """A row for each state of the stream, a column for each evaluation."""
    page.line(f"Scores along a stream: {model_line(file.model)}", "bold")
    first = {score.name: score for score in file.stages[0].scores}
    page.table(
        [("after", "left"), *((f"{name} ({score.metric})", "right") for name, score in first.items())],
        (
            (stage.label, *(_value({score.name: score.value for score in stage.scores}, name) for name in first))
            for stage in file.stages
        ),
    )
    for task, name in file.of_task.items():
        if task != name:
            page.line(f"task {task} is measured by {name}")


def _value(scores: dict[str, float], name: str) -> str:
    return f"{scores[name]:.4f}" if name in scores else "-"


def draw_representation(file: RepresentationFile, page: Page) -> None:
    """How well each model keeps the tasks apart."""
    counts = ", ".join(f"{task} {number}" for task, number in zip(file.tasks, file.num_texts, strict=True))
    page.line(f"Last-layer embeddings of texts: {counts}", "bold")
    pairs = [(a, b) for a in range(len(file.tasks)) for b in range(a + 1, len(file.tasks))]
    distances = [f"{file.tasks[a]} - {file.tasks[b]}" for a, b in pairs]
    page.table(
        [("model", "left"), ("silhouette", "right"), *((heading, "right") for heading in distances)],
        (
            (model.label, f"{model.silhouette:.3f}", *(f"{model.distances[a][b]:.4g}" for a, b in pairs))
            for model in file.models
        ),
    )
    page.line("distances are between the tasks' centroids")


def draw_step(file: StepFile, page: Page) -> None:
    """What a step was made of, what it wrote, and what it took."""
    page.line(f"Step {file.kind} {file.address[:12]}", "bold")
    page.line(
        f"{file.cost.seconds:,.1f} s, {file.cost.cpu_seconds:,.1f} s of processors, "
        f"{size(file.cost.peak_bytes)} of memory, {size(file.cost.bytes)} of files"
    )
    page.line()
    page.table([("setting", "left"), ("value", "left")], ((name, str(value)) for name, value in file.settings.items()))
    page.table([("input", "left"), ("", "left")], ((name, value[:12]) for name, value in file.inputs.items()))
    page.table([("file", "left"), ("sha256", "left")], ((name, value[:12]) for name, value in file.files.items()))


def draw_run(file: RunFile, page: Page) -> None:
    """The models that were trained, each with the directory of its training."""
    page.line(f"Run {file.name}: {file.source or '-'} → {file.target}, tasks {', '.join(file.tasks)}", "bold")
    page.table(
        [("method", "left"), ("seed", "right"), ("sweep", "left"), ("order", "left"), ("trained in", "left")],
        (
            (
                cell.method, str(cell.seed), "" if cell.axis is None else f"{cell.axis} {cell.value}",
                ", ".join(cell.order), cell.steps.get("train", "-"),
            )
            for cell in file.cells
        ),
    )  # fmt: skip


def draw_summary(file: Summary, page: Page) -> None:
    """The short tables of the report, and what they say."""
    for table in short_tables(file):
        for line in to_text(table).splitlines():
            page.line(line)
        page.line()
    for note in file.notes:
        page.line(f"- {note}")
