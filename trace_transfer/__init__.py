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
    "CoreCallback", "CoreTraining", "EvaluateSettings", "FrozenMovedError", "IdentifySettings", "MapSettings",
    "StreamSettings", "TraceTransferError", "UserError", "__version__", "evaluate", "freeze_except", "identify",
    "map_models", "read", "report", "run", "score", "select", "train", "verify",
]  # fmt: skip

# Imported when they are asked for: `import trace_transfer` and `trace-transfer --help` are to be quick.
_LATER = {  # all others are of `api`
    **dict.fromkeys(("CoreCallback", "CoreTraining", "freeze_except"), "trainers.frozen"),
    "EvaluateSettings": "evaluation.settings",
    "IdentifySettings": "identification.settings",
    "MapSettings": "transfer.settings",
    "StreamSettings": "training.settings",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"trace_transfer.{_LATER.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
