"""What `study.worker.context` has imported before the first step; no pictures."""

import trace_transfer.study.preloaded  # noqa: F401
from tests.commands import Undrawn
from trace_transfer import figures

figures.picture = Undrawn
