"""How tasks are warm-started: their data, the one epoch of training, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import InstanceOf

from trace_transfer.engine.settings import TrainSettings
from trace_transfer.settings import LARGEST, Settings, setting

Length = Annotated[int, Ge(2), Le(LARGEST)]
TooLong = Literal["cut", "leave-out"]
LONGEST = "Longest example; 1024 as in the paper (A.4)."
WHEN_TOO_LONG = "What happens to longer examples; counted either way."


class WarmStartSettings(Settings):
    """Everything about warm starts but the model, the tasks and the output directory."""

    UNRECORDED: ClassVar[frozenset[str]] = frozenset({"delta_dtype", "keep_models"})

    train: InstanceOf[TrainSettings] = setting(TrainSettings, "The training itself.")
    max_length: Length = setting(1024, LONGEST, metavar="TOKENS")
    too_long: TooLong = setting("cut", WHEN_TOO_LONG)
    replicates: Annotated[int, Ge(1), Le(2)] = setting(
        1, "2: warm-start each task on two halves of its data, and tell core sets from noise."
    )
    delta_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "How deltas are kept; bfloat16 takes half the room and loses 0.4 % of each value."
    )
    keep_models: bool = setting(False, "Keep the warm-started models, too.")
