"""How long the command line takes to answer: `--help`, which loads neither torch nor transformers, and a rule look-up
between two models of 8 and 32 billion parameters, of which only the configs are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.table import is_small, median_seconds, show

CONFIGS = Path(__file__).parent.parent / "configs"
COMMAND = [sys.executable, "-m", "trace_transfer"]
IMPORTS = [sys.executable, "-c", "import torch; from transformers import AutoModelForCausalLM"]
EXPLAIN = ["rules", "explain", "--src", str(CONFIGS / "llama-3-8b"), "--dst", str(CONFIGS / "qwen3-32b")]


def main() -> None:
    small = is_small(__doc__)
    races = [
        ("trace-transfer --help", [*COMMAND, "--help"], 3 if small else 9, "goal: below 0.3 s"),
        ("trace-transfer rules explain, 8B to 32B", [*COMMAND, *EXPLAIN], 1 if small else 3, "goal: below 5 s"),
        ("limit: importing torch and AutoModelForCausalLM", IMPORTS, 1 if small else 3, ""),
        ("limit: python -c pass", [sys.executable, "-c", "pass"], 3 if small else 9, ""),
    ]
    rows = []
    for name, command, times, goal in races:
        wall = median_seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True), times)
        rows.append((name, f"{wall:.2f}", str(times), goal))
    show("Time until the command line has answered", rows, ("", "median seconds", "runs", ""))


if __name__ == "__main__":
    main()
