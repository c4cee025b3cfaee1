"""How long the command line takes to answer: `--help`, and what is carried between two models of 8 and 32 billion
parameters, of which only the configs are read. Beside each, what nothing can do without: click, the models' classes.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.table import is_small, median_seconds, show

CONFIGS = Path(__file__).parent.parent / "configs"
COMMAND = [sys.executable, "-m", "trace_transfer"]
CLICK = [sys.executable, "-c", "import click"]
IMPORTS = [sys.executable, "-c", "import torch, transformers"]
CLASSES = [sys.executable, "-c", "import torch; from transformers import LlamaForCausalLM, Qwen3ForCausalLM"]
EXPLAIN = ["rules", "explain", "--src", str(CONFIGS / "llama-3-8b"), "--dst", str(CONFIGS / "qwen3-32b")]


def main() -> None:
    few, many = (1, 3) if is_small(__doc__) else (3, 9)
    races = [
        ("trace-transfer --help", [*COMMAND, "--help"], many, "goal: below 0.1 s"),
        ("limit: importing click", CLICK, many, ""),
        ("rules explain, 8B to 32B", [*COMMAND, *EXPLAIN], few, ""),
        ("limit: the classes of both models", CLASSES, few, ""),
        ("importing torch and transformers", IMPORTS, few, ""),
    ]
    rows = []
    for name, command, times, goal in races:
        run = partial(subprocess.run, command, check=True, capture_output=True)
        rows.append((name, f"{median_seconds(run, times):.2f}", str(times), goal))
    show("Time until the command line has answered", rows, ("", "median seconds", "runs", ""))


if __name__ == "__main__":
    main()
