"""Runs `trace-transfer` many times, each in a fork of one process that has everything imported, and interrupts them.

Run as a program, it reads requests from stdin, one JSON object a line, and answers each with one:

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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from tests.commands import Undrawn
from tests.killed_writes import signal_at
from trace_transfer.cli import INTERRUPTED, main

IMPORTED = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3", "plotly.io",
    "trace_transfer.figures", "rich.progress", "trace_transfer.cli.map", "trace_transfer.transfer.draw",
    "trace_transfer.transfer.mapping", "trace_transfer.cli.identify", "datasets",
    "trace_transfer.identification.identifying", "trace_transfer.identification.show", "markdown_it",
    "trace_transfer.training.streaming", "trace_transfer.training.show", "transformers.optimization", "plotly.offline",
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
    code = os.waitstatus_to_exitcode(status)
    return {"returncode": code, "stdout": out, "stderr": err, "events": len(events), "seconds": seconds}


def run(request: dict, stdout: Path, stderr: Path, events: Path) -> None:
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
    sys.modules["trace_transfer.families.registry"].load_families()
    sys.modules["torch"].set_num_threads(1)
    with sys.modules["trace_transfer.engine.distributed"].open_ranks():  # imports DeepSpeed, without its noise
        pass
    sys.modules["trace_transfer.figures"].picture = Undrawn  # as in conftest
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the children who are interrupted
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


class Server:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.interrupted_runs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class RepeatedRuns:
    """A command whose files must be the same however often it was interrupted.

    Attributes:
        out: where its results go.
        watch: directories whose file operations are counted.
        growing: parts of the names of files that another run, or another moment, may have otherwise.
        undisturbed, expected: what the first run answered, and the files that it wrote.
    """

    def __init__(
        self, server: Server, arguments: list, out: Path, watch: Iterable = (), growing: Iterable = ()
    ) -> None:
        self.server, self.arguments, self.out = server, [str(one) for one in arguments], out
        self.watch, self.growing = (out, *watch), tuple(growing)
        self.undisturbed = self.run()
        assert self.undisturbed["returncode"] == 0, self.undisturbed["stderr"]
        self.expected = self.files()

    def run(self, **request: object) -> dict:
        return self.server.ask({"arguments": self.arguments, "watch": [str(one) for one in self.watch], **request})

    def clear(self) -> None:
        for directory in self.watch:
            shutil.rmtree(directory, ignore_errors=True)

    def files(self) -> dict[str, bytes]:
        """All files below the output directory, hidden ones too."""
        found = sorted(self.out.rglob("*")) if self.out.is_dir() else []
        return {str(file.relative_to(self.out)): file.read_bytes() for file in found if file.is_file()}

    def check_nothing_is_half(self) -> None:
        """What has its final name is whole: it is as an undisturbed run leaves it, or is one that grows."""
        for directory in self.watch:
            for file in directory.rglob("*"):
                name = str(file.relative_to(directory))
                if not file.is_file() or any(part.startswith(".") for part in name.split("/")):
                    continue
                if file.suffix == ".safetensors":
                    with safe_open(file, framework="pt") as opened:
                        assert opened.keys()
                if file.suffix == ".json":
                    json.loads(file.read_bytes())
                if directory == self.out and not any(part in name for part in self.growing):
                    assert file.read_bytes() == self.expected[name], name

    def kill_at(self, event: int) -> bool:
        """Kill it before an operation on files; False where it was done before that."""
        killed = self.run(signal=signal.SIGKILL, at_event=event)
        self.check_nothing_is_half()
        assert killed["returncode"] in (0, -signal.SIGKILL), killed["stderr"]
        return killed["returncode"] != 0

    def interrupt(self, **when: object) -> bool:
        """Ctrl-C: nothing half-written is left, not even hidden; False where it was too late."""
        done = self.run(signal=signal.SIGINT, **when)
        if done["returncode"] != 0:
            self.check_interrupted(done)
        return done["returncode"] != 0

    def check_interrupted(self, done: dict) -> None:
        assert (done["returncode"], done["stdout"]) == (130, ""), done["stderr"]
        assert done["stderr"].endswith(f"{INTERRUPTED}\n") and "Traceback" not in done["stderr"]
        assert not [file for directory in self.watch for file in directory.rglob(".*.part")]
        self.check_nothing_is_half()

    def check_it_finishes(self) -> None:
        again = self.run()
        assert again["returncode"] == 0, again["stderr"]
        assert self.files() == self.expected  # byte for byte, and no leftover beside them


if __name__ == "__main__":
    serve()
