"""The settings of `identify`, and so of its halves `warm-start` and `score`: one name for each, as the options."""

from __future__ import annotations

from typing import ClassVar

from pydantic import InstanceOf

from trace_transfer.identification.scoring_settings import PROFILES, Compute, ScoreSettings
from trace_transfer.identification.warm_start_settings import WarmStartSettings
from trace_transfer.settings import Settings, setting


class IdentifySettings(Settings):
    """Everything about a run of `identify` but its model, tasks and output directory."""

    PROFILES: ClassVar = PROFILES

    warm_start: InstanceOf[WarmStartSettings] = setting(WarmStartSettings, "How tasks are warm-started.")
    score: InstanceOf[ScoreSettings] = setting(ScoreSettings, "How parameters are scored and chosen.")
    compute: InstanceOf[Compute] = setting(Compute, "Where and how Fisher information is computed.")
