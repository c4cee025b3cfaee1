"""Where a model computes, in which type, and layers that do something else for a while within its own forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch
from torch import nn

from trace_transfer.errors import UserError, first_line
from trace_transfer.models.sources import build_meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's own threads rest while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def layers_of(model: nn.Module, layer_path: str) -> list[nn.Module]:
    """The layers in the list at a module path (`model.layers`)."""
    return list(cast(nn.ModuleList, model.get_submodule(layer_path)))


@contextmanager
def replaced_forwards(layers: Sequence[nn.Module], forwards: Sequence[Any]) -> Iterator[None]:
    """Layers that do something else while it lasts."""
    with ExitStack() as stack:
        for layer, forward in zip(layers, forwards, strict=True):
            stack.enter_context(patch.object(layer, "forward", forward))
        yield


def resolve_device(name: str) -> str:
    """`auto` is the first GPU where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not available here ({first_line(error)})") from error
    return name


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is float32 on a CPU (bf16 runs at a quarter of its speed where it is not native), bfloat16 on a GPU."""
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def attend(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Let a model use an implementation of attention that transformers knows; `auto` is transformers' own choice."""
    if attention == "auto":
        return model
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {attention}: not available here ({first_line(error)})") from error
    if model.config._attn_implementation == before != attention:
        raise UserError(f"--attention {attention}: {type(model).__name__} has {before} alone")
    return model


def require_attention(config: PretrainedConfig, attention: str) -> None:
    """Refuse, before weights are read, what `attend` refuses."""
    if attention != "auto":
        attend(build_meta_model(copy.deepcopy(config)), attention)


def on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """Bring a model there; returns it."""
    model.to(device)  # type: ignore[arg-type]  # transformers wraps `to`, and its type forgets that it is a method
    return model
