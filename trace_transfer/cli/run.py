"""`trace-transfer run`: read the run file, see what is not up to date, run it, and make the report."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import OUT_DIRECTORY


@click.command("run")
@click.argument("file", metavar="RUN.YAML", type=click.Path(path_type=Path))
@click.option("--out", type=OUT_DIRECTORY, help="Directory for the results; by default what the file says.")
@click.option("--jobs", type=click.IntRange(min=1), help="Steps at a time; by default what the file says, or 1.")
@click.option("--dry-run", is_flag=True, help="Which steps would be run, and why; runs nothing, writes nothing.")
@click.option("--rebuild", is_flag=True, help="Run steps again whose files were changed by hand.")
@click.option("--prune", is_flag=True, help="Remove steps that no cell needs any more, and do nothing else.")
def run_command(file: Path, out: Path | None, jobs: int | None, dry_run: bool, rebuild: bool, prune: bool) -> None:
    """Run everything from task data to report: identify, match, carry, train, evaluate, compare.

    What is up to date is not run again; one changed setting reruns what depends on it. Stopped anywhere, the same
    command goes on. Writes steps/, run.json, summary.json, report.html and report.md.

    \b
    trace-transfer run examples/quickstart/run.yaml
    """
    from dataclasses import replace

    from trace_transfer.study.reading import load_run

    run = load_run(file, out)
    run = replace(run, jobs=jobs or run.jobs)

    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.study.graph import build_graph
    from trace_transfer.study.status import read_status

    quiet_libraries()
    hash_weights([run.source, run.target], Terminal())
    graph = build_graph(run)
    if prune:
        from trace_transfer.reporting.numbers import several
        from trace_transfer.study.pruning import prune_steps

        removed = prune_steps(graph, run.out)
        click.echo(f"removed {several(len(removed), 'step')}" + (":\n" + "\n".join(removed) if removed else ""))
        return
    status = read_status(graph, run.out, rebuild=rebuild)
    if dry_run:
        from trace_transfer.study.checking import check_plan, excess_here
        from trace_transfer.study.show_plan import render_run_plan

        click.echo(render_run_plan(graph, status, check_plan(graph, elsewhere=True)))
        if excess := excess_here(graph):
            click.echo(f"! {excess}: here it would be refused")
        return

    from trace_transfer.stopping import stop_on_sigterm
    from trace_transfer.study.finishing import run_to_the_end
    from trace_transfer.study.show_plan import render_run
    from trace_transfer.study.show_running import Display

    with stop_on_sigterm() as stop:
        done = run_to_the_end(graph, status, Display(), stop)
    click.echo(render_run(done.summary, done.files))
