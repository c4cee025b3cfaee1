"""Weights on disk, brought into a meta-device model a few tensors at a time.

Reads: safetensors shards (with their index) or a GGUF file. Names on disk are not the names at run time for every
model (a prefix is dropped, experts are fused), so what is read goes through the same conversion that transformers
applies in `from_pretrained`. Nothing here holds more than what was asked for.
"""

from __future__ import annotations

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.models.content import config_file_sha256, weights_sha256
from trace_transfer.models.dequantising import Dequantiser, dequantiser_of, round_to
from trace_transfer.models.door import quantisation_of, quantised_told
from trace_transfer.models.names_on_disk import Fused, LoadedNames, gguf_names
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
from trace_transfer.models.stored_weights import StoredWeights, read_config, stored_tensors
from trace_transfer.models.tensors import DTYPES, TensorSpec, read_rows, require_finite
from trace_transfer.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 1 << 14


class Checkpoint(ABC):
    """Weights of one model. `bytes_read` counts what was read from disk so far, `num_bytes` what lies there."""

    bytes_read: int

    @property
    @abstractmethod
    def files(self) -> list[Path]: ...

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

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
    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of one two-dimensional tensor, [len(index), width]."""

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> None:
        """Work out the names for a model, so that several threads may then read at once."""

    @abstractmethod
    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One tensor, flattened, some rows at a time: about `ELEMENTS_AT_ONCE` elements."""


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a model's weights and check that they are those of its config, reading headers only.

    Raises:
        ModelError: no weights, a shard missing, cut short or damaged, only formats that execute code on loading, or
            whatever `load_config` refuses.
    """
    directory = local_directory(source)
    return SafetensorsCheckpoint(directory) if source.gguf is None else GgufCheckpoint(directory / source.gguf)


def local_directory(source: ModelSource) -> Path:
    """Where a model's files lie on this machine, fetched from the hub if need be, and found to be usable.

    Raises:
        ModelError: they are not, or cannot be had.
    """
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

    What cannot be opened is told by whoever uses it.
    """
    for name in models:
        with suppress(ModelError):
            source = None if name is None else ModelSource.parse(name)
            if source is not None and source.directory is not None:
                weights_sha256(open_checkpoint(source).files, reporter)


