"""A `trace-transfer` command that is run again and again, interrupted or not, in forks of one warm process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from trace_transfer.cli import INTERRUPTED


class Server:
    """The process with everything imported; see `interrupted_runs`."""

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
        self,
        server: Server,
        arguments: list[object],
        out: Path,
        watch: Iterable[Path] = (),
        growing: Iterable[str] = (),
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
