"""`trace-transfer verify`: read the options, call `verify_models`, print what moved."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import OUT_FILE


@click.command("verify")
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@click.option(
    "--core", "cores", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="What was to be trained: a core file; may be given often.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Or what a patch holds; may be given often.",
)  # fmt: skip
@click.option("--json", "json_file", type=OUT_FILE, metavar="FILE", help="Every parameter, as JSON.")
def verify_command(
    base: str, tuned: str, cores: tuple[Path, ...], patches: tuple[Path, ...], json_file: Path | None
) -> None:
    """Prove that nothing of TUNED moved but what was to be trained: bit for bit beside BASE.

    Both are read some rows at a time. Exit code 1 if a frozen parameter, or a frozen row of a trained one, moved.

    \b
    trace-transfer verify Qwen/Qwen2.5-14B runs/qwen-14b/model --core math.core.json \\
        --core law.core.json
    """
    from trace_transfer.files import prepare_directory, refuse_inputs, write_text
    from trace_transfer.patch.show import render_verification
    from trace_transfer.patch.verifying import require_frozen, verify_models
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.records import to_json

    if json_file is not None:
        refuse_inputs([json_file], [base, tuned, *cores, *patches], "--json")
        prepare_directory(json_file.parent, "directory of --json")
    quiet_libraries()
    verification = verify_models(base, tuned, cores=cores, patches=patches, reporter=Terminal())
    if json_file is not None:
        write_text(json_file, to_json(verification))
    click.echo(render_verification(verification))
    require_frozen(verification)
