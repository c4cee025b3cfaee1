"""Writes the reference pages that come from the program itself, as an extension of Python-Markdown.

A line `::: commands` becomes all commands with their options by group, `::: yaml FILE` the keys of a YAML file by its
JSON Schema. `make docs` runs this, so the pages are never older than the program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import click
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

from trace_transfer.cli import COMMANDS, main
from trace_transfer.cli.options import groups
from trace_transfer.formats import schema_of

NOTHING = "–"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield from ("", f"| {' | '.join(headings)} |", "|" + " --- |" * len(headings))
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


# ---- commands


def commands() -> Iterator[str]:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        yield from described(f"trace-transfer {name}", command, 2)
        for inner, one in getattr(command, "commands", {}).items():
            yield from described(f"trace-transfer {name} {inner}", one, 3)


def described(path: str, command: click.Command, level: int) -> Iterator[str]:
    """The command's own words, its usage, and a table of the options of each group."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    anchor = path.replace(" ", "-")
    yield from (f"{'#' * level} {path} {{ #{anchor} data-toc-label='{path.removeprefix('trace-transfer ')}' }}", "")
    yield from text.splitlines()
    ctx = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(ctx)])
    yield from ("", "```text", usage, "```", "")
    if examples:
        yield from ("```bash", *dedent(examples).rstrip().splitlines(), "```", "")
    for title, options in groups(command, ctx):
        rows = [row(option, ctx) for option in options if option.opts != ["-h", "--help"]]
        if rows and title != "Help":
            yield from (f"**{title}**", *table(("option", "default", "meaning"), rows))


def row(option: click.Option, ctx: click.Context) -> tuple[str, ...]:
    name, _ = option.get_help_record(ctx) or ("", "")
    default = option.get_help_extra(ctx).get("default", "required" if option.required else NOTHING)
    return f"`{name}`", cell(str(default)), cell(option.help or "")


# ---- YAML files


def yaml_file(file: str) -> Iterator[str]:
    schema = schema_of(file)
    yield from keys(schema, schema.get("$defs", {}), 3)


def keys(schema: dict[str, Any], defs: dict[str, Any], level: int) -> Iterator[str]:
    """A table of the keys of an object, then of the objects that lie in them."""
    rows, inner = [], []
    for name, one in schema["properties"].items():
        needed = " **required**" if name in schema.get("required", ()) else ""
        default = one.get("default")
        shown = f"`{default}`" if default not in (None, [], {}) else NOTHING
        rows.append((f"`{name}`{needed}", cell(values(one, defs)), shown, cell(first_lines(one, defs))))
        inner += [(name, found) for found in objects(one, defs)]
    yield from table(("key", "value", "default", "meaning"), rows)
    for name, found in inner:
        yield from (f"{'#' * level} {name}", "", *keys(found, defs, min(level + 1, 5)))


def resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def objects(schema: dict[str, Any], defs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects with keys of their own that a value may be or hold."""
    schema = resolved(schema, defs)
    for one in schema.get("anyOf", [schema]):
        one = resolved(one, defs)
        one = resolved(one.get("items", one), defs)
        for found in one.get("anyOf", [one]):
            if resolved(found, defs).get("properties"):
                yield resolved(found, defs)


def first_lines(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    text: str = schema.get("description") or resolved(schema, defs).get("description", "")
    return text.partition("\n\n")[0]


def values(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """What may stand there, in words."""
    schema = resolved(schema, defs)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        found = [values(one, defs) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(found))
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    limits = "" if low is None else f" ≥ {low}" if high is None or high > 10**9 else f" {low} to {high}"
    match schema.get("type"):
        case "array":
            return f"list of {values(schema['items'], defs)}" if "items" in schema else "list"
        case "object":
            return "mapping"
        case kind:
            return {"string": "text", "boolean": "true, false"}.get(str(kind), str(kind or "any")) + limits


class Generated(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        found: list[str] = []
        for line in lines:
            asked = re.fullmatch(r"::: (commands|yaml (\w+))", line)
            found += [line] if asked is None else list(yaml_file(asked[2]) if asked[2] else commands())
        return found


class GeneratedPages(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Generated(md), "generated", 100)  # before fences and tables are read


def makeExtension(**given: Any) -> GeneratedPages:
    return GeneratedPages(**given)
