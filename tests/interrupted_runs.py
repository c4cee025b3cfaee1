"""Runs `trace-transfer` many times, each in a fork of one process that has everything imported, and interrupts them.

Reads requests from stdin, one JSON object a line, and answers each with one:

    {"arguments": [...], "watch": [directories], "signal": 9, "at_event": 17 | "after": 0.2}
    {"returncode": -9, "stdout": "...", "stderr": "...", "events": 17, "seconds": 0.4}

`at_event` sends the signal just before the n-th operation on a file below `watch` (open, rename, remove, chmod, mkdir):
between two of them nothing on the disk changes but a file that is being written. `after` sends it after some seconds.
Without a signal the run is left alone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.killed_writes import signal_at

IMPORTED = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3", "plotly.io",
    "matplotlib.backends.backend_agg", "rich.progress", "trace_transfer.cli.map", "trace_transfer.transfer.draw",
    "trace_transfer.transfer.mapping", "trace_transfer.transfer.show", "trace_transfer.cli.identify", "datasets",
    "trace_transfer.identification.identifying", "trace_transfer.identification.show", "trace_transfer.cli.train",
    "trace_transfer.training.streaming", "trace_transfer.training.show",
)  # fmt: skip


def answer(request: dict) -> dict:
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("stdout", "stderr", "events")]
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            run(request, *streams)  # never returns
        if "after" in request:
            time.sleep(request["after"])
            os.kill(child, request["signal"])
        status = os.waitpid(child, 0)[1]
        seconds = time.perf_counter() - start
        out, err, events = (file.read_text() if file.exists() else "" for file in streams)
    return {
        "returncode": os.waitstatus_to_exitcode(status),
        "stdout": out,
        "stderr": err,
        "events": len(events),
        "seconds": seconds,
    }


def run(request: dict, stdout: Path, stderr: Path, events: Path) -> None:
    from trace_transfer.cli import main

    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    counter = os.open(events, os.O_WRONLY | os.O_CREAT)
    signal_at(request["watch"], request.get("at_event"), request.get("signal", 0), lambda: os.write(counter, b"."))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        main(request["arguments"])
    except SystemExit as done:
        code = done.code or 0
    except BaseException:  # what Python would do
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers' loading threads do not survive a fork
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    with sys.modules["trace_transfer.engine.distributed"].open_ranks():  # imports DeepSpeed, without its noise
        pass
    gc.freeze()  # as in conftest
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the children who are interrupted
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
