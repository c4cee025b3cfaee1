"""The model that a training starts from, with its weights in memory.

Reads: config and weights of a directory, a GGUF file or a hub model, through transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, chain, groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, first_line
from trace_transfer.models.checkpoints import OpenedBase, SafetensorsCheckpoint, local_directory, release
from trace_transfer.models.sources import ModelSource, build_meta_model, tied_names
from trace_transfer.models.tensors import dtype_name, require_finite
from trace_transfer.printable import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOGETHER = 2**26  # bytes of tensors that are read at once
Values = Iterator[tuple[str, Tensor]]  # tensors one at a time


class StartingPoint(Protocol):
    """Weights that a training starts from."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Sums of names, weights and config: a checkpoint may be gone on from while they are the same."""

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model with its weights, rounded to a type."""

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """The same model with its tensors on the meta device, and its buffers real."""

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Values:
        """Those tensors of `load(dtype)`, in that order, one at a time."""


class BaseModel(OpenedBase):
    """A model as it is published: the starting point of a warm start."""

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "names_sha256": self.inventory.names_sha256, "fingerprint": self.weights.fingerprint,
            "config_sha256": self.weights.config_sha256,
        }  # fmt: skip

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        return load_model(self.source, dtype)

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        model = build_meta_model(copy.deepcopy(self.config), dtype)
        model.config.use_cache = False
        saved = model.state_dict().keys() & {name for name, _ in model.named_buffers()}
        strict = model._keep_in_fp32_modules_strict or ()
        for name in saved:
            if any(kept in name for kept in strict):  # as `from_pretrained` keeps them
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, model.get_buffer(name).float())
        if saved:
            self.weights.load(model, saved.__contains__, torch.device("cpu"), dtype)
        return model

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Values:
        model = build_meta_model(copy.deepcopy(self.config), dtype)
        names = list(names)
        ends = accumulate(model.get_parameter(name).nbytes for name in names)
        # Several at a time: each reading looks through all of the model's names.
        for _, group in groupby(zip(names, ends, strict=True), lambda one: one[1] // TOGETHER):
            known = {name: tied_names(model, name) for name, _ in group}  # a tied one may be saved as the head only
            self.weights.load(model, {*chain(*known.values())}.__contains__, torch.device("cpu"), dtype)
            values = {}
            for name, owners in known.items():
                found = [value for owner in owners if not (value := model.get_parameter(owner).detach()).is_meta]
                if not found:
                    raise ModelError(f"{self.source.name}: the weights lack {name}")
                values[name] = found[0]
            for module in {owner.rpartition(".")[0] for owner in chain(*known.values())}:
                release(model.get_submodule(module))
            yield from values.items()


def load_model(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """A model with its weights on the CPU, without a cache; whether they fit was seen when it was opened."""
    from transformers import AutoModelForCausalLM

    place = local_directory(source)
    plain = None if source.gguf else SafetensorsCheckpoint(place)
    options: dict[str, Any] = {"gguf_file": source.gguf} if plain is None else {"use_safetensors": True}
    if plain is not None and plain.dequantiser is not None:
        options["quantization_config"] = plain.dequantiser.quantiser.quantization_config
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as error:  # transformers raises many kinds; each is one message to the user
        raise ModelError(f"{source.name}: the model cannot be loaded: {first_line(error)}") from error
    if plain is not None and plain.dequantiser is not None:
        plain.settle(model)
    require_finite(f"{source.name} as {dtype_name(dtype)}", dict(model.state_dict()))
    model.config.use_cache = False
    return model
