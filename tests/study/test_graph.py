"""One changed setting makes other steps of exactly what depends on it."""

import json
import re
import shutil
from collections import Counter

import pytest

from tests.study.run_directories import run_content, write_file, write_run
from tests.tuned_models import damage
from trace_transfer.reporting.records import Cost, StepFile
from trace_transfer.study.graph import build_graph
from trace_transfer.study.run_file import load_run
from trace_transfer.study.status import _differences

METHODS = ["sequential", "lora", "trace-lf", "transfer-lf", "transfer-cs", "transfer-lf-core", "depth-map"]


@pytest.fixture
def directory(tiny, tmp_path):
    return write_run(tmp_path / "run", tiny).parent


def steps(directory, **changes):
    """Address → kind."""
    graph = build_graph(load_run(write_file(directory, **{"methods": METHODS, **changes})))
    return {step.address: step.kind for step in graph.steps}


def changed(directory, **changes) -> Counter:
    """Kinds of the steps that another setting adds."""
    before, after = steps(directory), steps(directory, **changes)
    return Counter(kind for address, kind in after.items() if address not in before)


def section(name, **values):
    return {name: {**run_content()[name], **values}}


def test_what_is_shared(directory):
    counts = Counter(steps(directory).values())
    # Two models, two tasks; LF and CS share warm starts, CS needs no Fisher; two ways of matching, four of carrying.
    assert counts == {
        "warm-start": 4, "evidence": 3, "identify": 3, "match": 2, "map": 4, "train": 7, "baseline": 1, "evaluate": 7
    }  # fmt: skip


def test_scores_at_the_base_need_no_warm_start(directory):
    counts = Counter(steps(directory, methods=["trace-snr", "trace-snr-rows"], source=None).values())
    assert counts == {"identify": 2, "train": 2, "baseline": 1, "evaluate": 2}
    changes = {"methods": ["trace-snr"], "source": None}
    other = section("identify", gradient_examples=2) | changes
    before, after = (steps(directory, **one) for one in (changes, other))
    assert Counter(after[address] for address in after.keys() - before) == {"identify": 1, "train": 1, "evaluate": 1}


def test_order_of_steps(directory):
    seen = set()
    for step in build_graph(load_run(write_file(directory, methods=METHODS))).steps:
        assert all(needed.address in seen for needed in step.needs.values())
        seen.add(step.address)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"name": "other", "out": "elsewhere", "jobs": 2, "reference": "lora"}, {}),
        (section("train", learning_rate=1e-4), {"train": 7, "evaluate": 7}),
        (section("train", checkpoint_minutes=1.0), {}),
        (section("evaluate", limit=2), {"baseline": 1, "evaluate": 7}),
        (section("evaluate", batch_size=2), {}),
        (section("identify", alpha=0.25), {"identify": 2, "map": 3, "train": 4, "evaluate": 4}),
        (section("identify", ratio=0.5), {"identify": 3, "map": 4, "train": 5, "evaluate": 5}),
        (section("identify", fisher_examples=2),
         {"evidence": 2, "identify": 2, "map": 3, "train": 4, "evaluate": 4}),
        (section("identify", learning_rate=1e-4),
         {"warm-start": 4, "evidence": 3, "identify": 3, "map": 4, "train": 5, "evaluate": 5}),
        (section("map", splits=4), {"match": 2, "map": 4, "train": 4, "evaluate": 4}),
        (section("map", batch_size=2), {}),
        ({"seeds": [0, 1]}, {"warm-start": 4, "evidence": 3, "identify": 3, "map": 4, "train": 7, "evaluate": 7}),
        ({"sweeps": {"ratio": {"values": [0.2, 0.5], "methods": ["transfer-lf"]}}},
         {"identify": 1, "map": 1, "train": 1, "evaluate": 1}),
        ({"sweeps": {"order": "all"}}, {"train": 7, "evaluate": 7}),
        # 0.5 is the default; with 1 no Fisher is needed, which of the two models only the source has shown yet.
        ({"sweeps": {"alpha": [0.0, 0.5, 1.0]}}, {"evidence": 1, "identify": 4, "map": 6, "train": 8, "evaluate": 8}),
        ({"represent": {"max_examples": 3, "perplexity": 2.0, "methods": ["lora"]}}, {"represent": 1}),
    ],
)  # fmt: skip
def test_one_setting(directory, changes, expected):
    assert changed(directory, **changes) == expected


def test_changed_data(directory):
    before = steps(directory)
    file = directory / "code.train.jsonl"
    file.write_text(file.read_text() + json.dumps({"prompt": "one more?", "completion": "yes"}) + "\n")
    after = steps(directory)
    kinds = Counter(kind for address, kind in after.items() if address not in before)
    assert kinds == {"warm-start": 2, "evidence": 3, "identify": 3, "map": 4, "train": 7, "evaluate": 7}
    file = directory / "math.test.jsonl"
    file.write_text(file.read_text() * 2)
    kinds = Counter(kind for address, kind in steps(directory).items() if address not in after)
    assert kinds == {"baseline": 1, "evaluate": 7}


def test_changed_tokenizer(directory):
    before = steps(directory)
    config = directory / "qwen3" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    (directory / "qwen3" / "README.md").write_text("another")
    assert steps(directory) == before  # nothing that counts
    tokenizer = directory / "qwen3" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    kinds = Counter(kind for address, kind in steps(directory).items() if address not in before)
    assert kinds == {  # all but what is found on the source
        "warm-start": 2, "evidence": 1, "identify": 1, "match": 2, "map": 4, "train": 7, "baseline": 1, "evaluate": 7
    }  # fmt: skip


def test_a_copied_model_makes_no_step_stale(directory):
    before = steps(directory)
    shutil.copytree(directory / "qwen3", directory / "copy", copy_function=shutil.copyfile)  # with times of now
    shutil.rmtree(directory / "qwen3")
    (directory / "copy").rename(directory / "qwen3")
    config = directory / "qwen3" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": "4.57.0"}))
    assert steps(directory) == before


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", r"the weights of target differ: were sha \w{12}, are \w{12}"),
        ("config.json", r"the config of target differ: were sha \w{12}, are \w{12}"),
        ("tokenizer.json", r"the tokenizer of target differ: were sha \w{12}, are \w{12}"),
    ],
)
def test_what_of_a_model_differs_is_told(directory, file, told):
    graph = build_graph(load_run(write_file(directory, methods=METHODS)))
    (step, *_) = [one for one in graph.steps if one.kind == "baseline"]
    record = StepFile(
        kind=step.kind, address=step.address, settings=step.settings, inputs=step.all_inputs, files={},
        cost=Cost(seconds=1, peak_bytes=1, bytes=1),
    )  # fmt: skip
    changed = directory / "qwen3" / file
    if file == "config.json":
        changed.write_text(json.dumps({**json.loads(changed.read_text()), "rms_norm_eps": 0.1}))
    elif file == "tokenizer.json":
        changed.write_text(changed.read_text() + " ")
    else:
        damage(changed.parent, "model.norm.weight", 2.0)
    after = build_graph(load_run(write_file(directory, methods=METHODS)))
    (now, *_) = [one for one in after.steps if one.kind == "baseline"]
    (found,) = _differences(record, now)
    assert re.fullmatch(told, found)
