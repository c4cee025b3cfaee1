"""What every benchmark has: its option, a process for each way that is raced, memory and time, and its table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table


def is_small(description: str) -> bool:
    """Parse the one option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a fraction of the size, to see that it works")
    return parser.parse_args().small


def machine() -> str:
    """Processor, cores, threads and torch version: without them a time says nothing."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    processor = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{load}"


def show(title: str, rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=120)
    console.print(f"\n{machine()}")
    console.print(table)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], times: int) -> float:
    return median(seconds(work) for _ in range(times))


def race(main: Callable[[], None], measured: Callable[..., dict[str, float]]) -> None:
    """What a benchmark's module does when it is run: the race, or one way of it in a process of its own."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measured(*sys.argv[2:])))
    else:
        main()


def in_child(name: str, *arguments: object) -> dict[str, float]:
    """Measure one way of a benchmark in a process of its own, so that none inherits another's memory."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{name}", "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


@dataclass
class Memory:
    """Peaks in bytes above the start: `resident` with pages of mapped files, `own` without them."""

    resident: int = 0
    own: int = 0


class watched:  # noqa: N801 (used like a function)
    """Sample this process's memory while a block runs."""

    def __enter__(self) -> Memory:
        self.start, self.peak, self.running = self.now(), Memory(), True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self.peak

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        # Not ru_maxrss: a child inherits that from the process that started it.
        self.peak.resident = self.now()["VmHWM"] - self.start["VmRSS"]

    def _sample(self) -> None:
        while self.running:
            now = self.now()
            self.peak.own = max(self.peak.own, now["RssAnon"] - self.start["RssAnon"])
            time.sleep(0.002)

    @staticmethod
    def now() -> dict[str, int]:
        lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
        return {name: int(value.split()[0]) * 1024 for name, _, value in lines if name in ("VmRSS", "VmHWM", "RssAnon")}
