"""A directory in which the documentation's commands can be given: every file that they name, in small.

All models are the same tiny LLaMA under the names that the pages use, so a core file fits wherever a page uses it;
carrying to another family is tested elsewhere. Results in it are of commands like those of the pages.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM

import trace_transfer as tt
from tests.documents import ROOT, blocks
from tests.evaluation_files import GSM8K, write_records
from tests.task_files import write_tasks
from tests.tiny_gguf import write_gguf
from trace_transfer.records import to_json

MODELS = (
    "HuggingFaceTB/SmolLM2-135M", "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen2.5-14B", "Qwen/Qwen3-32B", "my/model",
    "MODEL", "SMOLLM2_DIRECTORY", "QWEN_DIRECTORY", "examples/quickstart/models/glassllm",
    "examples/quickstart/models/smollm2", "runs/llama3_to_qwen/models/Meta-Llama-3-8B",
    "runs/llama3_to_qwen/models/Qwen3-32B",
)  # fmt: skip
FOUND = ("runs/small", "runs/twice", "runs/one", "runs/two", "runs/identify", "runs/smollm2", "runs/tutorial/found")
CARRIED = ("runs/llama-to-qwen", "runs/llama-to-qwen3", "runs/carried", "runs/tutorial/carried")
TRAINED = ("runs/qwen-14b", "runs/laptop", "runs/tutorial/trained")
TASKS = ("math", "code", "law", "sums", "spelling", "series")
IN_SMALL = {"max_length": 64}


def make_workspace(directory: Path, tiny: Callable[..., Path]) -> Path:
    """Everything but what a page writes itself; see `write_settings`."""
    model = tiny("llama", max_position_embeddings=4096, num_hidden_layers=2)
    for name in MODELS:
        _copy(model, directory / name)
    (directory / "models").mkdir()
    write_gguf(AutoModelForCausalLM.from_pretrained(model), directory / "models" / "large.gguf")
    _copy(ROOT / "examples", directory / "examples", ignore=shutil.ignore_patterns("models", "__pycache__"))
    tasks = write_tasks(directory)
    _write_data(directory)

    found = tt.identify(model, tasks, out=directory / FOUND[0], replicates=2, ratio=0.3, fisher_examples=2, **IN_SMALL)
    assert found is not None
    for task in TASKS:  # one core set under every name, so that it fits every model and stream of the pages
        text = to_json(found.cores[0].model_copy(update={"task": task}))
        for place in (".", *FOUND[:1]):
            (directory / place / f"{task}.core.json").write_text(text, "utf-8")
    texts = directory / "texts.txt"
    texts.write_text("".join(f"The {i}th cat sat on mat number {i * i}.\n" for i in range(40)), "utf-8")
    cores = [directory / f"{task}.core.json" for task in TASKS]
    tt.map_models(model, model, core=cores, out=directory / CARRIED[0], probe=str(texts), splits=2, max_length=32)

    stream = directory / "stream.yaml"
    items = [{"name": task, "data": f"{task}.jsonl", "core": f"{task}.core.json"} for task in ("math", "code")]
    stream.write_text(yaml.safe_dump({"tasks": items}), "utf-8")
    tt.train(model, stream, out=directory / TRAINED[0], epochs=1, batch_size=4, zero=0, **IN_SMALL)
    last = directory / TRAINED[0] / "code.patch.safetensors"
    shutil.copy(last, last.with_name("series.patch.safetensors"))
    shutil.copy(directory / TRAINED[0] / "math.patch.safetensors", directory)
    for done, others in ((FOUND[0], FOUND[1:]), (CARRIED[0], CARRIED[1:]), (TRAINED[0], TRAINED[1:])):
        for other in others:
            _copy(directory / done, directory / other)
    for task in TASKS:
        _copy(model, directory / "out" / task)
    shutil.copy(directory / "math.core.json", directory / "maths.core.json")
    (directory / "runs" / "imported").mkdir()
    shutil.copy(directory / "math.core.json", directory / "runs" / "imported")
    _copy(model, directory / "runs" / "tutorial" / "before-series")
    for file in (directory / "runs" / "two").glob("*.core.json"):  # as if its warm starts had been longer
        file.write_text(file.read_text("utf-8").replace('"epochs": 1', '"epochs": 2'), "utf-8")
    (directory / "my_family.yaml").write_text("family: mine\nmodel_types: [llama]\nextends: llama\n", "utf-8")
    suite = directory / "mine.yaml"
    suite.write_text("evaluations: [{name: math, kind: loss, metric: loss, data: math.jsonl}]\n", "utf-8")
    tt.evaluate(model, suite=suite, out=directory / "runs" / "mine", limit=2, **IN_SMALL)
    return directory


def write_settings(directory: Path, page: Path) -> list[str]:
    """The settings files that a page shows, under its names, with local data for the hub's; returns their names."""
    written = []
    for block in blocks(page):
        if block.language != "yaml" or "--8<--" in block.text:
            continue
        if name := block.title or _kind(block.text):
            text = block.text.replace("sahil2801/CodeAlpaca-20k", "instructions.jsonl")
            text = text.replace("[my_model_type]", "[llama]")  # a model type that transformers knows
            (directory / name).write_text(text, "utf-8")
            written.append(name)
    return written


def copy_workspace(made: Path, directory: Path) -> Path:
    """A copy of its own for one command; files are shared, as whoever writes one puts a new one in its place."""
    return _copy(made, directory, copy_function=os.link)


def _kind(text: str) -> str | None:
    """The name under which a README's block is used by its commands, by what it says."""
    content = yaml.safe_load(text)
    if "methods" in content:
        return "run.yaml"
    if "evaluations" in content:
        return "mine.yaml"
    if "tasks" not in content:
        return None
    return "stream.yaml" if any("core" in item for item in content["tasks"]) else "tasks.yaml"


def _copy(source: Path, target: Path, **options: object) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(source, target, dirs_exist_ok=True, **options))  # type: ignore[arg-type]


def _write_data(directory: Path) -> None:
    """Data in every shape that the pages speak of."""
    import datasets

    asked = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(6)]
    choices = [{"prompt": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(4)]
    for name in ("math.train.jsonl", "law.train.jsonl", "math.test.jsonl"):
        write_records(directory / name, asked)
    write_records(directory / "law.test.jsonl", choices)
    write_records(
        directory / "data/math.jsonl", [{"question": one["prompt"], "answer": one["completion"]} for one in asked]
    )
    write_records(
        directory / "instructions.jsonl",
        [{"instruction": "Add.", "input": f"{i}, {i}", "output": f"{2 * i}"} for i in range(6)],
    )
    messages = [
        [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["completion"]}]
        for one in asked
    ]
    datasets.Dataset.from_dict({"messages": messages}).to_parquet(directory / "law.parquet")
    for name in ("gsm8k.train.jsonl", "gsm8k.test.jsonl"):
        write_records(directory / name, json.loads(json.dumps(GSM8K * 3)))