@dataclass
class SafetensorsCheckpoint(Checkpoint):
    """A directory of safetensors shards."""

    directory: Path
    bytes_read: int = 0
    keys: dict[str, Path] = field(init=False)
    dequantiser: Dequantiser | None = field(init=False)
    _names: LoadedNames | None = field(init=False, default=None)
    _copying: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.dequantiser = dequantiser_of(read_config(self.directory))
        self.keys = {key: tensor.file for key, tensor in StoredWeights.read(self.directory).tensors.items()}

    @property
    def files(self) -> list[Path]:
        return sorted(set(self.keys.values()))

    @property
    def config_sha256(self) -> str:
        return config_file_sha256(self.directory)

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        names = self._names_for(model)
        on_disk = [key for key, name in names.at_run_time.items() if wanted(name)]
        quantiser = None if self.dequantiser is None else self.dequantiser.quantiser
        config = LoadStateDictConfig(
            dtype=dtype, device_map={"": device}, weight_mapping=names.mapping, hf_quantizer=quantiser
        )
        with _quiet_loading():
            tensors = self._on_device(dict(self._read(on_disk)), torch.device(device))
            info, _ = convert_and_load_state_dict_in_model(model, tensors, config)
        problems = [f"{name}: {error}" for name, error in info.conversion_errors.items()]
        problems += [f"{name}: on disk {list(a)}, expected {list(b)}" for name, a, b in sorted(info.mismatched_keys)]
        if problems:
            raise ModelError(f"{self.directory}: weights do not fit the config:\n" + listing(problems))
        self.settle(model, wanted)
        require_finite(str(self.directory), {name: value for name, value in _values(model) if wanted(name)})

    def settle(self, model: PreTrainedModel, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Round what transformers dequantised in a wider type than the model's own, as `chunks` gives it."""
        if self.dequantiser is not None:
            names = self._names_for(model)
            known = {name for name, _ in model.named_parameters()}
            made = [name for name in names.keys_of if name in known and wanted(name) and names.fused(name) is not None]
            round_to(model, made, self.dequantiser.dtype)

    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        from safetensors import safe_open

        if (fused := self._names_for(model).fused(name)) is not None:
            shape = tuple(model.get_parameter(name).shape)
            return self._joined(fused, fused.keys, shape)[index].to(dtype)
        names = tied_names(model, name)  # a tied embedding may have been saved as the head only
        key = next((key for key, found in self._names_for(model).at_run_time.items() if found in names), None)
        if key is None:
            raise ModelError(f"{self.directory}: the weights lack {name}")
        with safe_open(self.keys[key], framework="pt") as shard:
            slices = shard.get_slice(key)
            count, width = slices.get_shape()
            out = torch.empty(len(index), width, dtype=dtype)
            for start in range(0, count, ROWS_AT_ONCE):
                stop = min(start + ROWS_AT_ONCE, count)
                mine = ((index >= start) & (index < stop)).nonzero().flatten()
                if len(mine):
                    block = slices[start:stop]
                    self.bytes_read += block.nbytes
                    require_finite(str(self.directory), {name: block})
                    out[mine] = block[index[mine] - start].to(dtype)
        return out

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Element types on disk."""
        found = {tensor.dtype for file in self.files for tensor in stored_tensors(file).values()}
        return {DTYPES[name] for name in found if name in DTYPES}

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One tensor, flattened, some rows at a time: about `ELEMENTS_AT_ONCE` elements, as they are on disk.

        Of one that is fused from several tensors, no more than the tensors of some rows (experts) are in memory.

        Raises:
            ModelError: it is missing, of another shape, or of a type that cannot be compared.
        """
        names = self._names_for(model)
        if (fused := names.fused(name)) is not None:
            yield from self._fused_chunks(fused, shape)
            return
        at_run_time = names.at_run_time
        found = [key for key, known in at_run_time.items() if known == name]
        if not found:  # a tied embedding may have been saved as the head only
            aliases = tied_names(model, name)
            found = [key for key, known in at_run_time.items() if known in aliases][:1]
        if len(found) != 1:
            what = "lack" if not found else f"hold {len(found)} tensors for"
            raise ModelError(f"{self.directory}: the weights {what} {name}")
        for block in read_rows(self.keys[found[0]], found[0], shape, str(self.directory)):
            self.bytes_read += block.nbytes
            yield block

    def _fused_chunks(self, fused: Fused, shape: tuple[int, ...]) -> Iterator[Tensor]:
        by_row, whole = fused.by_row(shape[0]), None
        for start, stop in row_blocks(shape):
            if by_row:
                block = self._joined(fused, fused.keys_of_rows(start, stop), (stop - start, *shape[1:]))
            else:
                whole = self._joined(fused, fused.keys, shape) if whole is None else whole
                block = whole[start:stop]
            yield block.flatten()

    def _joined(self, fused: Fused, keys: Iterable[str], shape: tuple[int, ...]) -> Tensor:
        tensors = dict(self._read(keys))
        kinds = {tensor.dtype for tensor in tensors.values()}
        problem = None
        if fused.dequantiser is None and (not kinds <= set(DTYPES.values()) or len(kinds) != 1):
            found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "none"
            problem = f"types {found} on disk, expected one of {', '.join(DTYPES)}"
        else:
            try:
                block = fused.joined(tensors)
            except (RuntimeError, KeyError, StopIteration) as error:  # tensors that do not fit together
                problem = first_line(error)
            else:
                if tuple(block.shape) == shape:
                    require_finite(str(self.directory), {fused.name: block})
                    return block
                problem = f"{list(block.shape)} from {len(tensors)} tensors on disk, expected {list(shape)}"
        raise ModelError(f"{self.directory}: {fused.name}, which is made of several tensors there: {problem}")

    def prepare(self, model: PreTrainedModel) -> None:
        self._names_for(model)

    def _names_for(self, model: PreTrainedModel) -> LoadedNames:
        if self._names is None or self._names.model is not model:
            self._names = LoadedNames.of(model, self.keys, self.dequantiser)
        return self._names

    def _on_device(self, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """To a GPU from pinned memory in a stream of their own, beside what is computed; elsewhere as they are."""
        if device.type != "cuda":
            return tensors
        if self._copying is None:  # one: each stream has memory of its own
            self._copying = torch.cuda.Stream(device)
        with torch.cuda.stream(self._copying):
            there = {key: tensor.pin_memory().to(device, non_blocking=True) for key, tensor in tensors.items()}
        self._copying.synchronize()
        return there

    def _read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by their names on disk, each shard opened once; copies, so that no file stays mapped."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.keys[key], []).append(key)
        for file, names in by_file.items():
            with safe_open(file, framework="pt") as shard:
                for key in names:
                    tensor = shard.get_tensor(key)
                    self.bytes_read += tensor.nbytes
                    yield key, tensor


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors and buffers that were brought in."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_meta:
            yield name, value


def release(module: nn.Module) -> None:
    """Put a module's tensors back on the meta device, freeing their memory; buffers stay."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(part, name, nn.Parameter(empty, requires_grad=False))
    return_freed_memory()


def return_freed_memory() -> None:
    """Give freed memory back to the system; takes milliseconds, and does nothing where the C library is not glibc.

    glibc keeps freed blocks below 32 MB: over the 28 layers of a 1.5 B model it kept 500 MB more than was in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' own progress bar, one per layer."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


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
        return self._only_dtype or next(self.chunks(name)).dtype

    @cached_property
    def _only_dtype(self) -> torch.dtype | None:
        dtypes = self.weights.dtypes if isinstance(self.weights, SafetensorsCheckpoint) else {torch.float32}
        return next(iter(dtypes)) if len(dtypes) == 1 else None


def specs_of(base: OpenedBase, dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorSpec]:
    """All that a model made from a base holds, in the order in which it is written: tensors, then buffers.

    Args:
        dtypes: of all tensors; buffers are copied from the base as they are.

    Raises:
        ModelError: buffers that cannot be read; all are named.
    """
    bad = list(base.buffers) if base.source.gguf is not None else []
    if bad:
        raise ModelError(
            f"{base.source.name}: has values that are no tensors and that cannot be read from a GGUF file, so that "
            "no state of it can be written:\n" + listing(bad)
        )
    specs = {name: TensorSpec(dtypes[name], shape) for name, shape in base.inventory.shapes.items()}
    return specs | {name: TensorSpec(base.dtype(name), shape) for name, shape in base.buffers.items()}


class GgufCheckpoint(Checkpoint):
    """One GGUF file. Quantised tensors are de-quantised when they are loaded, one at a time."""

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader

        self.file = file
        self.bytes_read = 0
        try:
            self._reader = GGUFReader(file)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise ModelError(f"{file}: not a readable GGUF file, or cut short ({error})") from error
        self._bound: tuple[PreTrainedModel, Any, dict[str, str]] | None = None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def files(self) -> list[Path]:
        return [self.file]

    @property
    def config_sha256(self) -> str:
        return self.fingerprint

    def _names(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        """As `gguf_names`; made once per model."""
        if self._bound is None or self._bound[0] is not model:
            self._bound = (model, *gguf_names(model, self._reader, self.file))
        return self._bound[1], self._bound[2]

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        processor, names = self._names(model)
        for gguf_name, name in names.items():
            if not wanted(name) or gguf_name not in self._tensors:
                continue
            values = self._values(processor, gguf_name, slice(None))
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            expected = tuple(getattr(module, leaf).shape)
            if tuple(values.shape) != expected:
                raise ModelError(f"{self.file}: {name} has shape {list(values.shape)}, expected {list(expected)}")
            setattr(module, leaf, nn.Parameter(values.to(device=device, dtype=dtype), requires_grad=False))

    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        processor, names = self._names(model)
        gguf_name = next((key for key, value in names.items() if value == name and key in self._tensors), None)
        if gguf_name is None:
            raise ModelError(f"{self.file}: the weights lack {name}")
        return self._values(processor, gguf_name, index.numpy()).to(dtype)

    def prepare(self, model: PreTrainedModel) -> None:
        self._names(model)

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        processor, names = self._names(model)
        aliases = {name} | tied_names(model, name)
        gguf_name = next((key for key, value in names.items() if value in aliases and key in self._tensors), None)
        if gguf_name is None:
            raise ModelError(f"{self.file}: the weights lack {name}")
        values = self._values(processor, gguf_name, slice(None))
        if tuple(values.shape) != shape:
            raise ModelError(f"{self.file}: {name} has shape {list(values.shape)}, expected {list(shape)}")
        for start, stop in row_blocks(shape):
            yield values[start:stop].flatten()

    def _values(self, processor: Any, gguf_name: str, rows: Any) -> Tensor:
        from gguf import dequantize

        tensor = self._tensors[gguf_name]
        data = tensor.data[rows]
        self.bytes_read += data.nbytes
        weights = dequantize(data, tensor.tensor_type)
        result = processor.process(weights=weights, name=gguf_name, tensor_key_mapping={}, parsed_parameters={})
        values = torch.from_numpy(np.ascontiguousarray(result.weights).copy())
        require_finite(str(self.file), {gguf_name: values})
        return values
