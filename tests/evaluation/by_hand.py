"""lm-evaluation-harness called by hand: configurations written out from its stock tasks, data from local files."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import yaml

STOCK = Path(lm_eval.__file__).parent / "tasks"


def by_hand(model: Any, tokenizer: Any, config: dict[str, Any], **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """Results and samples of `simple_evaluate` with a configuration, as anybody would call it."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with quietly():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
        found = lm_eval.simple_evaluate(
            lm, tasks=[config], task_manager=TaskManager(include_defaults=False), bootstrap_iters=100, **options
        )
    return found["results"][config["task"]], found["samples"][config["task"]]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the harness' log and bars."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def local(stock_file: str, data_file: Path, split: str = "test") -> dict[str, Any]:
    """A stock task whose data are a local file: the lines that its authors advise."""
    config = yaml.safe_load((STOCK / stock_file).read_text())
    for key in ("tag", "dataset_name"):
        config.pop(key, None)
    return {**config, "dataset_path": "json", "dataset_kwargs": {"data_files": {split: str(data_file)}}}


def humaneval(data_file: Path) -> dict[str, Any]:
    """The stock task with a metric in place of the one that it fetches: each program and its test in a bare Python."""

    def passed(references: list[str], predictions: list[list[str]]) -> float:
        (test,), ((program,),) = references, predictions
        try:
            code = f"{program}\n{test}"
            return float(subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20).returncode == 0)
        except subprocess.TimeoutExpired:
            return 0.0

    def programs(resps: Any, docs: Any) -> list[list[str]]:
        return [[doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs, strict=True)]

    return {
        "task": "humaneval", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data_file)}},
        "output_type": "generate_until", "test_split": "test", "num_fewshot": 0, "repeats": 1,
        "doc_to_text": "{{prompt}}", "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "metric_list": [{"metric": passed, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "max_gen_toks": 1024, "do_sample": False,
        },
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": programs}]}],
    }  # fmt: skip
