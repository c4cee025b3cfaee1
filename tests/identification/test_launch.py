"""`identify` under a launcher: several processes train together, the first one alone goes on and writes."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.task_files import write_tasks
from trace_transfer.cli import main
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.formats import read_any

LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
                   "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_find_what_one_finds(tiny, tmp_path, launcher):
    tasks = write_tasks(tmp_path / "tasks", {"math": 9, "code": 6})
    command = ["identify", str(tiny("qwen2")), "--tasks", str(tasks), "--batch-size", "4", "--learning-rate", "1e-3"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--out", str(tmp_path / "one")])
    done = subprocess.run(
        [*LAUNCHERS[launcher], "-m", "trace_transfer", *command, "--zero", "3", "--out", str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("core sets (lf)") == 1
    assert done.stderr.count("training on math") == 1
    for task in ("math", "code"):
        deltas = [load_file(tmp_path / out / f"warm_start/{task}/delta-00001.safetensors") for out in ("one", "two")]
        assert deltas[0].keys() == deltas[1].keys()
        for name, delta in deltas[0].items():
            assert float(delta.abs().max()) > 0
            assert float((delta - deltas[1][name]).abs().max()) < 2e-5, name  # of 1e-3 a step
        cores = [read_any(tmp_path / out / f"{task}.core.json", CoreFile) for out in ("one", "two")]
        assert {p.name for p in cores[0].core} == {p.name for p in cores[1].core}
