"""From tasks to core sets and their heatmaps: `identify`, its parts `warm-start`, `score` and `select`, and `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.settings_options import setting_options
from trace_transfer.identification.scores import ScoreSettings
from trace_transfer.identification.settings import Compute, IdentifySettings, WarmStartSettings
from trace_transfer.launching import is_first_rank, place_among_ranks
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.publish.hub import Destination, publish_cores

SCORING = {*ScoreSettings.names(), *Compute.names()}
TRAINING = WarmStartSettings.names() - {"seed", "max_length", "too_long"}  # which scoring does not need
PROFILES = "paper: as the equations say; authors-code: as the published code does"
PLAN = shared.dry_run_option(help="Print tasks, steps, memory and disk space; train nothing, write nothing.")
tuned_option = partial(shared.many, "--tuned", callback=shared.mapped, metavar="TASK=MODEL")


def _carry_next(base: str, files: Sequence[Path], unit: str = "tensors") -> None:
    """Core files are carried to another model with `map`; rows and single parameters are of this one alone."""
    if unit in ("rows", "parameters"):
        shared.say_next(files, "train", base, "--stream", "STREAM.yaml")
        return
    cores = [word for file in files if file.name.endswith(".core.json") for word in ("--core", file)]
    shared.say_next(files, "map", "--src", base, "--dst", "MODEL", *cores, "--out", "runs/carried")


@click.command("identify", cls=shared.Command)
@click.argument("base", metavar="BASE")
@shared.tasks_option
@tuned_option(help="Use this fine-tuned model instead of a warm start. May be repeated.")
@shared.out_option(default="runs/identify")
@setting_options(IdentifySettings, profiles=PROFILES)
@shared.rules_option
@shared.push_options("the core files, with a card,")
@PLAN
def identify_command(
    settings: IdentifySettings, base: str, tasks: Path, tuned: dict[str, str], out: Path, rules: tuple[str, ...],
    to: Destination | None, dry_run: bool,
) -> None:  # fmt: skip
    """Find the core set of each task: the few parameters of BASE that it needs.

    Fine-tunes BASE on each task for one epoch, scores every tensor by how far it moved and how much the loss depends on
    it, and selects the best. Writes TASK.core.json for each task, and importance.html. If it is interrupted, the same
    command resumes.

    \b
        trace-transfer identify HuggingFaceTB/SmolLM2-135M \\
            --tasks tasks.yaml --ratio 0.05 --out runs/smollm2
    """
    from trace_transfer.identification.identifying import plan_identify, run_identify
    from trace_transfer.identification.show import render_identified, render_plan
    from trace_transfer.models.checkpoints import hash_weights

    quiet_libraries()
    place_among_ranks()  # what a launcher has set is judged before anything is read
    hash_weights([base, *tuned.values()], Terminal())
    plan = plan_identify(base, tasks, tuned=tuned, settings=settings, rules=rules, out=out)
    if dry_run:
        click.echo(render_plan(plan))
        return
    found = run_identify(plan, Terminal())
    if found is not None:
        click.echo(render_identified(found))
        _carry_next(base, found.files, settings.score.unit)
        if to is not None:
            click.echo(f"sent: {publish_cores(to, found.files, plan.base.source)}")


@click.command("warm-start", cls=shared.Command)
@click.argument("base", metavar="BASE")
@shared.tasks_option
@shared.out_option(default="runs/identify")
@setting_options(IdentifySettings, without=SCORING)
@shared.rules_option
@PLAN
def warm_start_command(
    settings: IdentifySettings, base: str, tasks: Path, out: Path, rules: tuple[str, ...], dry_run: bool
) -> None:
    """Fine-tune BASE for one epoch on each task, each time from BASE, and keep the deltas.

    This is the first half of `identify`; `score` is the second. Writes warm_start/TASK/ with the delta as safetensors.
    If it is interrupted, the same command resumes from the last checkpoint.

    \b
        trace-transfer warm-start HuggingFaceTB/SmolLM2-135M \\
            --tasks tasks.yaml --out runs/smollm2
        torchrun --nproc-per-node 8 -m trace_transfer warm-start \\
            meta-llama/Meta-Llama-3-8B --zero 3 --tasks tasks.yaml
    """
    from trace_transfer.identification.identifying import plan_identify, run_warm_starts_of
    from trace_transfer.identification.show import render_plan, render_warm_starts

    quiet_libraries()
    first = is_first_rank()
    plan = plan_identify(base, tasks, tuned={}, settings=settings, rules=rules, out=out, with_scores=False)
    if dry_run:
        click.echo(render_plan(plan))
        return
    stores = run_warm_starts_of(plan, Terminal())
    if first:
        click.echo(render_warm_starts(stores))
        shared.say_next((), "score", base, "--tasks", tasks, "--out", out)


@click.command("score", cls=shared.Command)
@click.argument("base", metavar="BASE")
@tuned_option(
    help="A model fine-tuned from BASE on a task: a directory or a hub name, once for each task. Default: the warm "
    "starts in --out."
)
@shared.option(
    "--tasks", type=shared.FILE, metavar="FILE", group="Data", common=True,
    help="tasks.yaml: the examples for the Fisher information. Methods lf and fisher need it.",
)  # fmt: skip
@shared.out_option(default="runs/identify")
@setting_options(IdentifySettings, profiles=PROFILES, without=TRAINING)
@shared.rules_option
def score_command(
    settings: IdentifySettings, base: str, tuned: dict[str, str], tasks: Path | None, out: Path, rules: tuple[str, ...]
) -> None:
    """Score the tensors of BASE by how warm-started or fine-tuned models differ from it, and select core sets.

    Writes TASK.core.json for each task and importance.html, and their sources: deltas.json (norms, cosines) and
    fisher/TASK/fisher.json. These are reused, so another method or ratio takes seconds.

    \b
        trace-transfer score HuggingFaceTB/SmolLM2-135M \\
            --tasks tasks.yaml --out runs/smollm2
        trace-transfer score meta-llama/Meta-Llama-3-8B --method cs \\
            --tuned math=out/math --tuned code=out/code
    """
    from trace_transfer.identification.identifying import run_score
    from trace_transfer.identification.show import render_identified

    quiet_libraries()
    found = run_score(base, tuned=tuned, tasks=tasks, settings=settings, rules=rules, out=out, reporter=Terminal())
    click.echo(render_identified(found))
    _carry_next(base, found.files, settings.score.unit)


@click.command("select")
@shared.files("files", metavar="CORE_FILE...")
@click.option("--ratio", type=shared.RATIO, help="New share of the model. Default: as before.")
@click.option(
    "--unit", type=click.Choice(("tensors", "elements", "rows")), help="What the ratio counts. Default: as before."
)
@click.option("--out", required=True, type=shared.OUT_DIRECTORY, help="Directory of the new files.")
def select_command(files: tuple[Path, ...], ratio: float | None, unit: str | None, out: Path) -> None:
    """Make core sets of another size from the scores in core files, without reading weights.

    \b
        trace-transfer select runs/smollm2/*.core.json --ratio 0.1 \\
            --out runs/smollm2-10
    """
    if out.suffix == ".json":
        raise click.UsageError(f"--out {out}: expected a directory; the files in it are named TASK.core.json")

    from trace_transfer.core_sets.overlap import render_core_sets
    from trace_transfer.core_sets.selection import core_path, reselect_all

    cores = reselect_all(files, ratio, unit, out)
    written = tuple(core_path(out, core) for core in cores)
    click.echo(render_core_sets(cores, (), written))
    _carry_next(cores[0].model.id, written, cores[0].method.unit)


@click.command("plot")
@shared.files("files", metavar="CORE_FILE...")
@click.option("--out", required=True, type=shared.OUT_DIRECTORY, help="Directory of the heatmaps.")
def plot_command(files: tuple[Path, ...], out: Path) -> None:
    """Draw the scores in core files of one model as heatmaps of layers × modules, by task and warm-start length.

    Writes importance.html (interactive, one task at a time) and importance.png (all tasks).

    \b
        trace-transfer plot runs/epochs-*/*.core.json --out runs/heatmaps
    """
    from trace_transfer.core_sets.core_file import CoreFile
    from trace_transfer.figures import write_figure
    from trace_transfer.files import held, refuse_inputs
    from trace_transfer.identification.draw import figure
    from trace_transfer.records import read_artefact

    refuse_inputs([out / "importance.html", out / "importance.png"], files)
    drawing = figure([read_artefact(file, CoreFile) for file in files])
    with held(out):
        click.echo("\n".join(map(str, write_figure(out / "importance", drawing))))
