"""`trace-transfer rules`: see, check and try the rules files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trace_transfer.errors import RulesError

if TYPE_CHECKING:
    from rich.table import Table

    from trace_transfer.rules.explanation import Line

RULES_OPTION = click.option(
    "--rules",
    "rules_path",
    type=click.Path(exists=True, path_type=Path),
    help="Your own rules file, or a directory of them: adds families, or replaces shipped ones.",
)


@click.group("rules")
def rules_command() -> None:
    """See, check and try the rules that say which parameter is which component."""


@rules_command.command("list")
@RULES_OPTION
def list_families(rules_path: Path | None) -> None:
    """List the families that have rules."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from trace_transfer.rules.registry import load_families
    from trace_transfer.rules.tables import display_path

    registry = load_families(rules_path)
    table = Table("family", "model types", "components", "file", box=box.SIMPLE)
    for name, family in sorted(registry.families.items()):
        kinds = [kind for kind in family.model_types if registry.by_model_type.get(kind) is family]
        row = (name, ", ".join(kinds) or "none left", str(family.num_components), display_path(family.location.path))
        table.add_row(*map(Text, row))
    _print(table)


@rules_command.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@RULES_OPTION
@click.option("--model", help="Check against this model (a directory, GGUF file or hub name; only its config is read).")
def check(paths: tuple[Path, ...], rules_path: Path | None, model: str | None) -> None:
    """Check rules files: their text, then each pattern against the real parameter names of a model.

    PATHS are rules files or directories of them; without any, all rules are checked. Without --model the model is
    transformers' default one for each of a family's model types. Models are built without memory for their weights.
    """
    from trace_transfer.progress import quiet_libraries
    from trace_transfer.rules.checking import UncheckedError, planned_checks
    from trace_transfer.rules.registry import load_families, rules_files

    quiet_libraries()
    registry = load_families([*paths, *([rules_path] if rules_path else [])])
    problems = []
    for planned in planned_checks(registry, [file for path in paths for file in rules_files(path)], model):
        try:
            click.echo(f"OK {planned.run()}")
        except UncheckedError as error:
            click.echo(f"NOT CHECKED {error}")
            if paths or model is not None:  # asked for, and not done
                problems.append(str(error))
        except RulesError as error:
            problems.append(str(error))
    if problems:
        raise RulesError("\n".join(problems))


@rules_command.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write; default: MODEL_TYPE.yaml.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--anyway", is_flag=True, help="Draft even if there are rules for this model.")
@RULES_OPTION
@click.pass_context
def draft(
    context: click.Context, model: str, out: Path | None, force: bool, anyway: bool, rules_path: Path | None
) -> None:
    """Write a first rules file for a model of an unknown architecture, and check it.

    MODEL is a directory, GGUF file or hub name; only its config is read. The file has the names that the nearest family
    has, and at its end a list of those left to assign, with hints. The exit code is 0 if the draft fits the model, 1 if
    something is left to do.
    """
    from trace_transfer.progress import quiet_libraries
    from trace_transfer.rules.drafting import write_draft
    from trace_transfer.rules.registry import load_families

    quiet_libraries()
    written = write_draft(model, load_families(rules_path), out, force, anyway)
    click.echo(written.summary)
    click.echo(written.verdict)
    context.exit(0 if written.fits else 1)


@rules_command.command()
@click.option("--src", required=True, help="Source model: a directory, GGUF file or hub name; only its config is read.")
@click.option("--dst", required=True, help="Target model, likewise.")
@RULES_OPTION
@click.option("--all", "every_layer", is_flag=True, help="Every parameter of every layer, not one layer for all.")
def explain(src: str, dst: str, rules_path: Path | None, every_layer: bool) -> None:
    """Show what each parameter of SRC carries over to in DST, and by which rule.

    The layer match is not known here; for the totals each source layer is matched to the target layer of the same
    relative depth.
    """
    from trace_transfer.correspondence import build_correspondence
    from trace_transfer.maths.depth import depth_match
    from trace_transfer.models import ModelSource, load_config, read_inventory
    from trace_transfer.progress import quiet_libraries
    from trace_transfer.rules.application import anatomy_of
    from trace_transfer.rules.explanation import explain as lines_of
    from trace_transfer.rules.explanation import totals
    from trace_transfer.rules.registry import load_families

    quiet_libraries()
    registry = load_families(rules_path)
    configs = [load_config(ModelSource.parse(name)) for name in (src, dst)]
    source, target = (anatomy_of(read_inventory(config), registry) for config in configs)
    pairs = depth_match(source.num_layers, target.num_layers)
    correspondence = build_correspondence(source, target, pairs)
    titles = [
        f"{name} ({anatomy.family})" + ("" if every_layer else f"\n{anatomy.layer_path}.{{layer}}.…")
        for name, anatomy in (
            (ModelSource.parse(src).display_name, source),
            (ModelSource.parse(dst).display_name, target),
        )
    ]
    _print(_explanation_table(lines_of(correspondence, every_layer), titles))
    click.echo("\n".join(["", *totals(correspondence)]))
    click.echo("(layers matched by relative depth; a real layer match changes the counts, not the rules)")


def _explanation_table(lines: Sequence[Line], titles: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header = (*titles, "rule or reason")
    cells = [(line.source, line.target, line.why) for line in lines] + [(line.section, "", "") for line in lines]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for title, width in zip(header, _column_widths([header, *cells], _available_width()), strict=True):
        table.add_column(Text(title), overflow="fold", width=width)
    section = None
    for line in lines:
        if line.section != section:
            if section is not None:
                table.add_row()
            section = line.section
            table.add_row(Text(section, style="bold"))
        table.add_row(Text(line.source), Text(line.target), Text(line.why))
    return table


def _column_widths(rows: Sequence[Sequence[str]], available: int | None) -> list[int]:
    """Each column at least as wide as its longest word, so that no name is broken; the last one grows first."""
    columns = list(zip(*rows, strict=True))
    natural = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    if available is None:
        return natural
    widths = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    spare = available - sum(widths) - (len(widths) - 1)
    for index in reversed(range(len(widths))):
        growth = max(0, min(spare, natural[index] - widths[index]))
        widths[index] += growth
        spare -= growth
    return widths


def _available_width() -> int | None:
    """Columns of the terminal; None for a pipe, where each line is as long as it is."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


def _print(table: Table) -> None:
    """To stdout, at the table's own width."""
    from rich.console import Console
    from rich.measure import Measurement

    endless = Console(width=10_000)
    Console(width=Measurement.get(endless, endless.options, table).maximum).print(table)
