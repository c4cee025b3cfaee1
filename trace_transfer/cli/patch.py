"""Models between the states of a stream, bit-exactly: `patch`; and the proof that nothing else moved: `verify`."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.files import prepare_directory, refuse_inputs, write_text
from trace_transfer.patch import records
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.publish.hub import Destination, publish_model
from trace_transfer.records import to_json

PATCHES = shared.files("patches", metavar="PATCH...")
OUT = click.option("--out", required=True, type=shared.OUT_DIRECTORY, help="New directory of what is written.")


@click.group("patch")
def patch_command() -> None:
    """Apply and revert what a task changed in a model, bit for bit.

    A patch holds the values that one task changed, before and after. `trace-transfer train` writes one for each task.
    """


@patch_command.command("apply")
@click.argument("model", metavar="MODEL")
@PATCHES
@OUT
@shared.push_options("the model and the PATCHes")
def apply_patches(model: str, patches: tuple[Path, ...], out: Path, to: Destination | None) -> None:
    """Apply PATCHes to MODEL, in the order of the stream, and write the result.

    MODEL must hold the values that the first patch replaces.

    \b
        trace-transfer patch apply Qwen/Qwen2.5-14B \\
            runs/math.patch.safetensors --out qwen-math
    """
    _move(model, patches, out, revert=False)
    if to is not None:
        click.echo(f"sent: {publish_model(to, out, patches)}")


@patch_command.command("revert")
@click.argument("model", metavar="MODEL")
@PATCHES
@OUT
def revert_patches(model: str, patches: tuple[Path, ...], out: Path) -> None:
    """Revert PATCHes in MODEL and write the model as it was before them.

    Give the patches in the order of the stream. MODEL must hold the values that the last patch wrote.

    \b
        trace-transfer patch revert qwen-math \\
            runs/math.patch.safetensors --out qwen-again
    """
    _move(model, patches, out, revert=True)


def _move(model: str, patches: tuple[Path, ...], out: Path, *, revert: bool) -> None:
    from trace_transfer.patch.patching import move_model
    from trace_transfer.reporting.numbers import several

    quiet_libraries()
    state = move_model(model, patches, out, Terminal(), revert=revert)
    moved = f"{several(len(patches), 'patch', 'patches')} {'reverted' if revert else 'applied'}"
    click.echo(f"{out}: {model} with {moved}, {several(len(state.patched), 'tensor')} changed")
    shared.say_next((), "evaluate", out, "--suite", "suite.yaml")


@patch_command.command("task-models")
@click.argument("base", metavar="BASE")
@PATCHES
@OUT
@click.option(
    "--merge-method", type=click.Choice(tuple(records.METHODS)), default="task_arithmetic", show_default=True,
    help="merge_method in the file for mergekit; edit weights and densities there.",
)  # fmt: skip
def task_models_command(base: str, patches: tuple[Path, ...], out: Path, merge_method: str) -> None:
    """Write one model for each PATCH, BASE with this task alone, and a configuration for mergekit.

    mergekit can then merge the tasks with other weights, or with other models. Writes OUT/TASK/ for each task, and
    OUT/mergekit.yaml, which adds all of them to BASE.

    \b
        trace-transfer patch task-models Qwen/Qwen2.5-14B \\
            runs/*.patch.safetensors --out vectors
        mergekit-yaml vectors/mergekit.yaml merged
    """
    from trace_transfer.patch.patching import YAML, write_task_models

    quiet_libraries()
    models = write_task_models(base, patches, out, Terminal(), merge_method=merge_method)
    click.echo(records.render_task_models(models, out.absolute() / YAML))


@patch_command.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--out", required=True, type=shared.OUT_FILE, metavar="FILE", help="The patch from A to B.")
@click.option("--task", default="diff", show_default=True, help="The name of the task in the patch.")
def diff_models_command(first: str, second: str, out: Path, task: str) -> None:
    """Write a patch of all tensors that differ, if only in a bit, between two models of the same names.

    \b
    trace-transfer patch diff Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-0.5B-Instruct \\
        --out instruct.patch.safetensors
    """
    from trace_transfer.patch.patching import diff_models

    quiet_libraries()
    found, num_tensors = diff_models(first, second, out, Terminal(), task=task)
    click.echo(records.render_differences(found, num_tensors))
    click.echo(f"written: {out}" if found else "nothing was written")


@patch_command.command("show")
@PATCHES
def show_patches(patches: tuple[Path, ...]) -> None:
    """List what PATCHes hold; no weights are read."""
    from trace_transfer.patch.patches import Patch

    click.echo("\n\n".join(records.render_patch(patch) for patch in Patch.open_all(patches)))


@click.command("verify")
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@click.option(
    "--core", "cores", multiple=True, type=shared.FILE, metavar="FILE",
    help="Core file: its core set may differ. May be repeated.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, type=shared.FILE, metavar="FILE",
    help="Patch: its tensors may differ. May be repeated.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=shared.OUT_FILE, metavar="FILE", help="Write the result for every tensor as JSON."
)
def verify_command(
    base: str, tuned: str, cores: tuple[Path, ...], patches: tuple[Path, ...], json_file: Path | None
) -> None:
    """Compare TUNED with BASE, bit for bit: only the core sets may differ.

    Ends with exit code 1 if a frozen tensor, or a frozen row of a trained tensor, differs. Both models are read a few
    rows at a time.

    \b
        trace-transfer verify Qwen/Qwen2.5-14B runs/qwen-14b/model \\
            --core math.core.json --core law.core.json
    """
    from trace_transfer.patch.patching import require_frozen, verify_models

    if json_file is not None:
        refuse_inputs([json_file], [base, tuned, *cores, *patches], "--json")
        prepare_directory(json_file.parent, "directory of --json")
    quiet_libraries()
    verification = verify_models(base, tuned, cores=cores, patches=patches, reporter=Terminal())
    if json_file is not None:
        write_text(json_file, to_json(verification))
    click.echo(records.render_verification(verification))
    require_frozen(verification)
