"""The command line: one thin file per command, loaded only when it is called.

Results go to stdout, progress and messages to stderr. A user's mistake ends with one message and exit code 2, a failure
with exit code 1, Ctrl-C with 130; none shows a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from trace_transfer import __version__
from trace_transfer.errors import TraceTransferError, UserError
from trace_transfer.printable import PIPED, end_quiet, guarded_streams
from trace_transfer.progress import telling
from trace_transfer.stopping import StopRequested, noted_interruption

# Command → what the list of commands says of it; the module of that name defines it, or the one of `ELSEWHERE`.
COMMANDS = {
    "identify": "Find the core set of each task on a small model.",
    "map": "Match the layers of two models and carry core sets across.",
    "train": "Fine-tune a model, one task after another; only core sets are trained.",
    "verify": "Compare two models bit for bit: only core sets may differ.",
    "run": "Run a study: all steps from task data to report.",
    "report": "Write the report of a study again.",
    "evaluate": "Score a model on benchmarks or on your own data.",
    "represent": "Draw how well models separate the texts of several tasks.",
    "export": "Write core sets as settings of Axolotl, ms-swift, PEFT, TRL and others.",
    "import": "Make core files from lists of Axolotl, Spectrum and the authors.",
    "patch": "Apply and revert what a task changed; make models for mergekit.",
    "warm-start": "First half of identify: fine-tune on each task and keep the deltas.",
    "score": "Second half of identify: score tensors and select core sets.",
    "select": "Make core sets of another size from the scores in core files.",
    "plot": "Draw the scores in core files as heatmaps.",
    "inspect": "Show any file that trace-transfer wrote in the terminal.",
    "rules": "List, check, explain and draft rules of model families.",
    "schema": "Print a JSON Schema of a YAML file, for editors.",
}
ELSEWHERE = {
    **dict.fromkeys(("warm-start", "score", "select", "plot"), "identify"),
    **dict.fromkeys(("export", "import"), "core_sets"),
    **dict.fromkeys(("step", "report", "schema", "inspect"), "run"),
    "represent": "evaluate",
    "verify": "patch",
}
INTERRUPTED = "interrupted; no half-written file is left, and the same command resumes from what is finished"
HIDDEN = ("step",)  # started by other commands


class Commands(click.Group):
    """A group whose commands are imported when they are called, so that `--help` answers at once."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in (*COMMANDS, *HIDDEN):
            return None
        module = importlib.import_module(f"trace_transfer.cli.{ELSEWHERE.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does it, with nothing printed that a terminal would obey."""
        with guarded_streams():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and turn our own errors into one message and an exit code."""
        with noted_interruption() as was_interrupted, telling(lambda message: click.echo(f"note: {message}", err=True)):
            try:
                return super().invoke(ctx)
            except (KeyboardInterrupt, Exception) as error:
                end_quiet()
                match error:
                    case _ if isinstance(error, KeyboardInterrupt) or was_interrupted():
                        told, code = INTERRUPTED, 130
                    case StopRequested():
                        told, code = str(error), 0
                    case TraceTransferError():
                        told, code = f"error: {error}", 2 if isinstance(error, UserError) else 1
                    case BrokenPipeError():
                        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                        ctx.exit(0)
                    case OSError():  # a full disk, a file that vanished
                        told, code = f"error: {error}", 1
                    case _:
                        raise
                click.echo(told, err=True)
                ctx.exit(code)


_later = dict.fromkeys(COMMANDS, click.Command("later"))  # `get_command` imports them


@click.group(
    cls=Commands, commands=_later,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": PIPED},
)  # fmt: skip
@click.version_option(__version__, prog_name="trace-transfer")
@click.option("--local_rank", type=int, hidden=True, expose_value=False, help="Given by DeepSpeed's launcher.")
def main() -> None:
    """Find the few parameters that a task needs on a small language model, carry them to a large model of another
    family, and fine-tune only those.

    \b
        trace-transfer identify SMALL --tasks tasks.yaml --out runs/small
        trace-transfer map --src SMALL --dst LARGE \\
            --core runs/small/math.core.json --out runs/carried
        trace-transfer train LARGE --stream stream.yaml --out runs/large
    """
    # Before torch is loaded: threads that wait for each other sleep. Those that spin make a step of SmolLM2's size 6 %
    # faster on two cores with nothing else to do, and four times slower where these have other work, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
