"""`trace-transfer export`: read the options, call `export_core`, write or print the text."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import FoldedChoice, OutPath

TRAINERS = ("axolotl", "ms-swift", "peft", "llama-factory", "trl", "regex", "csv", "authors")


@click.command("export")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CORE...")
@click.option(
    "--to", required=True, type=FoldedChoice(TRAINERS),
    help="The trainer: axolotl and ms-swift (lines of YAML), llama-factory (YAML, where it can say the set at all), "
    "trl (a Python program), peft (a LoraConfig in Python: adapters on the core modules); or regex (one regular "
    "expression), csv (every parameter with its score), authors (a JSON list as the authors' scripts write it).",
)  # fmt: skip
@click.option(
    "--out", type=OutPath(file=True, dash=True), metavar="FILE",
    help="The file to be written; - or nothing prints it.",
)  # fmt: skip
@click.option(
    "--model", metavar="MODEL",
    help="The model of the core files, where it is not found under the name in them; only its config is read.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Of peft's adapters; 8 if not given.")
@click.option(
    "--alpha", type=click.FloatRange(min=0, min_open=True), help="lora_alpha of peft's adapters; 16 if not given."
)
def export_command(
    files: tuple[Path, ...], to: str, out: Path | None, model: str | None, rank: int | None, alpha: float | None
) -> None:
    """Write core sets as the settings of another trainer: it then trains exactly them, or the export is refused.

    The text is read again as the trainer reads it, against all parameter names of the model: what would train is the
    core set, tensor by tensor. What a trainer has no words for, such as rows or columns, is named. Of several core
    files of one model the text holds what any of them trains.

    \b
    trace-transfer export math.core.json --to axolotl --out math.yaml
    trace-transfer export math.core.json --to peft --rank 16 --out math_lora.py
    trace-transfer export math.core.json --to regex
    """
    if to != "peft" and (rank is not None or alpha is not None):
        raise click.UsageError("--rank and --alpha are those of adapters: they need --to peft")

    from trace_transfer.core_sets.exporting import export_core
    from trace_transfer.files import prepare_directory, refuse_inputs, write_text
    from trace_transfer.progress import quiet_libraries

    printed = out is None or str(out) == "-"
    if out is not None and not printed:
        refuse_inputs([out], [*files, *([model] if model else [])])
    if to == "peft" or model is not None:  # nothing else needs transformers
        quiet_libraries()
    done = export_core(files, to, model=model, rank=rank or 8, alpha=alpha or 16.0)
    summary = f"{', '.join(done.core.tasks)} for {to}: {done.core.summary}"
    if out is None or printed:
        click.echo(done.text, nl=False)
        click.echo(summary, err=True)
        return
    prepare_directory(out.parent)
    write_text(out, done.text)
    click.echo(f"{summary}\nwritten: {out}")
