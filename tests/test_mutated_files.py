"""Every kind of file that is read here, mutated: it is read, or refused in one message that names it; nothing else.

The mutations are drawn from seeds (`tests.mutations`), a few of each kind.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from tests.cli.test_inspection import correspondence
from tests.commands import run
from tests.evaluation_files import write_suite
from tests.mutations import mutated
from tests.run_files import write_run
from tests.stream_files import write_stream
from tests.study import run_directories
from trace_transfer.core_sets.importing import read_authors_list
from trace_transfer.core_sets.trainer_settings import read_patterns
from trace_transfer.data.probe import load_probe
from trace_transfer.data.records import read_records
from trace_transfer.data.tasks_file import load_tasks
from trace_transfer.engine import checkpointing
from trace_transfer.engine.checkpointing import Step
from trace_transfer.engine.deepspeed_json import contradictions, merged
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.evaluation.suite_file import load_suite
from trace_transfer.families.model_handle import load_tokenizer, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.checkpoints import OpenedBase
from trace_transfer.models.sources import ModelSource
from trace_transfer.records import to_json
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.summarising import summarise
from trace_transfer.study.run_file import load_run
from trace_transfer.text_formats import read_json_object
from trace_transfer.training.settings import load_stream

SLOWEST = 10.0  # seconds, for any one file


class Kind(NamedTuple):
    """A file, what it is written as, and what reads it; it may be refused in the name of its directory, too."""

    file: Path
    form: str
    read: Callable[[], Any]


def command(*arguments: object) -> None:
    result = run(*arguments)
    if result.exit_code == 2 and isinstance(result.exception, SystemExit):
        raise UserError(result.stderr)
    if result.exception is not None:
        raise result.exception


def form_of(file: Path) -> str:
    return "safetensors" if file.suffix == ".safetensors" else "json"


def artefacts(directory: Path) -> dict[str, Kind]:
    """Files of our formats, drawn; `read_artefact` reads all of them."""
    study = write_run(directory / "run", seeds=(0, 1), methods=("sequential", "transfer-lf", "random"))
    (study / "summary.json").write_text(to_json(summarise(read_run(study))))
    names = ("run.json", "summary.json", "scores.json", "stream.json", "step.json", "verification.json",
             "layer_match.json", "similarity.safetensors", "maths.core.json", "maths.patch.safetensors")  # fmt: skip
    files = [next(study.rglob(name)) for name in names] + [correspondence(directory)]
    found = {f"inspect {one.name}": Kind(one, form_of(one), lambda one=one: command("inspect", one)) for one in files}
    for file in (study / "run.json", next(study.rglob("step.json"))):  # what a report is made of
        found[f"report's {file.name}"] = Kind(file, "json", lambda: summarise(read_run(study)))
    return found


def training(directory: Path) -> dict[str, Kind]:
    """What a training leaves for its next start."""
    states = [("a.weight", {kind: torch.ones(3) for kind in ("master", "exp_avg")})]
    history = [Step(1, 2.0, 1e-5, 1.0, 10, 5), Step(2, 1.5, 1e-5, 1.0, 12, 6)]
    checkpoint = checkpointing.write(directory, {"task": "math", "settings": {"seed": 0}}, history, 1.5, states)

    def resume() -> None:
        found = checkpointing.find(directory)
        assert found is not None
        found.require_same(found.identity)
        found.require_whole({"a.weight": ["master", "exp_avg"]})

    return {
        "checkpoint.json": Kind(checkpoint / "checkpoint.json", "json", resume),
        "checkpoint's loss.csv": Kind(checkpoint / "loss.csv", "text", resume),
        "checkpoint's tensors": Kind(next(checkpoint.glob("*.safetensors")), "safetensors", resume),
    }


def models(directory: Path, tiny: Any) -> dict[str, Kind]:
    """The files of a model."""
    model = shutil.copytree(tiny("llama"), directory / "model")
    source = ModelSource.parse(model)

    def weights() -> None:
        open_model(model, load_families())
        base = OpenedBase(source)
        for name in list(base.inventory.shapes)[:3]:
            list(base.chunks(name))

    def tokenizer() -> None:
        load_tokenizer(source)("The sum of 2 and 2")

    return {
        "config.json": Kind(model / "config.json", "json", weights),
        "index.json": Kind(model / "model.safetensors.index.json", "json", weights),
        "shard": Kind(sorted(model.glob("*.safetensors"))[0], "safetensors", weights),
        "tokenizer.json": Kind(model / "tokenizer.json", "json", tokenizer),
        "tokenizer_config.json": Kind(model / "tokenizer_config.json", "json", tokenizer),
    }  # fmt: skip


def settings(directory: Path, tiny: Any) -> dict[str, Kind]:
    """What users write."""
    file = run_directories.write_run(directory / "study", tiny, sweeps={"ratio": [0.1, 0.2]}, represent={"seed": 1})
    stream = write_stream(directory / "stream", tiny("llama"), 4)
    suite = write_suite(directory / "suite")
    rules = directory / "mine.yaml"
    rules.write_bytes(Path("rules/llama.yaml").read_bytes())
    deepspeed = directory / "deepspeed.json"
    content = {"train_batch_size": "auto", "zero_optimization": {"stage": 2, "overlap_comm": True}}
    deepspeed.write_text(json.dumps({**content, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}))
    authors = directory / "math.json"
    authors.write_text(json.dumps([
        {"parameter": f"model.layers.{n}.x", "combined_score": 1.0 / n, "l2_delta": 0.1, "fisher_info": 0.1,
         "l2_norm_score": 0.5, "fisher_norm_score": 0.5, "rank": n} for n in (1, 2, 3)
    ]))  # fmt: skip
    axolotl = directory / "axolotl.yaml"
    axolotl.write_text(yaml.safe_dump({"unfrozen_parameters": ["^model.norm.weight$", "^model.layers.0.x$[0:4]"]}))

    def deepspeed_read() -> None:
        given = read_json_object(deepspeed)
        if problems := contradictions(given, TrainSettings(zero=2), 1, "float32"):
            raise UserError(f"{deepspeed}: {problems}")
        merged({"zero_optimization": {}}, given)

    def data_read() -> None:
        for spec in load_tasks(directory / "stream" / "data.yaml"):
            read_records(spec, directory / "stream", seed=0)

    (directory / "stream" / "data.yaml").write_text(
        "tasks: [{name: math, data: math.jsonl}, {name: code, data: code.json}, {name: law, data: law.csv}]"
    )
    conversation = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two", "weight": 1}]
    (directory / "stream" / "code.json").write_text(
        json.dumps([{"messages": conversation}, {"messages": conversation}])
    )
    (directory / "stream" / "law.csv").write_text('prompt,completion\n"a, b",c\nd,"e\nf"\n')
    probe = directory / "probe.jsonl"
    probe.write_text("".join(json.dumps({"text": f"The text of number {n} is here."}) + "\n" for n in range(9)))
    return {
        "run.yaml": Kind(file, "yaml", lambda: load_run(file)),
        "stream.yaml": Kind(stream, "yaml", lambda: load_stream(stream)),
        "tasks.yaml": Kind(directory / "stream" / "data.yaml", "yaml", data_read),
        "suite": Kind(suite, "yaml", lambda: load_suite(suite)),
        "rules": Kind(rules, "yaml", lambda: open_model(tiny("llama"), load_families(rules))),
        "DeepSpeed JSON": Kind(deepspeed, "json", deepspeed_read),
        "authors' list": Kind(authors, "json", lambda: read_authors_list(authors)),
        "Axolotl's list": Kind(axolotl, "yaml", lambda: read_patterns(axolotl)),
        "probe.jsonl": Kind(probe, "text", lambda: load_probe(probe)),
        "data.jsonl": Kind(directory / "stream" / "math.jsonl", "text", data_read),
        "data.json": Kind(directory / "stream" / "code.json", "json", data_read),
        "data.csv": Kind(directory / "stream" / "law.csv", "text", data_read),
    }


@pytest.fixture(scope="module")
def kinds(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mutated")
    return artefacts(directory) | training(directory / "training") | models(directory, tiny) | settings(directory, tiny)


def tried(kind: Kind, seed: int) -> str:
    """What comes of one mutation: `read`, `refused`, or what went wrong."""
    whole = kind.file.read_bytes()
    start = time.monotonic()
    try:
        kind.file.write_bytes(mutated(whole, kind.form, seed))
        kind.read()
    except UserError as error:
        named = kind.file.name in str(error) or kind.file.parent.name in str(error)
        return "refused" if named else f"does not name {kind.file.name}: {error}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.filename}:{place.lineno}: {error}"
    finally:
        kind.file.write_bytes(whole)
    passed = time.monotonic() - start
    return "read" if passed < SLOWEST else f"took {passed:.0f} s"


def test_a_few_mutations_of_every_kind(kinds):
    """All that went wrong is told together, each with its seed."""
    counts: Counter[str] = Counter()
    wrong = []
    for name, kind in kinds.items():
        kind.read()  # as it is
        for seed in range(6):
            found = tried(kind, seed)
            counts[found] += 1
            if found not in ("read", "refused"):
                wrong.append(f"{name}, seed {seed}: {found}"[:600])
    assert not wrong, "\n".join(wrong)
    assert counts["read"] > 10 and counts["refused"] > 90
