"""One changed setting makes other steps of exactly what depends on it."""

import json
import shutil
from collections import Counter

import pytest

from tests.study.run_directories import run_content, write_file, write_run
from trace_transfer.study.graph import build_graph
from trace_transfer.study.run_file import load_run

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
    seen = set()
    for step in build_graph(load_run(write_file(directory, methods=METHODS))).steps:
        assert all(needed.address in seen for needed in step.needs.values())
        seen.add(step.address)
    counts = Counter(steps(directory).values())
    # Two models, two tasks; LF and CS share warm starts, CS needs no Fisher; two ways of matching, four of carrying.
    assert counts == {
        "warm-start": 4, "evidence": 3, "identify": 3, "match": 2, "map": 4, "train": 7, "baseline": 1, "evaluate": 7
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
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


ADDED = json.dumps({"prompt": "one more?", "completion": "yes"}) + "\n"


@pytest.mark.parametrize(
    ("file", "more", "expected"),
    [
        ("code.train.jsonl", ADDED,
         {"warm-start": 2, "evidence": 3, "identify": 3, "map": 4, "train": 7, "evaluate": 7}),
        ("math.test.jsonl", ADDED, {"baseline": 1, "evaluate": 7}),
        ("qwen3/tokenizer_config.json", " ", {}),  # nothing that counts
        ("qwen3/README.md", "another", {}),
        ("qwen3/tokenizer.json", " ",  # all but what is found on the source
         {"warm-start": 2, "evidence": 1, "identify": 1, "match": 2, "map": 4, "train": 7, "baseline": 1,
          "evaluate": 7}),
    ],
)  # fmt: skip
def test_changed_files(directory, file, more, expected):
    before = steps(directory)
    with (directory / file).open("a") as stream:
        stream.write(more)
    assert Counter(kind for address, kind in steps(directory).items() if address not in before) == expected


def test_a_copied_model_makes_no_step_stale(directory):
    before = steps(directory)
    shutil.copytree(directory / "qwen3", directory / "copy", copy_function=shutil.copyfile)  # with times of now
    shutil.rmtree(directory / "qwen3")
    (directory / "copy").rename(directory / "qwen3")
    config = directory / "qwen3" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": "4.57.0"}))
    assert steps(directory) == before
