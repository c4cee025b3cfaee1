"""Weights stored as codes and scales that transformers makes plain on any machine: fp8 with scales, and MXFP4.

Reads: the `quantization_config` of a config. Gives: transformers' own quantiser, told to dequantise. The conversions
that it adds to a model's are those of `from_pretrained`, so that every reader here has its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

METHODS = ("fp8", "mxfp4")
KEY = "quantization_config"
CODES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "U8": torch.uint8}  # of codes and scales


@dataclass(frozen=True)
class Dequantiser:
    """How a checkpoint is made plain: by the config's `quantization_config`, rounded to the model's type."""

    settings: Mapping[str, Any]
    dtype: torch.dtype

    @property
    def method(self) -> str:
        return str(self.settings["quant_method"])

    @cached_property
    def quantiser(self) -> Any:
        """transformers' own."""
        from transformers.quantizers.auto import AutoHfQuantizer

        return AutoHfQuantizer.from_config({**self.settings, "dequantize": True}, pre_quantized=True)


def dequantiser_of(config: Mapping[str, Any]) -> Dequantiser | None:
    """What makes the weights of a config plain; None where they are plain, or cannot be made so here."""
    settings = config.get(KEY)
    if not isinstance(settings, Mapping) or settings.get("quant_method") not in METHODS:
        return None
    if settings.get("modules_to_convert"):  # tables that transformers leaves as codes
        return None
    named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    dtype = getattr(torch, named) if named in ("float16", "float32") else torch.bfloat16
    found = Dequantiser(settings, dtype)
    try:
        found.quantiser  # noqa: B018 (made once, to see that it can be)
    except Exception:  # settings that transformers cannot use; of many kinds
        return None
    return found
