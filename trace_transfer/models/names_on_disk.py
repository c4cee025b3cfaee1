"""Names on disk and names at run time, where transformers renames or joins tensors when it loads a model.

Mixtral's experts are three tensors each on disk, `block_sparse_moe.experts.E.w1.weight` and so on; at run time those of
a layer are two tensors, `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`. Both ways go through the conversion
that transformers itself applies in `from_pretrained` and `save_pretrained`, a tensor or some of its rows at a time.
So do weights stored as codes and scales that transformers makes plain on any machine: fp8 with scales, and MXFP4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from trace_transfer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("fp8", "mxfp4")
CODES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "U8": torch.uint8}  # of codes and scales


class Dequantiser(NamedTuple):
    """How codes and scales are made plain: by transformers' own quantiser, rounded to the model's type."""

    method: str
    quantiser: Any
    dtype: torch.dtype


def dequantiser_of(config: Mapping[str, Any]) -> Dequantiser | None:
    """What makes the weights of a config plain; None where they are plain, or cannot be made so here."""
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") not in METHODS:
        return None
    if settings.get("modules_to_convert"):  # tables that transformers leaves as codes
        return None
    from transformers.quantizers.auto import AutoHfQuantizer

    named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    dtype = getattr(torch, named) if named in ("float16", "float32") else torch.bfloat16
    try:
        quantiser = AutoHfQuantizer.from_config({**settings, "dequantize": True}, pre_quantized=True)
    except Exception:  # settings that transformers cannot use; of many kinds
        return None
    return Dequantiser(settings["quant_method"], quantiser, dtype)


@dataclass(frozen=True)
class Fused:
    """A tensor made of several on disk; `sources`: pattern of the converter → the names that match it, by number."""

    model: PreTrainedModel
    name: str
    converter: Any
    sources: Mapping[str, tuple[str, ...]]
    dequantiser: Dequantiser | None = None

    def keys(self, start: int | None = None, stop: int | None = None) -> tuple[str, ...]:
        """Its names on disk; those of some rows, if it is `by_row`."""
        return tuple(key for keys in self.sources.values() for key in keys[start:stop])

    @property
    def has_scales(self) -> bool:
        """Whether scales of weights are among its tensors; those of activations are not."""
        scales = ("weight_scale_inv", "_scales")
        return any(keys and one.rstrip("$").endswith(scales) for one, keys in self.sources.items())

    def by_row(self, num_rows: int) -> bool:
        """Whether each row (an expert) is made of tensors of its own, so that some rows can be read alone."""
        from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

        operations = [one for one in self.converter.operations if not hasattr(one, "hf_quantizer")]
        if not operations or not isinstance(operations[0], MergeModulelist) or operations[0].dim != 0:
            return False
        apart = all(
            (isinstance(one, Concatenate) and one.dim > 0)
            or (isinstance(one, Transpose) and min(one.dim0, one.dim1) > 0)
            for one in operations[1:]
        )
        return apart and all(len(keys) == num_rows for keys in self.sources.values() if keys)

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, or some rows of it, from the tensors of its `keys`."""
        converter = deepcopy(self.converter)
        for pattern, keys in self.sources.items():
            for key in keys:
                if key in tensors:
                    converter.add_tensor(self.name, key, pattern, tensors[key])
        made: Mapping[str, Tensor] = converter.convert(self.name, model=self.model, config=self.model.config)
        value = made[self.name]
        return value if self.dequantiser is None else value.to(self.dequantiser.dtype)


