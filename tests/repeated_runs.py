"""One `trace-transfer` command that is run again and again, interrupted or not, in forks of one warm process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class RepeatedRuns:
    """A command whose files must be the same however often it was interrupted; see `interrupted_runs`.

    Attributes:
        out: where its results go.
        watch: directories whose file operations are counted.
        undisturbed, expected: what the first run answered, and the files that it wrote.
    """

    def __init__(self, arguments: list[object], out: Path, watch: tuple[Path, ...] = ()) -> None:
        self.arguments, self.out, self.watch = [str(one) for one in arguments], out, (out, *watch)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.interrupted_runs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.undisturbed = self.run()
        assert self.undisturbed["returncode"] == 0, self.undisturbed["stderr"]
        self.expected = self.files()

    def run(self, **request: object) -> dict:
        request = {"arguments": self.arguments, "watch": [str(one) for one in self.watch], **request}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def clear(self) -> None:
        for directory in self.watch:
            shutil.rmtree(directory, ignore_errors=True)

    def files(self) -> dict[str, bytes]:
        """All files below the output directory, hidden ones too."""
        found = sorted(self.out.rglob("*")) if self.out.is_dir() else []
        return {str(file.relative_to(self.out)): file.read_bytes() for file in found if file.is_file()}

    def kill_at(self, events: Iterable[int], check: Callable[[RepeatedRuns], None]) -> None:
        """Kill it before each of some operations on files, one run after another, until one is done before that."""
        for event in events:
            killed = self.run(signal=signal.SIGKILL, at_event=event)
            check(self)
            if killed["returncode"] == 0:
                return
            assert killed["returncode"] == -signal.SIGKILL

    def check_it_finishes(self) -> None:
        again = self.run()
        assert again["returncode"] == 0, again["stderr"]
        assert self.files() == self.expected  # byte for byte, and no leftover beside them
