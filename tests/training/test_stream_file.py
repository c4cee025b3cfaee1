"""What `stream.yaml` may say beyond `tasks.yaml`, and what each mistake is answered with."""

import pytest

from tests.task_files import write_tasks
from trace_transfer.data.tasks_file import TaskError, load_tasks
from trace_transfer.training.settings import core_file, load_stream


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


def refused(file, load=load_stream) -> str:
    with pytest.raises(TaskError, match=r"stream\.yaml") as caught:
        load(file)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_tasks_with_and_without_a_core_file(write, tmp_path):
    file = write("""
tasks:
  - {name: math, data: maths.jsonl, core: cores/math.core.json, max_examples: 7}
  - {name: law, data: owner/law}
""")
    math, law = load_stream(file)
    assert (math.name, math.max_examples, math.core) == ("math", 7, "cores/math.core.json")
    assert core_file(math, tmp_path) == tmp_path / "cores" / "math.core.json"
    assert (law.core, core_file(law, tmp_path)) == (None, None)


def test_core_files_elsewhere(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    absolute = tmp_path / "cores" / "math.core.json"
    file = write(f"""
tasks:
  - {{name: a, data: o/a, core: {absolute}}}
  - {{name: b, data: o/b, core: ~/cores/math.core.json}}
""")
    assert [core_file(task, file.parent) for task in load_stream(file)] == [absolute, absolute]


def test_any_tasks_file_is_a_stream(tmp_path):
    file = write_tasks(tmp_path)
    plain = [task.model_dump() for task in load_tasks(file)]
    assert [task.model_dump(exclude={"core"}) for task in load_stream(file)] == plain
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
    keys = "name, data, fields, subset, split, revision, max_examples, template, system, "
    keys += "ignore, mismatch, chat_template_kwargs, core"
    assert refused(write(text)).replace(str(write(text).parent), "HERE").split("\n  - ") == [
        "stream.yaml: 7 problems:",
        f"task 'law': unknown key 'cores', allowed: {keys}; did you mean 'core'?",
        "task 'code': core: found 7, expected a text, or None",
        "task 'math': 2 tasks have this name",
        "task 'math': core: gone.core.json: no such file",
        "task 'math': data: gone.jsonl: no such file",
        "task 'math': core: cores: is a directory, expected a file",
        "task 'food': core: HERE: is a directory, expected a file",
    ]


def test_a_stream_is_no_tasks_file(write):
    file = write("tasks: [{name: math, data: maths.jsonl, core: cores/math.core.json}]")
    assert "task 'math': unknown key 'core', allowed: name, data" in refused(file, load_tasks)
