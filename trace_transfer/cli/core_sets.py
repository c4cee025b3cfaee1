"""Core sets to and from other programs: `export` and `import`."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.core_sets.exporting import FORMATS, export_core
from trace_transfer.core_sets.importing import import_list, import_patterns
from trace_transfer.files import prepare_directory, refuse_inputs, write_text
from trace_transfer.progress import quiet_libraries
from trace_transfer.records import to_json

ENDING = ".core.json"


@click.command("export")
@shared.files("files", metavar="CORE...")
@click.option(
    "--to", required=True, type=click.Choice(tuple(FORMATS), case_sensitive=False),
    help="The trainer or format: " + "; ".join(f"{name}: {one.about}" for name, one in FORMATS.items()) + ".",
)  # fmt: skip
@click.option("--out", type=shared.OUT_FILE, metavar="FILE", help="File to write. Default: print it.")
@click.option(
    "--model", metavar="MODEL",
    help="Model of the core files, if it is not found under the name in them. Only its config is read.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="peft: rank of the adapters; 8 if not given.")
@click.option(
    "--alpha", type=click.FloatRange(min=0, min_open=True), help="peft: lora_alpha of the adapters; 16 if not given."
)
def export_command(
    files: tuple[Path, ...], to: str, out: Path | None, model: str | None, rank: int | None, alpha: float | None
) -> None:
    """Write core sets as settings of another trainer, which then trains exactly these tensors.

    The settings are parsed as the trainer parses them and compared with all tensor names of the model. If they would
    train anything else, the export is refused. A message names what the trainer cannot express, such as rows. Several
    core files of one model give their union.

    \b
        trace-transfer export math.core.json --to axolotl --out math.yaml
        trace-transfer export math.core.json --to peft --rank 16 \\
            --out math_lora.py
        trace-transfer export math.core.json --to regex
    """
    if to != "peft" and (rank is not None or alpha is not None):
        raise click.UsageError("--rank and --alpha are those of adapters: they need --to peft")
    out = None if str(out) == "-" else out
    if out is not None:
        refuse_inputs([out], [*files, *([model] if model else [])])
    if to == "peft" or model is not None:  # nothing else needs transformers
        quiet_libraries()
    core, text = export_core(files, to, model=model, rank=rank or 8, alpha=alpha or 16.0)
    summary = f"{', '.join(core.tasks)} for {to}: {core.summary}"
    if out is None:
        click.echo(text, nl=False)
        click.echo(summary, err=True)
        return
    prepare_directory(out.parent)
    write_text(out, text)
    click.echo(f"{summary}\nwritten: {out}")


@click.command("import")
@click.argument("file", type=shared.FILE)
@click.option(
    "--from", "source", required=True, type=click.Choice(("axolotl", "spectrum", "authors")),
    help="Format of the list. axolotl, spectrum: unfrozen_parameters; authors: the JSON list of the authors' scripts.",
)  # fmt: skip
@click.option("--model", required=True, metavar="MODEL", help="Model that the list is for. Only its config is read.")
@click.option("--out", required=True, type=shared.OUT_FILE, metavar="TASK.core.json", help="File to write.")
@click.option("--task", help="Name of the task. Default: that of the file.")
@shared.rules_option
def import_command(file: Path, source: str, model: str, out: Path, task: str | None, rules: tuple[str, ...]) -> None:
    """Make a core file from the list of tensors in FILE.

    Patterns are read as Axolotl reads them: a dot is literal, a pattern matches the beginning of a name, and [a:b] at
    its end gives rows. Patterns that match nothing are refused. From a list of the authors' scripts that ranks all
    tensors, `select` takes the best.

    \b
        trace-transfer import snr_unfrozenparameters_25percent.yaml \\
            --from spectrum --model meta-llama/Meta-Llama-3-8B \\
            --out chat.core.json
    """
    if task is None and not out.name.endswith(ENDING):
        raise click.UsageError(f"--out must end with {ENDING} and begin with the task, or give --task")

    from trace_transfer.core_sets.overlap import render_core_sets

    refuse_inputs([out], [file, model])
    quiet_libraries()
    name = task if task is not None else out.name.removesuffix(ENDING)
    if source == "authors":
        core = import_list(file, model, name, rules)
    else:
        core = import_patterns(file, model, name, rules, source)
    prepare_directory(out.parent)
    write_text(out, to_json(core))
    click.echo(render_core_sets((core,), (), (out,)))
