"""Studies on a real SLURM, without accounting (`sacct`): whatever happens to jobs, nodes and the command, the results
are those of one machine to the bit, and nothing is done twice."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import RESOURCES, SLURM, OnCluster, wait_for
from tests.study.run_directories import run_content, write_file, write_run
from tests.study.test_interruption import differing, results

MIN_JOB_AGE = 3600  # that `names` sees all jobs
NUM_STEPS = 11
LONG = {**run_content()["train"], "epochs": 1000}  # two minutes


def undisturbed(one):
    """What a run here leaves, at the same place: files say where they were made."""
    kept = one.out.with_name("kept")
    if one.out.is_dir():
        one.out.rename(kept)
    one.run()
    found = results(one.out)
    shutil.rmtree(one.out)
    if kept.is_dir():
        kept.rename(one.out)
    return found


@pytest.fixture(scope="module")
def long_study(cluster, tiny, tmp_path_factory):
    """`long_study(**resources)`: three steps of which the first, a training, takes minutes; and what it leaves here."""
    directory = tmp_path_factory.mktemp("long")
    values = {"methods": ["sequential"], "source": None, "train": LONG, "resources": RESOURCES}
    one = OnCluster(cluster, write_run(directory, tiny, **values), directory / "out")
    expected = undisturbed(one)

    def anew(**resources):
        shutil.rmtree(one.out, ignore_errors=True)
        one.log.unlink(missing_ok=True)
        write_file(directory, **{**values, "resources": {**RESOURCES, **resources}})
        return one, expected

    return anew


def training(one):
    """The command that looks after it, once it trains on its first or second task."""
    process = one.start(*SLURM)
    wait_for(lambda: "training on" in one.log_of("train"), "a training")
    return process


def test_begun_anywhere_and_finished_anywhere(study):
    """Here, then on the cluster, then here: eleven steps, each done once."""
    one = study()
    process = one.start()
    wait_for(lambda: list(one.out.glob("steps/*/step.json")), "a step that is done here")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    done = {file.parent.name: file.read_text() for file in one.out.glob("steps/*/step.json")}
    process = one.start(*SLURM)
    wait_for(lambda: len(list(one.out.glob("steps/*/step.json"))) >= len(done) + 3, "steps that jobs have done")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "stay there; --status shows them" in one.said
    assert "running" in one.run("--status")
    assert "jobs cancelled: " in one.run("--cancel")
    wait_for(lambda: {one.state(job) for job in one.jobs().values()} <= {"COMPLETED", "CANCELLED"}, "cancelled jobs")
    assert "steps to run" in one.run()
    for name, text in done.items():
        assert (one.out / "steps" / name / "step.json").read_text() == text or "removed" in text
    assert "0 steps to run, 11 up to date" in one.run("--dry-run")
    assert differing(results(one.out), undisturbed(one)) == set()


def test_the_command_is_killed_at_five_drawn_moments(study):
    """While it submits, and while jobs run: no step is submitted twice, none is lost."""
    one = study()
    drawn = random.Random(11)
    moments = [*sorted(drawn.sample(range(1, NUM_STEPS), 4)), NUM_STEPS]
    for count in moments:
        process = one.start(*SLURM)
        wait_for(lambda count=count: len(one.jobs()) >= count, f"{count} jobs")
        time.sleep(drawn.uniform(0, 0.2) if count < NUM_STEPS else drawn.uniform(3, 20))
        process.kill()
        process.wait()
    one.run(*SLURM)
    names = one.names()
    assert len(names) == len(set(names)) == NUM_STEPS
    assert sorted(names) == sorted(f"{Path(step).name}.{names[0][-6:]}" for step in one.jobs())
    assert differing(results(one.out), undisturbed(one)) == set()


def test_a_step_that_is_cancelled(long_study):
    """It is told, what needs it is cancelled, and the same command goes on from what it saved."""
    one, expected = long_study()
    process = training(one)
    one.cluster.ask("scancel", one.job("train"))
    assert process.wait(120) == 1
    told = f"train (sequential, seed 0): its job {one.job('train')} ended as CANCELLED; see "
    assert told in one.said and "log.txt" in one.said
    assert "evaluate" not in one.said.partition("\nerror: ")[2]
    assert one.state(one.job("evaluate")) == "CANCELLED"
    assert "stopped: stopped by SIGTERM after step" in one.log_of("train")
    one.run(*SLURM)
    assert differing(results(one.out), expected) == set()


def test_time_runs_out(long_study):
    """It saves before, is requeued, and ends with the same bits; what waits for it goes on waiting."""
    one, expected = long_study(train={"hours": 2 / 60})
    assert "3 jobs submitted" in one.run(*SLURM)
    log = one.log_of("train")
    assert log.count(" begins, process ") >= 2 and "stopped by SIGTERM after step" in log
    assert one.state(one.job("train")) == "COMPLETED"
    assert differing(results(one.out), expected) == set()


def preempt(one):
    """A job of a more important partition takes the node: the step saves, and goes on afterwards."""
    one.cluster.ask("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 5")


def crash(one):
    """All that the node ran is lost, and begun again from the last checkpoint."""
    one.cluster.crash_node("node1")
    one.cluster.start_node("node1")


def restart(one):
    """Jobs outlive SLURM's daemons, and the command the time without an answer."""
    one.cluster.stop_daemon("slurmd-node1")
    one.cluster.stop_daemon("slurmctld")
    wait_for(lambda: "squeue: " in one.said, "no answer")
    one.cluster.start_controller()
    one.cluster.start_node("node1")


