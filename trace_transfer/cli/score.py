"""`trace-transfer score`: read the options, call `run_score`, print the core sets."""

from __future__ import annotations

from pathlib import Path

import click

METHODS = ("l2-rms", "l2", "cs")


def _tuned(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`TASK=MODEL` options as a mapping; a task may be given once."""
    found: dict[str, str] = {}
    for value in values:
        task, separator, model = value.partition("=")
        if not separator or not task or not model:
            raise click.BadParameter(f"{value!r} is not TASK=MODEL")
        if task in found:
            raise click.BadParameter(f"task {task!r} is given twice")
        found[task] = model
    return found


@click.command("score")
@click.argument("base", metavar="BASE")
@click.option(
    "--tuned", multiple=True, required=True, callback=_tuned, metavar="TASK=MODEL",
    help="A model fine-tuned from BASE on a task, a directory or a hub name; once for each task.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(METHODS), default="l2-rms", show_default=True,
    help="l2-rms: root mean square of the change, which does not favour large tensors; l2: its norm, as the paper's "
    "eq. 3; cs: how unlike the other tasks' changes its direction is (eq. 6-8), for two tasks or more.",
)  # fmt: skip
@click.option(
    "--ratio", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True,
    help="Core share; 0.05 as in the paper.",
)  # fmt: skip
@click.option(
    "--unit", type=click.Choice(("tensors", "elements")), default="tensors", show_default=True,
    help="What the ratio counts; tensors as in the paper.",
)  # fmt: skip
@click.option(
    "--out", default="runs/score", show_default=True, type=click.Path(path_type=Path), help="Directory for the results."
)
@click.option("--rules", multiple=True, metavar="PATH", help="Your own rules, beside or over the shipped.")
def score_command(
    base: str, tuned: dict[str, str], method: str, ratio: float, unit: str, out: Path, rules: tuple[str, ...]
) -> None:
    """Score the parameters of BASE by how models fine-tuned from it differ from it.

    Writes deltas.json (norms, cosines; made once) and TASK.core.json for each task. All weights are read once, a few
    chunks at a time.

    \b
    trace-transfer score meta-llama/Meta-Llama-3-8B \\
        --tuned math=out/math --tuned code=out/code --tuned law=out/law --method cs
    """
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.scoring import run_score
    from trace_transfer.views.core_sets import render_core_sets

    quiet_libraries()
    scored = run_score(base, tuned, method=method, ratio=ratio, unit=unit, out=out, rules=rules, reporter=Terminal())
    click.echo(render_core_sets(scored.cores, scored.warnings, scored.files))
