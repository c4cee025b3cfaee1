"""A second command on the same output directory: refused with exit code 2, and nothing of the first one is touched."""

import json
import os

import pytest
from click.testing import CliRunner

from tests.core_files import write_core
from tests.patch_files import make_patch, mask_of, state_of
from tests.stream_files import write_stream
from tests.task_files import write_tasks
from trace_transfer.cli import main
from trace_transfer.files import held

IN_IT = ("identify", "select", "map", "train", "evaluate", "represent", "plot")
PUT_THERE_WHOLE = ("patch apply", "patch task-models")


@pytest.fixture(scope="module")
def arguments(tiny, tmp_path_factory):
    """Command → what it is called with, without `--out`."""
    place, model = tmp_path_factory.mktemp("given"), tiny("qwen2", num_hidden_layers=2)
    tasks, stream = write_tasks(place / "tasks"), write_stream(place / "stream", model, 2)
    core = write_core(model, place / "math.core.json")
    base = state_of(model)
    patch = make_patch(base, place / "math.patch.safetensors", mask_of(base), 0).path
    (place / "data.jsonl").write_text(json.dumps({"prompt": "One?", "completion": "Two."}) + "\n")
    (place / "suite.yaml").write_text("evaluations:\n- {name: one, kind: loss, data: data.jsonl}\n")
    (place / "probe.txt").write_text("\n\n".join(f"The answer to question {i} is {i * i}." for i in range(40)))
    return {
        "identify": [model, "--tasks", tasks],
        "select": [core, "--ratio", "0.5"],
        "map": ["--src", model, "--dst", model, "--probe", place / "probe.txt", "--no-cache"],
        "train": [model, "--stream", stream],
        "evaluate": [model, "--suite", place / "suite.yaml"],
        "represent": [model, "--tasks", tasks, "--perplexity", "6"],
        "plot": [core],
        "patch apply": [model, patch],
        "patch task-models": [model, patch],
    }


@pytest.mark.parametrize("command", [*IN_IT, *PUT_THERE_WHOLE])
def test_the_second_is_refused(command, arguments, tmp_path):
    out = tmp_path / "out"
    with held(out, replaced=command in PUT_THERE_WHOLE):
        before = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(main, [*command.split(), *map(str, arguments[command]), "--out", str(out)])
        assert done.exit_code == 2, done.output
        assert f"{out}: another process is at work here (process {os.getpid()} on " in done.stderr
        assert sorted(tmp_path.rglob("*")) == before
