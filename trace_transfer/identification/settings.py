"""The settings of `identify`, and so of its halves `warm-start` and `score`: one name for each, as the options."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import InstanceOf

from trace_transfer.engine.settings import TrainSettings
from trace_transfer.identification.scores import ScoreSettings
from trace_transfer.settings import LARGEST, Count, Settings, setting

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


class Compute(Settings):
    """Where and how Fisher information is computed; none of it changes a result beyond rounding."""

    device: str = setting("auto", "For Fisher; auto: a GPU if any.")
    tokens_at_once: Count = setting(4096, "Tokens of a batch for Fisher.")
    layer_streamed: bool = setting(
        False, "Fisher with the activations of one layer at a time: less memory for about half again the time."
    )


class IdentifySettings(Settings):
    """Everything about a run of `identify` but its model, tasks and output directory."""

    PROFILES: ClassVar = ScoreSettings.PROFILES

    warm_start: InstanceOf[WarmStartSettings] = setting(WarmStartSettings, "How tasks are warm-started.")
    score: InstanceOf[ScoreSettings] = setting(ScoreSettings, "How tensors are scored and chosen.")
    compute: InstanceOf[Compute] = setting(Compute, "Where and how Fisher information is computed.")