@pytest.mark.parametrize("disturb, begins", [(preempt, 2), (crash, 2), (restart, 1)])
def test_disturbed(long_study, disturb, begins):
    one, expected = long_study()
    process = training(one)
    disturb(one)
    assert process.wait(900) == 0, one.said
    log = one.log_of("train")
    assert log.count(" begins, process ") == begins
    assert ("stopped by SIGTERM after step" in log) == (disturb is preempt)
    assert differing(results(one.out), expected) == set()


def test_a_step_that_fails(study):
    one = study(methods=["sequential", "transfer-lf"], train={**run_content()["train"], "learning_rate": 1e30})
    said = one.run(*SLURM, code=2).partition("\nerror: ")[2]
    for method in ("sequential", "transfer-lf"):
        assert re.search(
            rf"train \({method}, seed 0\): task '\w+', step 1 of 2: the loss of these examples is NaN", said
        )
    assert said.count("log.txt)") == 2 and "evaluate" not in said
    assert {one.state(job) for step, job in one.jobs().items() if "evaluate" in step} == {"CANCELLED"}
    assert list(one.out.glob("steps/map-*/step.json"))  # what does not need it is finished
    said = one.run("--status")
    assert "the loss of these examples is NaN" in said and "11 steps: 7 finished, 2 failed, 2 cancelled" in said
    assert one.run(*SLURM, code=2).count("submitted again; job ") == 2


def test_two_studies_at_once(study):
    """Of the same steps."""
    one, other = (study(name, methods=["sequential"], source=None) for name in ("one", "other"))
    processes = [each.start(*SLURM) for each in (one, other)]
    assert [process.wait(900) for process in processes] == [0, 0]
    assert not {*one.jobs().values()} & {*other.jobs().values()}
    assert [len(each.names()) for each in (one, other)] == [3, 3]
    assert {*one.jobs()} == {*other.jobs()}


def test_gpus_that_are_not_there(study):
    """In the scheduler's own words, and nothing is left in the queue. The node has two by SLURM's word, of which CUDA
    sees none: a training is not done on its cores."""
    one = study(resources={**RESOURCES, "train": {"gpus": 3}})
    said = one.run(*SLURM, code=2)
    assert "train (sequential, seed 0): sbatch refuses resources.train: " in said
    assert "Requested node configuration is not available" in said
    assert set(map(one.state, one.jobs().values())) <= {"CANCELLED", ""}
    resources = {**RESOURCES, "train": {"gpus": 2}}
    said = study("two", methods=["sequential"], source=None, resources=resources).run(*SLURM, code=1)
    assert "train (sequential, seed 0): it has 2 GPUs on " in said and "CUDA sees 0 of them" in said


def test_a_disk_that_nodes_do_not_share(study, tmp_path):
    one = study(methods=["sequential"], source=None)
    one.cluster.stop_daemon("slurmd-node1")
    one.cluster.start_node("node1", apart=tmp_path)
    try:
        said = one.run(*SLURM, code=1)
    finally:
        one.cluster.stop_daemon("slurmd-node1")
        one.cluster.start_node("node1")
    assert "wrote nothing here; is " in said and "on a file system that the nodes share?" in said


def test_several_nodes(study):
    """A training on two nodes, one process each, gives what one process gives, to rounding."""
    resources = {**RESOURCES, "train": {"nodes": 2, "partition": "both"}}
    train = {**run_content()["train"], "micro_batch_size": 2}
    one = study(methods=["sequential"], source=None, resources=resources, train=train)
    one.run(*SLURM)
    alone = study("alone", methods=["sequential"], source=None, train=train)
    alone.run()
    values = []
    for each in (one, alone):
        (file,) = each.out.glob("steps/evaluate-*/scores.json")
        values.append([score["value"] for stage in json.loads(file.read_text())["stages"] for score in stage["scores"]])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_hundred_short_steps(study, capsys):
    """Prints what a step costs beside its work, and what the scheduler takes for as many empty jobs."""
    one = study(methods=["sequential"], source=None, seeds=list(range(50)))
    began = time.monotonic()
    for _ in range(101):
        one.cluster.ask("sbatch", "--job-name=empty", "--output=/dev/null", "--wrap=true")
    wait_for(lambda: "empty" not in one.cluster.ask("squeue", "-h", "-o", "%j"), "empty jobs", 600)
    empty, began = time.monotonic() - began, time.monotonic()
    one.run(*SLURM)
    whole = time.monotonic() - began
    costs = [json.loads(file.read_text())["cost"]["seconds"] for file in one.out.glob("steps/*/step.json")]
    assert len(costs) == 101
    with capsys.disabled():
        print(f"\n101 empty jobs: {empty:.0f} s; 101 steps: {whole:.0f} s, of which {sum(costs):.0f} s are their work")
