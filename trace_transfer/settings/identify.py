"""The settings of `identify`, and so of its halves `warm-start` and `score`: one name for each, as the options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from trace_transfer.settings.checks import refuse, unknown_problems
from trace_transfer.settings.scoring import Compute, ScoreSettings
from trace_transfer.settings.training import TrainSettings
from trace_transfer.settings.warm_start import WarmStartSettings


def _names(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind)) - {"train"}


PARTS = (TrainSettings, WarmStartSettings, ScoreSettings, Compute)


@dataclass(frozen=True)
class IdentifySettings:
    """Everything about a run of `identify` but its model, tasks and output directory."""

    warm_start: WarmStartSettings = field(default_factory=WarmStartSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    compute: Compute = field(default_factory=Compute)

    @classmethod
    def of(cls, profile: str = "default", **given: Any) -> IdentifySettings:
        """From single names, as on the command line; what is given explicitly stands over the profile.

        Raises:
            UserError: an unknown name or profile, or values that cannot be used; all of a part at once.
        """
        refuse(unknown_problems(given, frozenset().union(*map(_names, PARTS))))
        train, start, score, compute = ({name: given[name] for name in _names(kind) & given.keys()} for kind in PARTS)
        return cls(
            WarmStartSettings(TrainSettings(**train), **start), ScoreSettings.of(profile, **score), Compute(**compute)
        )
