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
from trace_transfer.printable import PIPED, guarded_streams
from trace_transfer.progress import telling
from trace_transfer.stopping import StopRequested, noted_interruption

# Command → what the list of commands says of it; the module of that name defines it, or the one of `ELSEWHERE`.
COMMANDS = {
    "run": "Everything from task data to report in one resumable command; sweeps, too.",
    "identify": "Find the parameters that each task needs: warm-start, score and select in one.",
    "warm-start": "Fine-tune a model for one epoch on each task and keep what changed.",
    "score": "Score parameters by how warm-started or fine-tuned models differ from their base.",
    "select": "Make another core set, of another size, from the scores in a core file.",
    "export": "Write core sets as the settings of other trainers: axolotl, ms-swift, peft, trl and more.",
    "import": "Make core files of the lists of Axolotl, Spectrum and the authors' scripts.",
    "plot": "Draw importance heatmaps of core files: layers x modules, by task and warm-start length.",
    "map": "Match the layers of two models and carry core sets from one to the other.",
    "train": "Fine-tune a model on a stream of tasks, of each only its core set; baselines and controls, too.",
    "evaluate": "Score a model on benchmarks of lm-evaluation-harness and on your own data.",
    "represent": "Draw the last-layer embeddings of tasks, of any models side by side.",
    "report": "Make one page of a run: what was run, tables, plots, and what they say.",
    "patch": "Move a model between the states of a stream: apply, revert, diff; models for mergekit.",
    "verify": "Prove that between two models nothing moved but a core set.",
    "rules": "List, check, explain and draft the rules that tell which parameter does what.",
    "schema": "Print the JSON Schema of run.yaml, tasks.yaml, stream.yaml, a suite or rules, for editors.",
    "inspect": "Draw a file that trace-transfer wrote in the terminal.",
}


ELSEWHERE = {
    **dict.fromkeys(("warm-start", "score", "select", "plot"), "identify"),
    **dict.fromkeys(("export", "import"), "core_sets"),
    **dict.fromkeys(("step", "report", "schema", "inspect"), "run"),
    "represent": "evaluate",
    "verify": "patch",
}
INTERRUPTED = (
    "interrupted; nothing half-written was left, and the same command goes on from what is finished"  # if anything is
)
HIDDEN = ("step",)  # started by other commands


class Commands(click.Group):
    """A group whose commands are imported when they are called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in (*COMMANDS, *HIDDEN):
            return None
        module = importlib.import_module(f"trace_transfer.cli.{ELSEWHERE.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, 1) if args else []
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(error.message + hint, error.ctx) from error

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
                if isinstance(error, KeyboardInterrupt) or was_interrupted():
                    click.echo(INTERRUPTED, err=True)
                    ctx.exit(130)
                self.report(ctx, error)

    def report(self, ctx: click.Context, error: BaseException) -> None:
        """One message and an exit code for an error that is ours or the system's; raises any other."""
        try:
            raise error
        except StopRequested as stopped:
            click.echo(str(stopped), err=True)
            ctx.exit(0)
        except TraceTransferError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UserError) else 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except OSError as error:  # a full disk, a file that vanished
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": PIPED})
@click.version_option(__version__, prog_name="trace-transfer")
@click.option("--local_rank", type=int, hidden=True, expose_value=False, help="Given by DeepSpeed's launcher.")
def main() -> None:
    """Find the few parameters a task needs on a small language model, carry them to a large one of another family,
    and fine-tune only those."""
    # Before torch is loaded: threads that wait for each other sleep. Those that spin make a step of SmolLM2's size 6 %
    # faster on two cores with nothing else to do, and four times slower where these have other work, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
