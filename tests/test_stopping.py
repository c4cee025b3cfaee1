"""Being told to stop: exit codes, and libraries that make something else of Ctrl-C."""

import os
import signal

import click
import pytest
from click.testing import CliRunner

from trace_transfer.cli import INTERRUPTED, Commands
from trace_transfer.errors import ModelError
from trace_transfer.printable import quiet
from trace_transfer.progress import Terminal
from trace_transfer.stopping import interruption_held_back, stop_on_sigterm


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run(body):
    """Exit code and stderr of a command that does `body`."""
    command = click.Command("work", callback=body)

    class One(Commands):
        def get_command(self, ctx, cmd_name):
            return command

    done = CliRunner().invoke(One("main"), ["work"])
    return done.exit_code, done.stderr, done.exception


@pytest.mark.parametrize(
    "becomes", [None, ValueError("Invalid bounding box"), ModelError("the model cannot be loaded")]
)
def test_ctrl_c_ends_with_130_whatever_a_library_makes_of_it(becomes):
    def body():
        try:
            interrupt()
        except KeyboardInterrupt:
            raise becomes or KeyboardInterrupt from None

    assert run(body)[:2] == (130, f"{INTERRUPTED}\n")

    def alone():  # the same errors without it are what they are
        raise becomes

    if becomes:
        code, stderr, error = run(alone)
        assert isinstance(error, ValueError) or (code, stderr) == (2, "error: the model cannot be loaded\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_c_code_swallows_is_raised_where_work_begins():
    class Swallowing:
        def __del__(self):  # what is raised here cannot go on, as in a callback of Cython
            signal.raise_signal(signal.SIGINT)

    def body():
        Swallowing()
        with Terminal().task("reading", 1):
            raise AssertionError("it went on")

    assert run(body)[:2] == (130, f"{INTERRUPTED}\n")


def test_ctrl_c_at_the_end_of_a_silent_part_is_told(capfd):
    def body():
        silent = quiet()
        silent.__enter__()
        raise KeyboardInterrupt  # at the first instruction of its `__exit__`, which then does nothing

    assert run(body)[:2] == (130, f"{INTERRUPTED}\n")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_sigterm_is_noted_and_ends_with_0():
    def body():
        with stop_on_sigterm() as stop:
            stop.check("before anything")
            os.kill(os.getpid(), signal.SIGTERM)
            stop.check("after step 3 of 9")

    assert run(body)[:2] == (0, "stopped by SIGTERM after step 3 of 9; the same command goes on from there\n")


def test_ctrl_c_is_held_back_to_the_end_of_a_block():
    done = []
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        with interruption_held_back():
            interrupt()
            done.append("the block")
        done.append("what follows")
    assert done == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
