"""The settings of a stream: the paper's defaults, and what cannot be used."""

import pytest

from tests.task_files import write_tasks
from trace_transfer.data.tasks_file import TaskError, load_tasks
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.training.methods import LAYOUTS
from trace_transfer.training.settings import METHODS, StreamSettings, load_stream


def test_defaults_are_those_of_the_paper():
    """A.4: 3 epochs, batch 256, length 1,024, ZeRO 3, LoRA 8 and 16."""
    settings = StreamSettings()
    assert (settings.train.epochs, settings.train.batch_size, settings.train.zero) == (3, 256, 3)
    assert (settings.max_length, settings.lora_rank, settings.lora_alpha, settings.method) == (1024, 8, 16, "trace")


def test_what_cannot_be_used_is_told_at_once():
    with pytest.raises(UserError, match=r"(?s)method: 'trase' is none of .*mean trace.*lora_alpha.*replay_share"):
        StreamSettings(method="trase", replay_share=2, lora_alpha=0)
    with pytest.raises(UserError, match="special: 'law' is for method dmt only"):
        StreamSettings(special="law")
    with pytest.raises(UserError, match="epoch: no such setting; did you mean epochs"):
        StreamSettings.of(epoch=2)
    with pytest.raises(UserError, match="offload: 'parameters' needs zero 3 or more, and zero is 1"):
        TrainSettings(zero=1, offload="parameters")


def test_what_is_recorded_decides_the_result():
    recorded = StreamSettings().recorded()
    assert recorded["epochs"] == 3 and recorded["method"] == "trace" and recorded["deepspeed"] == {}
    for name in ("checkpoint_minutes", "keep_checkpoints", "track", "train"):
        assert name not in recorded
    assert METHODS.keys() == LAYOUTS.keys()


@pytest.fixture
def write(tmp_path):
    """`write(text)`: a `stream.yaml` beside a data file `maths.jsonl` and a core file `cores/math.core.json`."""
    (tmp_path / "maths.jsonl").write_text("")
    (tmp_path / "cores").mkdir()
    (tmp_path / "cores" / "math.core.json").write_text("{}")

    def _write(text: str):
        file = tmp_path / "stream.yaml"
        file.write_text(text, "utf-8")
        return file

    return _write


def test_any_tasks_file_is_a_stream(tmp_path):
    file = write_tasks(tmp_path)
    plain = [task.model_dump() for task in load_tasks(file)]
    assert [task.model_dump(exclude={"core", "eval_data", "eval_split"}) for task in load_stream(file)] == plain
    assert {task.core for task in load_stream(file)} == {None}


def test_everything_wrong_is_said_at_once(write):
    text = """
tasks:
  - {name: math, data: maths.jsonl, core: gone.core.json}
  - {name: math, data: gone.jsonl, core: cores}
  - {name: law, data: maths.jsonl, cores: cores/math.core.json}
  - {name: code, data: maths.jsonl, core: 7}
  - {name: food, data: maths.jsonl, core: ""}
"""
    with pytest.raises(TaskError, match=r"stream\.yaml: 7 problems") as caught:
        load_stream(write(text))
    for told in ("did you mean 'core'?", "core: found 7", "gone.core.json: no such file", "cores: is a directory"):
        assert told in str(caught.value)
