"""`trace-transfer rules`: see, check and try the rules files."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trace_transfer.cli.options import OUT_FILE, rules_option
from trace_transfer.errors import ModelError, RulesError
from trace_transfer.progress import quiet_libraries

if TYPE_CHECKING:
    from trace_transfer.terminal import Page

ENDLESS = 10_000  # columns


@click.group("rules")
def rules_command() -> None:
    """See, check and try the rules that say which tensor is which component."""


@rules_command.command("list")
@rules_option
def list_families(rules: tuple[str, ...]) -> None:
    """List the families that have rules."""
    from trace_transfer.families.language import display_path
    from trace_transfer.families.registry import load_families

    registry = load_families([Path(path) for path in rules])
    rows = []
    for name, family in sorted(registry.families.items()):
        kinds = [kind for kind in family.model_types if registry.by_model_type.get(kind) is family]
        of = ", ".join(kinds) or "none left"
        rows.append((name, of, len(family.components) + len(family.outside), display_path(family.location.path)))
    _page().table(("family", "model types", "components", "file"), rows)


@rules_command.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@rules_option
@click.option("--model", help="Check against this model (a directory, GGUF file or hub name; only its config is read).")
def check(paths: tuple[Path, ...], rules: tuple[str, ...], model: str | None) -> None:
    """Check rules files: their text, then each pattern against the real tensor names of a model.

    PATHS are rules files or directories of them; without any, all rules are checked. Without --model the model is
    transformers' default one for each of a family's model types. Models are built without memory for their weights."""
    from trace_transfer.families.checking import check_family, planned_checks
    from trace_transfer.families.registry import load_families, rules_files

    quiet_libraries()
    registry = load_families([*paths, *map(Path, rules)])
    problems = []
    for family, name, config in planned_checks(registry, [file for path in paths for file in rules_files(path)], model):
        try:
            _page().line(f"OK {check_family(family, name, config)}")
        except ModelError as error:
            click.echo(f"NOT CHECKED {family.location.path.name}: {error}; check against a real one with --model")
            if paths or model is not None:  # asked for, and not done
                problems.append(str(error))
        except RulesError as error:
            problems.append(str(error))
    if problems:
        raise RulesError("\n".join(problems))


@rules_command.command()
@click.argument("model")
@click.option("--out", type=OUT_FILE, help="File to write; default: MODEL_TYPE.yaml.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@rules_option
@click.pass_context
def draft(context: click.Context, model: str, out: Path | None, force: bool, rules: tuple[str, ...]) -> None:
    """Write a first rules file for a model of an unknown architecture, and check it.

    MODEL is a directory, GGUF file or hub name; only its config is read. The file has the names that the nearest family
    has, and at its end a list of those left to assign, with hints. The exit code is 0 if the draft fits the model, 1 if
    something is left to do."""
    from trace_transfer.families.checking import write_draft
    from trace_transfer.families.registry import load_families

    quiet_libraries()
    summary, verdict, fits = write_draft(model, load_families([Path(path) for path in rules]), out, force)
    click.echo(f"{summary}\n{verdict}")
    context.exit(0 if fits else 1)


@rules_command.command("explain")
@click.option("--src", required=True, help="Source model: a directory, GGUF file or hub name; only its config is read.")
@click.option("--dst", required=True, help="Target model, likewise.")
@rules_option
def explain_tensors(src: str, dst: str, rules: tuple[str, ...]) -> None:
    """Show what each tensor of SRC carries over to in DST, and by which rule.

    The layer match is not known here; for the totals layers of the same relative depth are matched, each layer of the
    deeper model with one, as the default --match of `map` does."""
    from trace_transfer.families.application import anatomy_of
    from trace_transfer.families.correspondence import build_correspondence, explain, totals
    from trace_transfer.families.registry import load_families
    from trace_transfer.models.sources import ModelSource, load_inventory
    from trace_transfer.transfer.policies import POLICIES, depth_pairs
    from trace_transfer.transfer.settings import MapSettings

    quiet_libraries()
    registry = load_families([Path(path) for path in rules])
    source, target = (anatomy_of(load_inventory(ModelSource.parse(name)), registry) for name in (src, dst))
    policy, shape = MapSettings().match, (source.num_layers, target.num_layers)
    pairs = depth_pairs(shape, by_target=POLICIES[policy].target_chooses(shape))
    correspondence = build_correspondence(source, target, pairs)
    titles = [
        f"{ModelSource.parse(name).display_name} ({anatomy.family})\n{anatomy.layer_path}.{{layer}}.…"
        for name, anatomy in ((src, source), (dst, target))
    ]
    rows: list[tuple[str, str, str]] = []
    for section, lines in groupby(explain(correspondence), key=lambda line: line.section):
        rows += [("", "", "")] * bool(rows) + [(section, "", "")]
        rows += [(line.source, line.target, line.why) for line in lines]
    page = _page()
    page.table((*titles, "rule or reason"), rows)
    page.lines(("", *totals(correspondence)))
    page.line(
        f"(layers matched by relative depth, as many as --match {policy} of map matches; a real layer match changes "
        "which layers meet, another --match the counts, neither the rules)"
    )


def _page() -> Page:
    """Standard output; into a pipe each line is as long as it is, for grep."""
    from trace_transfer.terminal import Page, console

    out = console()
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = ENDLESS
    return Page(out)
