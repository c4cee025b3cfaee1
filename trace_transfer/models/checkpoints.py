"""Weights on disk, brought into a meta-device model a few tensors at a time.

Reads: safetensors shards (with their index) or a GGUF file. Names on disk are not the names at run time for every
model (a prefix is dropped, experts are fused), so what is read goes through the same conversion that transformers
applies in `from_pretrained`. Nothing here holds more than what was asked for.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trace_transfer.errors import ModelError
from trace_transfer.models.content import values_sha256, weights_sha256
from trace_transfer.models.door import quantisation_of, quantised_told
from trace_transfer.models.names_on_disk import Fused, LoadedNames, dequantiser_of, gguf_names, open_gguf
from trace_transfer.models.sources import (
    Inventory,
    ModelSource,
    build_meta_model,
    download,
    inventory_of,
    load_config,
    row_blocks,
    tied_names,
)
from trace_transfer.models.stored_weights import CONFIG_NAME, read_leniently, read_stored
from trace_transfer.models.tensors import DTYPES, TensorSpec, dtype_name, read_any, read_rows, require_finite
from trace_transfer.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Checkpoint(ABC):
    """Weights of one model, in `files`. `bytes_read` counts what was read from disk so far."""

    files: list[Path]
    dtypes: set[torch.dtype]  # on disk; of a GGUF file, in which it is read
    bytes_read: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what its files hold, remembered: as `content.weights_sha256` says."""
        return weights_sha256(self.files)

    @property
    @abstractmethod
    def config_sha256(self) -> str:
        """Of what the config beside them says; of a GGUF file it is in the file."""

    @abstractmethod
    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        """Bring the tensors whose run-time name is wanted from disk into the model."""

    @abstractmethod
    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One tensor, flattened, some rows at a time: about `ELEMENTS_AT_ONCE` elements, as they are on disk."""

    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of one two-dimensional tensor, [len(index), width]."""
        shape = tuple(model.get_parameter(name).shape)
        out = torch.empty(len(index), shape[1], dtype=dtype)
        for (start, stop), block in zip(row_blocks(shape), self.chunks(model, name, shape), strict=True):
            mine = ((index >= start) & (index < stop)).nonzero().flatten()
            out[mine] = block.view(-1, shape[1])[index[mine] - start].to(dtype)
        return out


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a model's weights and check that they are those of its config, reading headers only."""
    directory = local_directory(source)
    return SafetensorsCheckpoint(directory) if source.gguf is None else GgufCheckpoint(directory / source.gguf)


def local_directory(source: ModelSource) -> Path:
    """Where a model's files lie on this machine, fetched from the hub if need be, and found to be usable."""
    if source.directory is not None:
        if source.gguf is None:
            load_config(source)
        return source.directory
    if method := quantisation_of(load_config(source).to_dict()):  # before gigabytes are fetched
        raise ModelError(f"{source.name}: {quantised_told([f'quantization_config in config.json ({method})'])}")
    directory = download(source)
    load_config(replace(source, directory=directory))
    return directory


def hash_weights(models: Iterable[str | Path | None], reporter: Reporter) -> None:
    """Hash the weights of models that lie here, with a bar where that takes long, so that all later looks are free.

    What cannot be opened is told by whoever uses it."""
    for name in models:
        with suppress(ModelError):
            source = None if name is None else ModelSource.parse(name)
            if source is not None and source.directory is not None:
                weights_sha256(open_checkpoint(source).files, reporter)


class SafetensorsCheckpoint(Checkpoint):
    """A directory of safetensors shards; `stored` are its tensors by their names on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dequantiser = dequantiser_of(read_leniently(directory / CONFIG_NAME))
        self.stored = read_stored(directory)
        self.files = sorted({tensor.file for tensor in self.stored.values()})
        self.dtypes = {DTYPES[tensor.dtype] for tensor in self.stored.values() if tensor.dtype in DTYPES}
        self._names: LoadedNames | None = None
        self._lock = Lock()  # several threads may read at once

    @property
    def config_sha256(self) -> str:
        return values_sha256(self.directory / CONFIG_NAME)

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        names = self._names_for(model)
        names.load(self._read(key for key, name in names.at_run_time.items() if wanted(name)), device, dtype)
        self.settle(model, wanted)
        values = (*model.named_parameters(), *model.named_buffers())
        require_finite(
            str(self.directory), {name: value for name, value in values if wanted(name) and not value.is_meta}
        )

    def settle(self, model: PreTrainedModel, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Round what transformers dequantised in a wider type than the model's own, as `chunks` gives it."""
        if self.dequantiser is not None:
            names = self._names_for(model)
            for name, parameter in model.named_parameters():
                if wanted(name) and not parameter.is_meta and names.fused(name) is not None:
                    parameter.data = parameter.data.to(self.dequantiser.dtype).to(parameter.dtype)

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """As said above; of a tensor that is fused from several, no more than those of some rows are in memory."""
        names = self._names_for(model)
        if (fused := names.fused(name)) is not None:
            whole = None if fused.by_row(shape[0]) else self._joined(fused, fused.keys())
            for start, stop in row_blocks(shape):
                block = self._joined(fused, fused.keys(start, stop)) if whole is None else whole[start:stop]
                yield block.flatten()
            return
        known = [name] if name in names.keys_of else tied_names(model, name)  # may have been saved as the head only
        key = next((names.keys_of[one][0] for one in known if one in names.keys_of), None)
        if key is None:
            raise ModelError(f"{self.directory}: the weights lack {name}")
        for block in read_rows(self.stored[key].file, key, shape, str(self.directory)):
            self.bytes_read += block.nbytes
            yield block

    def _joined(self, fused: Fused, keys: Iterable[str]) -> Tensor:
        """Their shapes fit together (`door.examine`)."""
        tensors = self._read(keys)
        kinds = {tensor.dtype for tensor in tensors.values()}
        if fused.dequantiser is None and (not kinds <= set(DTYPES.values()) or len(kinds) != 1):
            found = ", ".join(sorted(map(dtype_name, kinds)))
            raise ModelError(
                f"{self.directory}: {fused.name}, which is made of several tensors there: types {found} on disk, "
                f"expected one of {', '.join(DTYPES)}"
            )
        block = fused.joined(tensors)
        require_finite(str(self.directory), {fused.name: block})
        return block

    def _names_for(self, model: PreTrainedModel) -> LoadedNames:
        with self._lock:
            if self._names is None or self._names.model is not model:
                self._names = LoadedNames.of(model, self.stored, self.dequantiser)
            return self._names

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Whole tensors by their names on disk."""
        tensors = {key: read_any(self.stored[key].file, key) for key in keys}
        self.bytes_read += sum(tensor.nbytes for tensor in tensors.values())
        return tensors


def release(module: nn.Module) -> None:
    """Put a module's tensors back on the meta device, freeing their memory; buffers stay."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(part, name, nn.Parameter(empty, requires_grad=False))
    return_freed_memory()


