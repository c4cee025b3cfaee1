"""lm-evaluation-harness called by hand: configurations written out from its stock tasks, data from local files."""

from __future__ import annotations

import contextlib
import io
import logging
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
