"""One thread, no network, a cache of its own; tiny models, built once per run."""

import gc
import os
import tempfile

# Before torch and transformers are imported: with several threads on few cores a small product is 30 times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # set in pytest-xdist's workers alone; output is as wide as in a pipe
os.environ["TRACE_TRANSFER_CACHE"] = tempfile.mkdtemp(prefix="trace-transfer-tests-")

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.commands import Undrawn
from trace_transfer import figures

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background

# No time is too long: a machine may be busy. The same examples every time where a change is judged; new ones elsewhere.
hypothesis.settings.register_profile(
    "ours",
    max_examples=30,
    derandomize=bool(os.environ.get("CI")),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")

TinyModels = Callable[..., Path]

LONG = ("study", "training", "trainers", "identification", "engine")  # what trains, and starts processes that do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that two workers end together (with `--no-loadscope-reorder`)."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["TRACE_TRANSFER_CACHE"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _no_search_through_what_is_imported() -> None:
    """DeepSpeed collects garbage many times while it is built: a quarter of a second each with all libraries loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _pictures_where_they_are_looked_at(request: pytest.FixtureRequest) -> Iterator[None]:
    """A picture takes seconds, and each `identify`, `score` and `map` writes one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in ("test_draw.py", "test_plot.py", "test_hostile_names.py"):
            patch.setattr(figures, "picture", Undrawn)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """`tiny(family, **changes)`: the directory of a tiny model, built when first asked for; not to be written to."""
    from tests.tiny_models import make_model

    built: dict[tuple[object, ...], Path] = {}

    def get(family: str, **changes: object) -> Path:
        key = (family, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in built:
            built[key] = make_model(tmp_path_factory.mktemp(family) / family, family, **changes)
        return built[key]

    return get


@pytest.fixture
def copy_of(tiny: TinyModels, tmp_path: Path) -> TinyModels:
    """`copy_of(family)`: a copy of a tiny model that a test may damage."""

    def get(family: str, **changes: object) -> Path:
        return Path(shutil.copytree(tiny(family, **changes), tmp_path / "models" / family))

    return get
