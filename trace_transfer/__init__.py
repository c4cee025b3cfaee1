"""Find the few parameters a task needs on a small language model and carry them to a large one of another family."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import FrozenMovedError, TraceTransferError, UserError

if TYPE_CHECKING:
    from trace_transfer.api import evaluate, identify, map_models, read, report, run, score, select, train, verify
    from trace_transfer.evaluation.settings import EvaluateSettings
    from trace_transfer.identification.settings import IdentifySettings
    from trace_transfer.trainers.frozen import CoreCallback, CoreTraining, freeze_except
    from trace_transfer.training.settings import StreamSettings
    from trace_transfer.transfer.settings import MapSettings

__version__ = "0.1.0"
__all__ = [
    "CoreCallback",
    "CoreTraining",
    "EvaluateSettings",
    "FrozenMovedError",
    "IdentifySettings",
    "MapSettings",
    "StreamSettings",
    "TraceTransferError",
    "UserError",
    "__version__",
    "evaluate",
    "freeze_except",
    "identify",
    "map_models",
    "read",
    "report",
    "run",
    "score",
    "select",
    "train",
    "verify",
]

_FROZEN = ("CoreCallback", "CoreTraining", "freeze_except")


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: `import trace_transfer` is to be quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("trace_transfer.trainers.frozen" if name in _FROZEN else "trace_transfer.api"), name)


def __dir__() -> list[str]:
    return __all__
