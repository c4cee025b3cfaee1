"""What finding core sets costs: full identification on the target, the target's own gradients (`snr`), and transfer.

The three exams of `examples/small_to_large`, 64 questions each, glassllm and SmolLM2-135M; each command in a process of
its own, one thread. Below that the same by count, for LLaMA-3-8B and Qwen3-32B: operations of all tokens and all
parameters (2 a parameter and token forward, twice that backward), 16 bytes a parameter in training (weights, gradients
and AdamW's state in mixed precision), 4 bytes a parameter of a stored delta.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

from examples.quickstart.prepare import prepare
from tests.benchmarks.table import is_small, show

EXAMS = Path("examples/small_to_large/data")
SOURCE, TARGET, LAYERS, WIDTH = 8.03e9, 32.8e9, 64, 5120  # LLaMA-3-8B; Qwen3-32B
TASKS, RECORDS, TOKENS, FISHER, GRADIENTS, PROBE = 3, 10_000, 512, 300, 32, 480 * 64


class Cost(NamedTuple):
    cpu: float  # s
    peak: int  # bytes
    disk: int  # bytes


def run(out: Path, *arguments: object) -> Cost:
    """One command: what it and its children took, and what it left."""
    words = [sys.executable, "-m", "trace_transfer", *map(str, arguments), "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        told = started.stderr.read()
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        sys.exit(f"{' '.join(words)}: {told}")
    disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Cost(used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss, disk)


def together(*costs: Cost) -> Cost:
    return Cost(sum(one.cpu for one in costs), max(one.peak for one in costs), sum(one.disk for one in costs))


def measured(place: Path, small: bool) -> dict[str, Cost]:
    fields = {"prompt": "question", "completion": "answer"}
    tasks = [
        {"name": name, "data": str((EXAMS / f"{name}.train.jsonl").absolute()), "fields": fields, "template": "plain"}
        | {"max_examples": 8 if small else 64}
        for name in ("medicine", "knowledge", "maths")
    ]
    (place / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    prepare(place)
    source, target = place / "glassllm", place / "smollm2"
    common = ("--tasks", place / "tasks.yaml", "--max-length", 128, "--too-long", "leave-out", "--batch-size", 8)
    cores = [word for task in tasks for word in ("--core", place / f"source/{task['name']}.core.json")]
    full = run(place / "full", "identify", target, *common)
    snr = run(place / "snr", "identify", target, *common, "--method", "snr")
    rows = run(place / "rows", "identify", target, *common, "--method", "snr", "--unit", "rows")
    found = run(place / "source", "identify", source, *common)
    cka = run(place / "cka", "map", "--src", source, "--dst", target, *cores, "--cache", place / "a")
    depth = run(
        place / "depth", "map", "--src", source, "--dst", target, *cores, "--match", "depth", "--cache", place / "b"
    )
    return {
        "full identification on the target (LF)": full,
        "snr on the target, tensors": snr, "snr on the target, rows": rows,
        "found on the source, carried by CKA": together(found, cka), "of that: map": cka,
        "found on the source, carried by depth": together(found, depth),
    }  # fmt: skip


def counted() -> list[tuple[str, str, str, str]]:
    """Operations, memory and disk at 8 B → 32 B, for three tasks."""
    whole, gradients = TASKS * RECORDS * TOKENS, TASKS * GRADIENTS * TOKENS

    def lf(size: float) -> float:
        return 6 * size * (whole + TASKS * FISHER * TOKENS)

    probed = 2 * (SOURCE + TARGET) * PROBE
    entered = LAYERS * gradients * WIDTH * 4
    layer = TARGET / LAYERS * 4 * (1 + 2 * TASKS)

    def row(name: str, operations: float, memory: float, disk: float) -> tuple[str, str, str, str]:
        return name, f"{operations:.1e}", f"{memory / 1e9:,.0f} GB", f"{disk / 1e9:,.0f} GB"

    return [
        row("full identification on the target (LF)", lf(TARGET), 16 * TARGET, 4 * TARGET * TASKS),
        row("snr on the target", 8 * TARGET * gradients, entered + layer, 0),
        row("found on the source, carried by CKA", lf(SOURCE) + probed, 16 * SOURCE, 4 * SOURCE * TASKS),
        row("of that: map", probed, 2 * TARGET / LAYERS * 4, 0),
        row("found on the source, carried by depth", lf(SOURCE), 16 * SOURCE, 4 * SOURCE * TASKS),
    ]


def main() -> None:
    small = is_small(__doc__)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), small)
    first = next(iter(found.values()))
    show(
        "Core sets for three tasks, glassllm → SmolLM2-135M",
        [
            (
                name, f"{one.cpu:,.0f}", f"{one.cpu / first.cpu:.2f}",
                f"{one.peak / 1e9:.2f} GB", f"{one.disk / 1e6:,.1f} MB",
            )
            for name, one in found.items()
        ],
        ("", "CPU s", "of full", "largest process", "on disk"),
    )  # fmt: skip
    show(
        f"By count, LLaMA-3-8B → Qwen3-32B, {TASKS} tasks of {RECORDS:,} records of {TOKENS} tokens",
        counted(), ("", "operations", "memory", "on disk"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
