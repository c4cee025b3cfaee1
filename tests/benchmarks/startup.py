"""How long the command line takes to answer: `--help`, and what is carried between two models of 8 and 32 billion
parameters, of which only the configs are read: the first time with torch and transformers, then without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.benchmarks.table import is_small, median_seconds, show

CONFIGS = Path(__file__).parent.parent / "configs"
COMMAND = [sys.executable, "-m", "trace_transfer"]
IMPORTS = [sys.executable, "-c", "import torch, transformers"]
CLASSES = [sys.executable, "-c", "import torch; from transformers import LlamaForCausalLM, Qwen3ForCausalLM"]
EXPLAIN = ["rules", "explain", "--src", str(CONFIGS / "llama-3-8b"), "--dst", str(CONFIGS / "qwen3-32b")]


def main() -> None:
    small = is_small(__doc__)
    few, many = (1, 3) if small else (3, 9)
    with tempfile.TemporaryDirectory() as cache:
        again = {**os.environ, "TRACE_TRANSFER_CACHE": cache}
        first = {**again, "TRACE_TRANSFER_CACHE": os.devnull}  # nothing can be kept there
        races = [
            ("trace-transfer --help", [*COMMAND, "--help"], many, again, "goal: below 0.1 s"),
            ("rules explain, 8B to 32B, the first time", [*COMMAND, *EXPLAIN], few, first, ""),
            ("limit: the classes of both models", CLASSES, few, again, ""),
            ("rules explain, again", [*COMMAND, *EXPLAIN], many, again, ""),
            ("limit: importing torch and transformers", IMPORTS, few, again, ""),
            ("limit: python -c pass", [sys.executable, "-c", "pass"], many, again, ""),
        ]
        rows = []
        for name, command, times, env, goal in races:
            run = partial(subprocess.run, command, check=True, capture_output=True, env=env)
            rows.append((name, f"{median_seconds(run, times):.2f}", str(times), goal))
    show("Time until the command line has answered", rows, ("", "median seconds", "runs", ""))


if __name__ == "__main__":
    main()
