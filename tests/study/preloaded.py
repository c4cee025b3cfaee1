"""What `study.worker.context` has imported before the first step, and DeepSpeed, without its noise; no pictures."""

import peft  # noqa: F401
import transformers.modeling_utils  # noqa: F401

import trace_transfer.study.kinds  # noqa: F401
from tests.commands import Undrawn
from trace_transfer import figures
from trace_transfer.engine.distributed import open_ranks

figures.picture = Undrawn
with open_ranks():
    pass
