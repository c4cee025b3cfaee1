"""Whole studies and what they leave: `run` (and its hidden `step`), `report`, `schema`, `inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from trace_transfer.cli.options import FILE, OUT_DIRECTORY, say_next
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.stopping import stop_on_sigterm

FILES = ("run", "tasks", "stream", "suite", "rules", "identify", "map", "train", "evaluate", "represent")


@click.command("run")
@click.argument("file", metavar="RUN.YAML", type=FILE)
@click.option("--out", type=OUT_DIRECTORY, help="Directory of the results. Default: that of the file.")
@click.option("--jobs", type=click.IntRange(min=1), help="Steps at the same time. Default: that of the file, or 1.")
@click.option(
    "--executor", type=click.Choice(("local", "slurm")), default="local", show_default=True,
    help="Run the steps on this machine, or each as a job of SLURM.",
)  # fmt: skip
@click.option("--status", "looks", is_flag=True, help="Only print the jobs of the steps that are not finished.")
@click.option("--cancel", is_flag=True, help="Only cancel the jobs of this study.")
@click.option("--dry-run", is_flag=True, help="Print which steps would run, and why; run nothing, write nothing.")
@click.option("--rebuild", is_flag=True, help="Run steps again if their files were changed by hand.")
@click.option("--prune", is_flag=True, help="Only remove steps that the file no longer needs.")
def run_command(
    file: Path, out: Path | None, jobs: int | None, executor: str, looks: bool, cancel: bool, dry_run: bool,
    rebuild: bool, prune: bool,
) -> None:  # fmt: skip
    """Run a study from task data to report: identify, match, carry, train, evaluate, compare.

    Runs only the steps that are not up to date, so a changed setting reruns only what depends on it. If it is
    interrupted, the same command resumes. Writes report.html and report.md, run.json, summary.json and steps/.

    With --executor slurm, the jobs go on if the command ends; the same command then watches them again.

    \b
        trace-transfer run examples/quickstart/run.yaml
        trace-transfer run study.yaml --executor slurm
    """
    from dataclasses import replace

    from trace_transfer.study.run_file import load_run

    run = load_run(file, out)
    run = replace(run, jobs=jobs or run.jobs)

    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.reporting.numbers import several
    from trace_transfer.study.cluster import SCHEDULERS, cancel_jobs, render_jobs
    from trace_transfer.study.graph import build_graph
    from trace_transfer.study.running import check_plan, excess_here, run_to_the_end
    from trace_transfer.study.show import Display, render_run, render_run_plan
    from trace_transfer.study.status import prune_steps, read_status

    quiet_libraries()
    hash_weights([run.source, run.target], Terminal())
    graph = build_graph(run)
    if prune:
        removed = prune_steps(graph, run.out)
        click.echo(f"removed {several(len(removed), 'step')}" + (":\n" + "\n".join(removed) if removed else ""))
        return
    if cancel:
        ended = cancel_jobs(graph, run.out)
        click.echo(f"{len(ended)} jobs cancelled" + (f": {' '.join(job.id for job in ended)}" if ended else ""))
        return
    status = read_status(graph, run.out, rebuild=rebuild)
    if looks:
        click.echo(render_jobs(graph, status, run.out))
        return
    if dry_run:
        click.echo(render_run_plan(graph, status, check_plan(graph, elsewhere=True), jobs=executor == "slurm"))
        if executor == "local" and (excess := excess_here(graph)):
            click.echo(f"! {excess}: here it would be refused")
        return
    with stop_on_sigterm() as stop:
        done = run_to_the_end(graph, status, Display(), stop, SCHEDULERS[executor])
    click.echo(render_run(done.summary, done.files))
    say_next(done.files)


@click.command("step", hidden=True)
@click.argument("ticket", type=FILE)
def step_command(ticket: Path) -> None:
    """Do the step of a run that a ticket describes; started by `run` for each of several processes."""
    from trace_transfer.study.worker import run_ticket

    run_ticket(ticket)


@click.command("report")
@click.argument("run", type=FILE, metavar="RUN_DIRECTORY")
@click.option("--out", type=OUT_DIRECTORY, default=None, help="Directory of the report. Default: that of the run.")
def report_command(run: Path, out: Path | None) -> None:
    """Write the report of a study again: report.html, one self-contained page, and report.md. Of a study that is not
    finished it has what is; while it runs, name another --out.

    \b
        trace-transfer report runs/study
    """
    from trace_transfer.reporting.report import write_report

    written = write_report(run, out)
    if written.unfinished:
        click.echo(f"! the run is not complete: steps not finished: {len(written.unfinished)}", err=True)
    click.echo("\n".join(map(str, written.files)))


@click.command("schema")
@click.argument("file", type=click.Choice(FILES))
def schema_command(file: str) -> None:
    """Print the JSON Schema of a YAML file, for editors: run.yaml, tasks.yaml, stream.yaml, a suite, a rules file, or
    the --config of a command.

    An editor with a YAML language server then completes keys and explains them, if the file begins with
    `# yaml-language-server: $schema=run.schema.json`.

    \b
        trace-transfer schema run > run.schema.json
    """
    from trace_transfer.formats import schema_of

    click.echo(json.dumps(schema_of(file), indent=2, ensure_ascii=False))


@click.command("inspect")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def inspect_command(file: Path) -> None:
    """Show FILE in the terminal: any JSON file that trace-transfer wrote, or a safetensors file."""
    from trace_transfer.cli.inspection import draw
    from trace_transfer.terminal import console

    draw(file, console())
