"""Find the few parameters a task needs on a small language model and carry them to a large one of another family."""

from trace_transfer.api import identify, map_models, run, score_models, train
from trace_transfer.errors import TraceTransferError, UserError
from trace_transfer.settings.identify import IdentifySettings
from trace_transfer.settings.mapping import MapSettings
from trace_transfer.settings.stream import StreamSettings

__version__ = "0.1.0"
__all__ = [
    "IdentifySettings",
    "MapSettings",
    "StreamSettings",
    "TraceTransferError",
    "UserError",
    "__version__",
    "identify",
    "map_models",
    "run",
    "score_models",
    "train",
]
