"""A core set in Axolotl.

plugins: [trace_transfer.trainers.axolotl.TraceCorePlugin]
trace_core: math.core.json
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from trace_transfer.trainers.frozen import CoreCallback


class TraceCoreArgs(BaseModel):
    """What the plugin adds to Axolotl's configuration."""

    trace_core: str


class TraceCorePlugin(BasePlugin):  # type: ignore[misc]
    """Trains the core set of `trace_core` alone, rows too, under all that Axolotl trains with."""

    def get_input_args(self) -> str:
        return f"{__name__}.{TraceCoreArgs.__name__}"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return [CoreCallback(cfg.trace_core)]
