"""`trace-transfer patch`: move a model between the states of a stream, bit-exactly."""

from __future__ import annotations

from pathlib import Path

import click

FILES = click.argument("patches", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATCH...")
OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the model; new.")


@click.group("patch")
def patch_command() -> None:
    """Move a model between the states of a stream of tasks, bit-exactly.

    A patch holds what one task changed, before and after; `trace-transfer train` writes one for each.
    """


@patch_command.command("apply")
@click.argument("model", metavar="MODEL")
@FILES
@OUT
def apply_patches(model: str, patches: tuple[Path, ...], out: Path) -> None:
    """Write the model that the PATCHes, in the order of the stream, make of MODEL.

    MODEL must be in the state that the first one begins with.

    \b
    trace-transfer patch apply Qwen/Qwen2.5-14B runs/math.patch.safetensors --out qwen-math
    """
    _move(model, patches, out, revert=False)


@patch_command.command("revert")
@click.argument("model", metavar="MODEL")
@FILES
@OUT
def revert_patches(model: str, patches: tuple[Path, ...], out: Path) -> None:
    """Undo the PATCHes in MODEL and write the model as it was before them.

    They are given in the order of the stream here, too; MODEL must be in the state that the last one ends with.

    \b
    trace-transfer patch revert qwen-math runs/math.patch.safetensors --out qwen-again
    """
    _move(model, patches, out, revert=True)


def _move(model: str, patches: tuple[Path, ...], out: Path, *, revert: bool) -> None:
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.patching import move_model

    quiet_libraries()
    state = move_model(model, patches, out, Terminal(), revert=revert)
    what = "reverted" if revert else "applied"
    click.echo(f"{out}: {model} with {len(patches)} patches {what}, {len(state.patched)} parameters changed")


@patch_command.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The patch from A to B.")
@click.option("--task", default="diff", show_default=True, help="The name of the task in the patch.")
def diff_models_command(first: str, second: str, out: Path, task: str) -> None:
    """Write a patch of every parameter of which a bit differs between two models of the same names.

    \b
    trace-transfer patch diff Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-0.5B-Instruct \\
        --out instruct.patch.safetensors
    """
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.patching import diff_models
    from trace_transfer.views.patches import render_differences

    quiet_libraries()
    found = diff_models(first, second, out, Terminal(), task=task)
    click.echo(render_differences(found.differences, found.num_parameters))
    click.echo(f"written: {out}" if found.differences else "nothing was written")


@patch_command.command("show")
@click.argument("patches", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATCH...")
def show_patches(patches: tuple[Path, ...]) -> None:
    """List what PATCHes hold; no weights are read."""
    from trace_transfer.patches import Patch
    from trace_transfer.views.patches import render_patch

    click.echo("\n\n".join(render_patch(Patch.open(patch)) for patch in patches))
