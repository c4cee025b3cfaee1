"""`trace-transfer schema`: print the JSON Schema of a file that people write."""

from __future__ import annotations

import json

import click

FILES = ("run", "tasks", "stream", "suite", "rules")


@click.command("schema")
@click.argument("file", type=click.Choice(FILES))
def schema_command(file: str) -> None:
    """Print the JSON Schema of run.yaml, tasks.yaml, stream.yaml, a suite or a rules file, for editors.

    Editors with a YAML language server then complete keys and show what each setting means: write
    `# yaml-language-server: $schema=run.schema.json` into the first line of the file.

    \b
    trace-transfer schema run > run.schema.json
    """
    from trace_transfer.schemas import schema_of

    click.echo(json.dumps(schema_of(file), indent=2, ensure_ascii=False))
