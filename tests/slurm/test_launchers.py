"""The job scripts of the documentation on a real SLURM, with two processes: on one node, and on two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.documents import ROOT, blocks
from tests.stream_files import write_stream
from tests.task_files import write_tasks
from tests.tuned_models import weights
from trace_transfer.cli import main
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.formats import read_any

SCRIPTS = {block.title: block.text for block in blocks(ROOT / "docs/howto/cluster.md") if block.language == "sbatch"}
SMALL = "--batch-size 4 --micro-batch-size 1 --epochs 1 --learning-rate 1e-3"
ON = {"one node": ("main", 1, 2), "two nodes": ("both", 2, 1)}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A model, a stream and tasks, and what one process makes of them."""
    directory = tmp_path_factory.mktemp("scripts")
    model = tiny("qwen2", num_hidden_layers=2)
    write_stream(directory, model, 2)
    write_tasks(directory)
    (directory / "model").symlink_to(model)
    for command in (f"train {model} --stream {directory}/stream.yaml --zero 0",
                    f"identify {model} --tasks {directory}/tasks.yaml"):  # fmt: skip
        done = CliRunner().invoke(main, [*command.split(), *SMALL.split(), "--out", f"{directory}/alone"])
        assert done.exit_code == 0, done.output
    return directory


def submitted(cluster, place, title, on, out):
    """Submit a script of the page, in small; its output once it has ended."""
    partition, nodes, tasks = ON[on]
    text = SCRIPTS[title].replace("Qwen/Qwen2.5-14B", "model").replace("meta-llama/Meta-Llama-3-8B", "model")
    text = text.replace("runs/", f"{out}/").replace("--zero 3", f"--zero 3 {SMALL}")
    text = text.replace("per-node 8", f"per-node {tasks}").replace("* 8", f"* {tasks}")
    (place / title).write_text(text)
    per_node = tasks if "srun trace-transfer" in text else 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = [f"--partition={partition}", f"--nodes={nodes}", f"--ntasks-per-node={per_node}", "--gpus-per-node=0",
               "--cpus-per-task=1", f"--output={place}/{out}.txt", "--wait", "--overcommit"]  # fmt: skip
    done = subprocess.run(
        ["sbatch", *options, title], cwd=place, env={**cluster.environment, "PATH": path}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    said = (place / f"{out}.txt").read_text()
    assert done.returncode == 0, done.stderr + said
    return said


@pytest.mark.parametrize(
    "title, on",
    [
        ("srun.sbatch", "one node"), ("srun.sbatch", "two nodes"), ("torchrun.sbatch", "two nodes"),
        ("accelerate.sbatch", "two nodes"),
    ],
)  # fmt: skip
def test_train(cluster, place, title, on):
    out = f"{title}-{on}".replace(" ", "-")
    said = submitted(cluster, place, title, on, out)
    assert said.count("bit-identical") == 1
    alone, found = (weights(place / each / "model") for each in ("alone", f"{out}/qwen-14b"))
    for name, value in found.items():
        assert float((value - alone[name]).abs().max()) < 2e-5, name  # of 1e-3 a step


def test_identify(cluster, place):
    submitted(cluster, place, "identify.sbatch", "two nodes", "found")
    cores = [read_any(place / each / "math.core.json", CoreFile) for each in ("alone", "found/llama")]
    assert {p.name for p in cores[0].core} == {p.name for p in cores[1].core}
