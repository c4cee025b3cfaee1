"""Find the few parameters a task needs on a small language model and carry them to a large one of another family."""

from trace_transfer.api import evaluate, identify, map_models, read, report, run, score, select, train, verify
from trace_transfer.errors import FrozenMovedError, TraceTransferError, UserError
from trace_transfer.settings.evaluate import EvaluateSettings
from trace_transfer.settings.identify import IdentifySettings
from trace_transfer.settings.mapping import MapSettings
from trace_transfer.settings.stream import StreamSettings

__version__ = "0.1.0"
__all__ = [
    "EvaluateSettings",
    "FrozenMovedError",
    "IdentifySettings",
    "MapSettings",
    "StreamSettings",
    "TraceTransferError",
    "UserError",
    "__version__",
    "evaluate",
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
