"""`trace-transfer report`: what it prints and how it fails."""

import shutil
from functools import partial
from pathlib import Path

from tests import commands
from tests.run_files import write_run

run = partial(commands.done, "report")


def test_prints_the_names_of_what_it_wrote_and_what_is_not_complete(tmp_path: Path) -> None:
    made = write_run(tmp_path / "study", methods=("sequential", "random"), seeds=(0, 1, 2))
    result = run(made)
    assert (result.stdout, result.stderr) == (f"{made / 'report.html'}\n{made / 'report.md'}\n", "")
    run(made, "--out", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "report.html").read_bytes() == (made / "report.html").read_bytes()
    shutil.rmtree(next(made.glob("steps/evaluate-*")))
    assert run(made).stderr == "! the run is not complete: steps not finished: 1\n"