@dataclass(frozen=True)
class LoadedNames:
    """A checkpoint's names on disk → names at run time, as transformers' loader renames them for one model."""

    model: PreTrainedModel
    mapping: list[Any]
    at_run_time: Mapping[str, str]
    patterns: Mapping[str, str]
    dequantiser: Dequantiser | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, keys: Iterable[str], dequantiser: Dequantiser | None = None) -> LoadedNames:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        quantiser: Any = None if dequantiser is None else dequantiser.quantiser
        mapping = get_model_conversion_mapping(model, hf_quantizer=quantiser)
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        known = model.state_dict()
        names, patterns = {}, {}
        for key in keys:
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
            if name not in known and key in known:
                name, pattern = key, None
            names[key] = name
            if pattern is not None:
                patterns[key] = pattern
        found = cls(model, mapping, names, patterns, dequantiser)
        if quantiser is not None:  # its conversions match every weight, those that are plain, too
            general = {one for entry in quantiser.get_weight_conversions() for one in entry.source_patterns}
            for alone in (keys[0] for keys in found.keys_of.values() if len(keys) == 1):
                if patterns.get(alone) in general:
                    del patterns[alone]
        return found

    @cached_property
    def keys_of(self) -> Mapping[str, list[str]]:
        """Name at run time → its names on disk."""
        found: dict[str, list[str]] = {}
        for key, name in self.at_run_time.items():
            found.setdefault(name, []).append(key)
        return found

    def fused(self, name: str) -> Fused | None:
        """How a tensor is made, if a conversion makes it; None if it lies on disk as it is, or not at all."""
        from transformers.core_model_loading import WeightConverter, dot_natural_key

        keys = sorted(self.keys_of.get(name, ()), key=dot_natural_key)
        found = {self.patterns.get(key) for key in keys}
        if not keys or None in found:
            return None
        converter = next(
            one for one in self.mapping if isinstance(one, WeightConverter) and found <= set(one.source_patterns)
        )
        sources = {one: tuple(key for key in keys if self.patterns[key] == one) for one in converter.source_patterns}
        return Fused(self.model, name, converter, sources, self.dequantiser)

    def load(self, tensors: Mapping[str, Tensor], device: Any, dtype: torch.dtype) -> Any:
        """Bring tensors, by their names on disk, into the model; gives transformers' account of it."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        quantiser = None if self.dequantiser is None else self.dequantiser.quantiser
        config = LoadStateDictConfig(
            dtype=dtype, device_map={"": device}, weight_mapping=self.mapping, hf_quantizer=quantiser
        )
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # one for each layer
        try:
            return convert_and_load_state_dict_in_model(self.model, dict(tensors), config)[0]
        finally:
            if shown:
                logging.enable_progress_bar()


def open_gguf(file: Path) -> Any:
    """gguf's reader of a file, the one of before while the file is the same: to read its header takes seconds."""
    stat = file.stat()
    return _open_gguf(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _open_gguf(file: Path, size: int, time: int) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def gguf_names(model: PreTrainedModel, reader: Any, file: Path) -> tuple[Any, dict[str, str]]:
    """transformers' tensor processor for a GGUF file, and the file's names → names at run time."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as of

    make: Any = of.TENSOR_PROCESSORS.get(str(of.read_field(reader, "general.architecture")[0]), of.TensorProcessor)
    processor = make(config=model.config.to_dict())
    try:
        # transformers has gguf make the same table of names for each module of a model: seconds for 400 modules.
        with patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)):
            return processor, of.get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as error:
        raise ModelError(f"{file}: GGUF files of '{model.config.model_type}' cannot be read ({error})") from error


@dataclass(frozen=True)
class SavedNames:
    """A model's tensors as `save_pretrained` names and cuts them.

    A tensor whose names on disk would not be read back as that tensor alone keeps its name at run time, which
    transformers loads, too."""

    model: PreTrainedModel

    @cached_property
    def _converts(self) -> bool:
        from transformers.conversion_mapping import get_model_conversion_mapping

        return bool(get_model_conversion_mapping(self.model, add_legacy=False))

    def shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """What a tensor is on disk; nothing of its values is needed."""
        if not self._converts:
            return {name: shape}
        cut = {key: tuple(one.shape) for key, one in self.cut(name, torch.empty(shape, device="meta")).items()}
        return cut if set(LoadedNames.of(self.model, cut).at_run_time.values()) == {name} else {name: shape}

    def cut(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """A tensor as it lies on disk."""
        from transformers.core_model_loading import revert_weight_conversion

        made: dict[str, Tensor] = revert_weight_conversion(self.model, {name: value})
        return made
