"""What the server from which steps are forked has imported and read: seconds that each step would take otherwise."""

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import transformers.optimization  # noqa: F401 (with peft and the models)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import trace_transfer.study.kinds  # noqa: F401
from trace_transfer.engine.distributed import deepspeed_library
from trace_transfer.families.registry import load_families
from trace_transfer.printable import quiet

with quiet():
    deepspeed_library()
load_families()
get_checkpoint_conversion_mapping("llama")  # builds those of all families
