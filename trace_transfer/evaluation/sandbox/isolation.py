"""Whether generated code can be run safely here, tried out rather than assumed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trace_transfer.evaluation.sandbox.programs import IsolationError, run_program

# Each attempt must be refused, and what a program needs must be there.
PROBE = """
import collections, math, os, re, socket, _thread

def read(): open({secret!r}).read()
def replace(): open({secret!r}, "w")
def write_beside(): open({beside!r}, "w")
def list_directory(): os.listdir({directory!r})
def open_socket(): socket.socket()
def start_process(): os.fork()
def start_thread(): _thread.start_new_thread(id, (0,))
def signal_parent(): os.kill(os.getppid(), 0)

ATTEMPTS = read, replace, write_beside, list_directory, open_socket, start_process, start_thread, signal_parent

def got_through():
    found = []
    for attempt in ATTEMPTS:
        try:
            attempt()
        except (OSError, RuntimeError):
            continue
        found.append(attempt.__name__)
    if os.environ.keys() - {{{environment}}}:
        found.append("environment")
    with open("file", "w") as stream:
        stream.write("its own directory can be written to")
    return found
"""
TEST = """
got_through = __program__.got_through()
assert not got_through, got_through
"""
ENVIRONMENT = [
    *("PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
]


def require_isolation() -> tuple[str, ...]:
    """The layers that confine a program on this system; a fifth of a second.

    Raises:
        IsolationError: a layer of the minimum is missing, or a harmless program got past them. There is no weaker way.
    """
    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory, "secret")
        secret.write_text("secret", encoding="utf-8")
        paths = {"secret": str(secret), "beside": f"{directory}/beside", "directory": directory}
        outcome = run_program(PROBE.format(**paths, environment=", ".join(map(repr, ENVIRONMENT))), TEST)
    if not outcome.passed:
        raise IsolationError(
            f"generated code cannot be run safely on this system: a trial program was {outcome.status} "
            f"({outcome.reason}) under {', '.join(outcome.layers)}, expected it to be refused everything and to end "
            f"well. It said:\n{outcome.stderr}"
        )
    return outcome.layers
