"""The settings of `identify`, and so of its halves `warm-start` and `score`: one name for each, as the options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from trace_transfer.settings.checks import choice, made, refuse, unknown_problems
from trace_transfer.settings.scoring import PROFILES, Compute, ScoreSettings
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
            UserError: an unknown name or profile, or values that cannot be used; all at once.
        """
        problems = choice("profile", profile, PROFILES) + unknown_problems(given, cls.names())
        of_profile = {} if problems else PROFILES[profile]
        train, start, score, compute = ({name: given[name] for name in _names(kind) & given.keys()} for kind in PARTS)
        training = made(problems, TrainSettings, train)
        found = cls(
            replace(made(problems, WarmStartSettings, start), train=training),
            made(problems, ScoreSettings, {**of_profile, **score}),
            made(problems, Compute, compute),
        )
        refuse(problems)
        return found

    @classmethod
    def names(cls) -> frozenset[str]:
        """All that `of` takes."""
        return frozenset().union(*map(_names, PARTS))
