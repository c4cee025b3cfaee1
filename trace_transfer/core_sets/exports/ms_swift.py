"""ms-swift's `trainable_parameters_regex`, with everything frozen before.

How ms-swift reads it (`swift/utils/transformers_utils.py`): `freeze_parameters_ratio: 1` freezes all parameters, then
those in whose name the pattern is found anywhere (`re.search`) train; hence the `^` and `$`.
"""

from __future__ import annotations

import re

from trace_transfer.core_sets.exports.core_set import WHOLE_ONLY, CoreSet, require_exact, require_whole
from trace_transfer.core_sets.exports.patterns import exact_pattern

KEY = "trainable_parameters_regex"


def write_ms_swift(core: CoreSet) -> str:
    """The lines of a configuration for `swift sft FILE.yaml` (or its options) that train a core set.

    Raises:
        ExportError: parts of parameters are core.
    """
    import yaml

    require_whole(core, "ms-swift", f"it trains whole tensors only; {WHOLE_ONLY}")
    settings = {"tuner_type": "full", "freeze_parameters_ratio": 1, KEY: f"^{exact_pattern(core.names, core.shapes)}$"}
    header = [
        *core.header("ms-swift"), "Merge it into the file of `swift sft FILE.yaml`, or give each line as an option.",
        "Before version 4 `tuner_type` was called `train_type`.",
    ]  # fmt: skip
    text = "".join(f"# {line}\n" for line in header) + yaml.safe_dump(settings, sort_keys=False, width=1_000_000)
    search = re.compile(yaml.safe_load(text)[KEY]).search
    require_exact(core.names, filter(search, core.shapes), "ms-swift")
    return text
