"""A core set found on one family, carried to another by `map`, trains the target."""

from tests.commands import done
from tests.task_files import write_tasks
from tests.tuned_models import weights
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.formats import read_any


def test_llama_to_qwen3(tiny, tmp_path):
    source, target = tiny("llama"), tiny("qwen3")
    tasks = write_tasks(tmp_path / "tasks", {"math": 8, "code": 8})
    done("identify", source, "--tasks", tasks, "--batch-size", 4, "--learning-rate", 1e-3, "--ratio", 0.1, "--out",
        tmp_path / "found")  # fmt: skip
    probe = tmp_path / "probe.txt"
    probe.write_text("\n\n".join(f"The answer to question {i} is {i * i}, as everybody knows." for i in range(40)))
    cores = [part for task in ("math", "code") for part in ("--core", tmp_path / "found" / f"{task}.core.json")]
    done("map", "--src", source, "--dst", target, *cores, "--probe", probe, "--out", tmp_path / "carried", "--no-cache")
    stream = tasks.with_name("stream.yaml")
    lines = [f"- {{name: {task}, data: {task}.jsonl, core: ../carried/{task}.core.json}}" for task in ("math", "code")]
    stream.write_text("tasks:\n" + "\n".join(lines) + "\n")
    shown = done("train", target, "--stream", stream, "--batch-size", 4, "--epochs", 1, "--learning-rate", 1e-3,
                "--zero", 0, "--out", tmp_path / "tuned")  # fmt: skip
    assert "bit-identical" in shown.stdout
    cores = [read_any(tmp_path / "carried" / f"{task}.core.json", CoreFile) for task in ("math", "code")]
    expected = {parameter.name for core in cores for parameter in core.core}
    before, after = weights(target), weights(tmp_path / "tuned" / "model")
    assert {name for name in before if bool((before[name] != after[name]).any())} == expected
    assert cores[0].transferred_from is not None and cores[0].model.family == "qwen3"
    shown = done("verify", target, tmp_path / "tuned" / "model", *[
        part for task in ("math", "code") for part in ("--core", tmp_path / "carried" / f"{task}.core.json")
    ])  # fmt: skip
    assert "no frozen tensor moved" in shown.stdout
