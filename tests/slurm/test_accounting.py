"""With accounting: what SLURM's queue has forgotten, `sacct` still knows."""

from tests.slurm.conftest import SLURM, wait_for
from tests.study.run_directories import run_content

ACCOUNTING, MIN_JOB_AGE = True, 5
LONG = {**run_content()["train"], "epochs": 600}


def test_how_a_job_ended_that_the_queue_has_forgotten(study):
    one = study(methods=["sequential"], source=None, train=LONG)
    process = one.start(*SLURM)
    wait_for(lambda: "training on" in one.log_of("train"), "a training")
    process.kill()
    process.wait()
    job = one.job("train")
    one.cluster.ask("scancel", job)
    wait_for(lambda: job not in one.cluster.ask("squeue", "-h", "--states=all", "-o", "%i").split(), "to be forgotten")
    assert f"train (sequential, seed 0): job {job}, cancelled" in one.run("--status")
    said = one.run(*SLURM)
    assert " jobs submitted (" in said and (one.out / "report.html").is_file()
