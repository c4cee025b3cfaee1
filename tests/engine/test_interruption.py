"""A training that is killed anywhere ends, when it is run again, with the bits of one that never was."""

import json
import subprocess
import sys
from pathlib import Path

from tests.engine.interrupted import CASES, NUM_INTERRUPTS, NUM_KILLS

ROOT = Path(__file__).parents[2]


def test_killed_anywhere_and_run_again(tiny, tmp_path):
    command = [sys.executable, "-m", "tests.engine.interrupted", str(tiny("llama")), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert len(found) == len(CASES) * (NUM_KILLS + NUM_INTERRUPTS)
    for one in found:
        assert one["first"] == (-9 if "SIGKILL" in one["at"] else 130), one
        assert (one["second"], one["same"], one["names"]) == (0, [True, True], ["loss.csv"]), one
        if "SIGINT" in one["at"]:
            assert one["left"] == [], one
