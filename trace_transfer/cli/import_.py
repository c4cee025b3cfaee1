"""`trace-transfer import`: lists of other programs as core files."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.values import OUT_FILE, RATIO

ENDING = ".core.json"


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--from", "source", required=True, type=click.Choice(("axolotl", "spectrum", "authors")),
    help="Whose list it is: unfrozen_parameters of an Axolotl configuration, or as Spectrum writes them; or a JSON "
    "list of the authors' scripts.",
)  # fmt: skip
@click.option("--model", required=True, metavar="MODEL", help="Whose parameters it names; only its config is read.")
@click.option("--out", required=True, type=OUT_FILE, metavar="TASK.core.json", help="The new file.")
@click.option("--task", help="The task's name; default: that of the file.")
@click.option("--ratio", type=RATIO, help="authors: the core share, of a list of all parameters.")
@click.option("--unit", type=click.Choice(("tensors", "elements")), help="authors: what --ratio counts.")
@shared.rules_option
def import_command(
    file: Path, source: str, model: str, out: Path, task: str | None, ratio: float | None, unit: str | None,
    rules: tuple[str, ...],
) -> None:  # fmt: skip
    """Make a core file of the list in FILE: it can be carried to another model, trained, drawn and exported.

    Patterns are read as Axolotl reads them: a dot is a dot, matched from the beginning of a name and open at the end,
    with rows as [a:b] behind. Patterns that match nothing are refused, all at once.

    \b
    trace-transfer import snr_unfrozenparameters_25percent.yaml --from spectrum \\
        --model meta-llama/Meta-Llama-3-8B --out chat.core.json
    """
    if task is None and not out.name.endswith(ENDING):
        raise click.UsageError(f"--out must end with {ENDING} and begin with the task, or give --task")
    if source != "authors" and (ratio is not None or unit is not None):
        raise click.UsageError("--ratio and --unit select from lists that rank parameters: they need --from authors")

    from trace_transfer.core_sets.importing import import_patterns
    from trace_transfer.core_sets.show import render_core_sets
    from trace_transfer.files import prepare_directory, refuse_inputs, write_text
    from trace_transfer.identification.reselecting import import_list
    from trace_transfer.progress import quiet_libraries
    from trace_transfer.records import to_json

    refuse_inputs([out], [file, model])
    quiet_libraries()
    name = task if task is not None else out.name.removesuffix(ENDING)
    if source == "authors":
        core = import_list(file, model, name, ratio, unit, rules)
    else:
        core = import_patterns(file, model, name, rules, source)
    prepare_directory(out.parent)
    write_text(out, to_json(core))
    click.echo(render_core_sets((core,), (), (out,)))
