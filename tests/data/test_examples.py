"""Every example runs, in small."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.commands import done
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.formats import read_any
from trace_transfer.identification.records import StabilityFile
from trace_transfer.reporting.records import RunFile

EXAMPLES = Path(__file__).parents[2] / "examples"


def in_small(example, directory, records):
    """A copy of an example with the first records of its data."""
    here = Path(shutil.copytree(EXAMPLES / example, directory / example, ignore=shutil.ignore_patterns("models")))
    for file in (here / "data").iterdir():
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:records]))
    return here


@pytest.mark.parametrize("planned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_quickstart(tiny, tmp_path, planned):
    """One of its methods, with the target's place taken by a tiny model, and few records and texts."""
    from examples.quickstart.glassllm_model import write_model
    from examples.quickstart.prepare import package_directory

    if find_spec("glassllm") is None:
        pytest.skip("the package with the demo's model is not installed (`make test` installs it)")
    here = in_small("quickstart", tmp_path, 12)
    (here / "models" / "glassllm").mkdir(parents=True)
    write_model(package_directory("glassllm") / "weights", here / "models" / "glassllm")
    text = (here / "run.yaml").read_text()
    texts = [f"The {i}th cat sat on mat number {i * i} and looked at the moon." for i in range(70)]
    (here / "texts.txt").write_text("\n".join(texts))
    assert "models/smollm2" in text
    text = text.replace("models/smollm2", str(tiny("llama", max_position_embeddings=1024)))
    assert "map: {" in text and "[sequential, transfer-lf, random]" in text
    text = text.replace("map: {", "map: {probe: texts.txt, splits: 2, ")
    (here / "run.yaml").write_text(text.replace("[sequential, transfer-lf, random]", "[transfer-lf]"))
    said = done("run", here / "run.yaml", "--out", tmp_path / "out", *(["--dry-run"] if planned else [])).stdout
    if planned:
        assert " steps to run, 0 up to date" in said
        return
    record: RunFile = read_any(tmp_path / "out" / "run.json", RunFile)
    (carried,) = record.cells
    assert carried.order == ("sums", "spelling", "series")
    core: CoreFile = read_any(tmp_path / "out" / carried.steps["map"] / "sums.core.json", CoreFile)
    assert core.transferred_from is not None and core.transferred_from.model.family == "qwen2"
    assert "Transfer-LF" in (tmp_path / "out" / "report.html").read_text()


def test_the_quickstart_s_data_are_those_of_its_maker(tmp_path):
    from examples.quickstart.tasks import TASKS, write_data

    write_data(tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted(f"{task}.{part}.jsonl" for task in TASKS for part in ("train", "test"))
    for name in names:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / "quickstart" / "data" / name).read_bytes()


def test_identify(tiny, tmp_path, monkeypatch):
    """The tasks of the example, all three shapes of them, with a tiny model."""
    from examples.identify import run

    monkeypatch.setattr(run, "HERE", in_small("identify", tmp_path, 16))
    model = tiny("llama", max_position_embeddings=4096, num_hidden_layers=2)  # its tokens are little more than bytes
    command = ["--model", str(model), "--out", str(tmp_path / "run"), "--max-length", "2048"]
    result = CliRunner().invoke(run.main, [*command, "--fisher-examples", "4"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.rpartition("The heatmap: ")[2].strip()).is_file()
    report: StabilityFile = read_any(tmp_path / "run" / "stability.json", StabilityFile)
    assert [one.task for one in report.methods[0].tasks] == ["math", "code", "medicine"]
