"""The trainers that core sets are written for."""

from __future__ import annotations

from collections.abc import Callable

from trace_transfer.core_sets.exports.axolotl import write_axolotl
from trace_transfer.core_sets.exports.core_set import CoreSet
from trace_transfer.core_sets.exports.llama_factory import write_llama_factory
from trace_transfer.core_sets.exports.ms_swift import write_ms_swift
from trace_transfer.core_sets.exports.regex import write_regex
from trace_transfer.core_sets.exports.table import write_csv
from trace_transfer.core_sets.exports.trl import write_trl

# Trainer → what is written for it. `peft` besides, which needs the model (`exports.lora`).
WRITERS: dict[str, Callable[[CoreSet], str]] = {
    "axolotl": write_axolotl,
    "ms-swift": write_ms_swift,
    "llama-factory": write_llama_factory,
    "trl": write_trl,
    "regex": write_regex,
    "csv": write_csv,
}
