"""Run every benchmark, one after another, each in a process of its own so that none inherits another's memory."""

import subprocess
import sys

NAMES = ("startup", "cka", "streaming", "deltas", "fisher", "identifying", "training")

if __name__ == "__main__":
    codes = [
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *sys.argv[1:]]).returncode for name in NAMES
    ]
    sys.exit(max(codes))
