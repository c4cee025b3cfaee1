"""What core sets were made from, in the terminal: warm starts, deltas, Fisher information."""

from __future__ import annotations

import numpy as np

from trace_transfer.identification.records import DeltaFile, FisherFile, WarmStartFile
from trace_transfer.terminal import Page
from trace_transfer.terminal_pictures import model_line

NUM_SHOWN = 15
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=*#"


def draw_warm_start(record: WarmStartFile, page: Page) -> None:
    """Data, settings and the course of the loss."""
    name = record.task if record.replicate is None else f"{record.task}, replicate {record.replicate}"
    page.line(f"Warm start of {name}: {model_line(record.model)}", "bold")
    data = record.data
    page.line(
        f"{data.num_examples:,} of {data.num_records:,} records, {data.num_tokens:,} tokens, {data.num_supervised:,} "
        f"supervised; {data.num_cut:,} cut at {data.max_length:,} tokens, {data.num_left_out:,} left out; template "
        f"{data.template}"
    )
    page.line(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.settings.items()))
    page.line(f"delta: {record.delta_dtype}, {len(record.shards)} file" + ("s" if len(record.shards) > 1 else ""))
    page.line()
    page.line(f"loss of {record.num_steps:,} steps: {record.losses[0]:.4g} → {record.losses[-1]:.4g}")
    page.row([(_bars(record.losses, page), "cyan")])


def _bars(losses: tuple[float, ...], page: Page) -> str:
    """The losses as a row of bars, several steps to a bar where there are more than columns."""
    parts = np.array_split(np.array(losses), min(len(losses), page.width))
    means = np.array([part.mean() for part in parts])
    span = means.max() - means.min()
    levels = (means - means.min()) / span if span > 0 else np.zeros(len(means))
    bars = PLAIN_BARS if page.console.options.ascii_only else BARS
    return "".join(bars[round(level * (len(bars) - 1))] for level in levels)


def draw_fisher(file: FisherFile, page: Page) -> None:
    """The parameters with the largest Fisher information."""
    name = file.task if file.replicate is None else f"{file.task}, replicate {file.replicate}"
    page.line(f"Fisher information on {name}: {model_line(file.model)}", "bold")
    what = "examples" if file.per == "example" else "batches"
    page.line(f"at the {file.at} model, mean over {file.num:,} {what} of the squared gradient norm")
    if file.fallback:
        page.line(f"one example at a time, for want of a batched form: {', '.join(file.fallback)}")
    page.line()
    total = sum(parameter.value for parameter in file.parameters)
    largest = sorted(file.parameters, key=lambda parameter: -parameter.value)[:NUM_SHOWN]
    page.line(f"the largest {len(largest)} of {len(file.parameters)}, sum of all {total:.4g}")
    page.table(
        [("parameter", "left"), ("value", "right"), ("share", "right")],
        [(one.name, f"{one.value:.4g}", f"{one.value / total:.1%}" if total else "-") for one in largest],
    )


def draw_deltas(deltas: DeltaFile, page: Page) -> None:
    """Norms, cosines between deltas, and the parameters that moved most."""
    page.line(f"Deltas from {model_line(deltas.model)}", "bold")
    labels = [tuned.label for tuned in deltas.tuned]
    for index, tuned in enumerate(deltas.tuned):
        total = float(np.sqrt(sum(parameter.norms[index] ** 2 for parameter in deltas.parameters)))
        still = sum(parameter.unchanged[index] for parameter in deltas.parameters) / deltas.model.num_elements
        page.line(f"{tuned.label}: {tuned.id}, norm {total:.4g}, {still:.1%} of the elements as in the base")
    if len(labels) > 1:
        page.line()
        page.line("Cosine of deltas, median over parameters")
        pairs = np.array([parameter.cosines for parameter in deltas.parameters], dtype=float)
        rows, columns = np.tril_indices(len(labels), -1)
        cosines = np.full((len(labels), len(labels)), np.nan)
        cosines[rows, columns] = cosines[columns, rows] = np.nanmedian(pairs, axis=0)
        page.table(
            [("", "left"), *((label, "right") for label in labels)],
            [
                (label, *("" if np.isnan(v) else f"{v:+.2f}" for v in row))
                for label, row in zip(labels, cosines, strict=True)
            ],
        )
    page.line()
    largest = sorted(deltas.parameters, key=lambda p: -max(p.norms))[:NUM_SHOWN]
    page.line(f"Norm of the deltas: the {len(largest)} of {len(deltas.parameters)} parameters that moved most")
    page.table(
        [("parameter", "left"), *((label, "right") for label in labels)],
        [(p.name, *(f"{norm:.3g}" for norm in p.norms)) for p in largest],
    )
