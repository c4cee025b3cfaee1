"""Tasks on the disk, and models tuned on them; not to be written to."""

import pytest
import torch

from tests.task_files import write_tasks
from tests.tuned_models import tuned_copy


@pytest.fixture(scope="package")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="package")
def three(tiny, tmp_path_factory):
    """A base in several float32 shards, and three models tuned from it: two float32, one bf16."""
    base, place = tiny("qwen2"), tmp_path_factory.mktemp("three")
    types = {"math": torch.float32, "code": torch.bfloat16, "law": torch.float32}
    return base, {task: tuned_copy(base, place / task, n, dtype=dtype) for n, (task, dtype) in enumerate(types.items())}