def return_freed_memory() -> None:
    """Give freed memory back to the system; takes milliseconds, and does nothing where the C library is not glibc.

    glibc keeps freed blocks below 32 MB: over the 28 layers of a 1.5 B model it kept 500 MB more than was in use."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@dataclass(frozen=True)
class OpenedBase:
    """A base whose config, names and weights are opened once for all states that are made of it."""

    source: ModelSource

    @cached_property
    def config(self) -> Any:
        return load_config(self.source)

    @cached_property
    def meta_model(self) -> PreTrainedModel:
        return build_meta_model(self.config)

    @cached_property
    def inventory(self) -> Inventory:
        return inventory_of(self.meta_model)

    @cached_property
    def weights(self) -> Checkpoint:
        return open_checkpoint(self.source)

    @cached_property
    def buffers(self) -> Mapping[str, tuple[int, ...]]:
        """What is saved with the tensors but is none, and so is never trained: name → shape."""
        parameters = {name for name, _ in self.meta_model.named_parameters(remove_duplicate=False)}
        state = self.meta_model.state_dict()
        return {name: tuple(value.shape) for name, value in state.items() if name not in parameters}

    def chunks(self, name: str) -> Iterator[Tensor]:
        """One tensor (or buffer), flattened, some rows at a time, as it is on disk."""
        shape = self.inventory.shapes.get(name)
        return self.weights.chunks(self.meta_model, name, self.buffers[name] if shape is None else shape)

    def dtype(self, name: str) -> torch.dtype:
        """In which a tensor (or buffer) is on disk; of a GGUF file, in which it is read."""
        dtypes = self.weights.dtypes
        return next(iter(dtypes)) if len(dtypes) == 1 else next(self.chunks(name)).dtype


def specs_of(base: OpenedBase, dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorSpec]:
    """All that a model made from a base holds, in the order in which it is written: tensors, in these types, then
    buffers, as the base has them."""
    specs = {name: TensorSpec(dtypes[name], shape) for name, shape in base.inventory.shapes.items()}
    return specs | {name: TensorSpec(base.dtype(name), shape) for name, shape in base.buffers.items()}


class GgufCheckpoint(Checkpoint):
    """One GGUF file. Quantised tensors are de-quantised when they are loaded, one at a time."""

    def __init__(self, file: Path) -> None:
        self.file, self.files, self.dtypes = file, [file], {torch.float32}
        try:
            self._reader = open_gguf(file)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise ModelError(f"{file}: not a readable GGUF file, or cut short ({error})") from error
        self._model: PreTrainedModel | None = None
        self._bound: tuple[Any, dict[str, str]] = (None, {})
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def config_sha256(self) -> str:
        return self.fingerprint

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        for name in self._bound_to(model)[1]:
            if wanted(name):
                owner, _, leaf = name.rpartition(".")
                module = model.get_submodule(owner)
                values = self._values(model, name, tuple(getattr(module, leaf).shape))
                setattr(module, leaf, nn.Parameter(values.to(device=device, dtype=dtype), requires_grad=False))

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        names = self._bound_to(model)[1]
        found = next(one for one in (name, *tied_names(model, name)) if one in names)
        values = self._values(model, found, shape)
        for start, stop in row_blocks(shape):
            yield values[start:stop].flatten()

    def _bound_to(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        """transformers' processor, and names at run time → names in the file, of what is there."""
        if self._model is not model:
            processor, names = gguf_names(model, self._reader, self.file)
            there = {name: key for key, name in names.items() if key in self._tensors}
            self._model, self._bound = model, (processor, there)
        return self._bound

    def _values(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Tensor:
        from gguf import dequantize

        processor, names = self._bound_to(model)
        key = names[name]
        tensor = self._tensors[key]
        self.bytes_read += tensor.data.nbytes
        weights = dequantize(tensor.data, tensor.tensor_type)
        found = processor.process(weights=weights, name=key, tensor_key_mapping={}, parsed_parameters={})
        values = torch.from_numpy(np.ascontiguousarray(found.weights).copy())
        require_finite(str(self.file), {key: values})
        if tuple(values.shape) != shape:
            raise ModelError(f"{self.file}: {name} has shape {list(values.shape)}, expected {list(shape)}")
        return values
