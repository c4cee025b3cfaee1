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
LONGEST = "Longest example, in tokens. The default is the paper's (A.4)."
WHEN_TOO_LONG = "What to do with longer examples; their number is printed either way."


class WarmStartSettings(Settings):
    """Everything about warm starts but the model, the tasks and the output directory."""

    UNRECORDED: ClassVar[frozenset[str]] = frozenset({"delta_dtype", "keep_models"})
    GROUP: ClassVar[str] = "Data"

    train: InstanceOf[TrainSettings] = setting(TrainSettings, "The training itself.")
    max_length: Length = setting(1024, LONGEST, metavar="TOKENS", common=True)
    too_long: TooLong = setting("cut", WHEN_TOO_LONG)
    replicates: Annotated[int, Ge(1), Le(2)] = setting(
        1,
        "Warm starts of each task. 2: one on each half of its data, which shows how far a core set is noise.",
        group="Scoring",
    )
    delta_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Number format of stored deltas. bfloat16 needs half the disk and rounds each value by up to 0.4 %.",
        group="Output",
    )
    keep_models: bool = setting(False, "Keep the warm-started models.", group="Output")


class Compute(Settings):
    """Where and how Fisher information is computed; none of it changes a result beyond rounding."""

    GROUP: ClassVar[str] = "Hardware"

    device: str = setting("auto", "Device for the Fisher information; auto: a GPU if there is one.")
    tokens_at_once: Count = setting(4096, "Tokens per batch for the Fisher information.")
    layer_streamed: bool = setting(
        False, "Compute the Fisher information one layer at a time: less memory for about 1.5 × the time."
    )


class IdentifySettings(Settings):
    """Everything about a run of `identify` but its model, tasks and output directory."""

    PROFILES: ClassVar = ScoreSettings.PROFILES
    GROUP: ClassVar[str] = ScoreSettings.GROUP

    warm_start: InstanceOf[WarmStartSettings] = setting(WarmStartSettings, "How tasks are warm-started.")
    score: InstanceOf[ScoreSettings] = setting(ScoreSettings, "How tensors are scored and chosen.")
    compute: InstanceOf[Compute] = setting(Compute, "Where and how Fisher information is computed.")
