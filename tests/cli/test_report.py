"""`trace-transfer report`: what it prints and how it fails."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests import commands
from tests.run_files import write_run

run = partial(commands.run, "report")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_run(tmp_path / "study", methods=("sequential", "random"), seeds=(0, 1, 2))


def test_prints_the_names_of_what_it_wrote(made: Path, tmp_path: Path) -> None:
    result = run(made)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{made / 'report.html'}\n{made / 'report.md'}\n"
    assert result.stderr == ""
    result = run(made, "--out", tmp_path / "a" / "b")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "b" / "report.html").read_bytes() == (made / "report.html").read_bytes()


def test_a_run_that_is_not_complete_is_told_beside_the_results(made: Path) -> None:
    shutil.rmtree(next(made.glob("steps/evaluate-*")))
    result = run(made)
    assert result.exit_code == 0, result.output
    assert result.stderr == "! the run is not complete: 1 step is not finished\n"
