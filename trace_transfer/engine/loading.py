"""The model that a training starts from, with its weights in memory.

Reads: config and weights of a directory, a GGUF file or a hub model, through transformers.
"""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from logging import Handler
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.models.checkpoints import OpenedBase, SafetensorsCheckpoint, local_directory, release
from trace_transfer.models.sources import ModelSource, build_meta_model, tied_names
from trace_transfer.models.tensors import dtype_name, require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REPORT = "LOAD REPORT"  # what transformers' errors mean by "the above report"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
        for name in names:
            known = tied_names(model, name)  # a tied embedding may have been saved as the head only
            self.weights.load(model, known.__contains__, torch.device("cpu"), dtype)
            found = [owner for owner in known if not model.get_parameter(owner).is_meta]
            if not found:
                raise ModelError(f"{self.source.name}: the weights lack {name}")
            yield name, model.get_parameter(found[0]).detach()
            for owner in known:
                release(model.get_submodule(owner.rpartition(".")[0]))


def load_model(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """A model with its weights on the CPU, without a cache for generation; a ModelError names what does not fit."""
    from transformers import AutoModelForCausalLM

    place = local_directory(source)
    plain = None if source.gguf else SafetensorsCheckpoint(place)
    options: dict[str, Any] = {"gguf_file": source.gguf} if plain is None else {"use_safetensors": True}
    if plain is not None and plain.dequantiser is not None:
        options["quantization_config"] = plain.dequantiser.quantiser.quantization_config
    with _quiet() as said:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(  # annotated there as if it never gave the info as well
                place,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,  # they are refused below, by their names
            )
        except Exception as error:  # transformers raises many kinds; each is one message to the user
            report = "".join(f"\n{_COLOUR.sub('', one)}" for one in said if _REPORT in one)
            raise ModelError(f"{source.name}: the model cannot be loaded: {first_line(error)}{report}") from error
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    problems = [f"{name}: not in the weights" for name in sorted(info["missing_keys"])]
    problems += [
        f"{name}: {list(found)} in the weights, {list(expected)} by its config"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    problems += [f"{name}: {error}" for name, error in dict(info.get("conversion_errors") or {}).items()]
    if problems:
        raise ModelError(f"{source.name}: its weights do not fit its config:\n" + listing(problems))
    if plain is not None and plain.dequantiser is not None:
        plain.settle(model)
    require_finite(f"{source.name} as {dtype_name(dtype)}", dict(model.state_dict()))
    model.config.use_cache = False
    return model


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Without transformers' bars (of GGUF files on stderr), reports and warnings; gives the list that those go to."""
    from transformers.utils import logging

    said: list[str] = []
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logger, listener = logging.get_logger("transformers"), Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    handlers, logger.handlers = logger.handlers, [listener]
    logging.set_verbosity_warning()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logger.handlers = handlers
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
