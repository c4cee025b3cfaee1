"""What `study.worker.context` has imported before the first step, and DeepSpeed, without its noise."""

import peft  # noqa: F401
import transformers.modeling_utils  # noqa: F401

import trace_transfer.study.kinds  # noqa: F401
from trace_transfer.engine.distributed import open_ranks

with open_ranks():
    pass
