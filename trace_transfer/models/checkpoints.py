"""Weights on disk, brought into a meta-device model a few parameters at a time.

Reads: safetensors shards (with their index) or a GGUF file. Names on disk are not the names at run time for every
model (a prefix is dropped, experts are fused), so what is read goes through the same conversion that transformers
applies in `from_pretrained`. Nothing here holds more than what was asked for.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.models.companions import CONFIG, FOLDERS, KEPT
from trace_transfer.models.content import weights_sha256
from trace_transfer.models.door import quantisation_of, quantised_told
from trace_transfer.models.names_on_disk import Fused, LoadedNames
from trace_transfer.models.shards import DTYPES, read_rows, require_finite
from trace_transfer.models.sources import ModelSource, load_config, row_blocks, tied_names
from trace_transfer.models.stored_weights import StoredWeights, stored_tensors
from trace_transfer.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 1 << 14


class Checkpoint(Protocol):
    """Weights of one model. `bytes_read` counts what was read from disk so far, `num_bytes` what lies there."""

    bytes_read: int

    @property
    def files(self) -> list[Path]: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what its files hold, remembered: as `content.weights_sha256` says."""
        ...

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        """Bring the parameters whose run-time name is wanted from disk into the model."""
        ...

    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of one two-dimensional parameter, [len(index), width]."""
        ...

    def prepare(self, model: PreTrainedModel) -> None:
        """Work out the names for a model, so that several threads may then read at once."""
        ...

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One parameter, flattened, some rows at a time: about `ELEMENTS_AT_ONCE` elements."""
        ...


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a model's weights and check that they are those of its config, reading headers only.

    Raises:
        ModelError: no weights, a shard missing, cut short or damaged, only formats that execute code on loading, or
            whatever `load_config` refuses.
    """
    directory = local_directory(source)
    if source.gguf is None:
        return SafetensorsCheckpoint(directory)
    from trace_transfer.models.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(directory / source.gguf)


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


def download(source: ModelSource) -> Path:
    """Fetch a hub model's safetensors, config, card and all that belongs to it; returns the local snapshot.

    Raises:
        ModelError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, "*.safetensors", "*.safetensors.index.json", *KEPT, *(f"{folder}/*" for folder in FOLDERS)]
    patterns.append("README.md")  # for its licence
    try:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each is one message to the user
        raise ModelError(f"{source.name}: could not be had from the hub: {first_line(error)}") from error


@dataclass
class SafetensorsCheckpoint:
    """A directory of safetensors shards."""

    directory: Path
    bytes_read: int = 0
    keys: dict[str, Path] = field(init=False)
    _names: LoadedNames | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.keys = {key: tensor.file for key, tensor in StoredWeights.read(self.directory).tensors.items()}

    @property
    def files(self) -> list[Path]:
        return sorted(set(self.keys.values()))

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def fingerprint(self) -> str:
        return weights_sha256(self.files)

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool], device: Any, dtype: torch.dtype) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        names = self._names_for(model)
        on_disk = [key for key, name in names.at_run_time.items() if wanted(name)]
        config = LoadStateDictConfig(dtype=dtype, device_map={"": device}, weight_mapping=names.mapping)
        with _quiet_loading():
            tensors = dict(self._read(on_disk))
            info, _ = convert_and_load_state_dict_in_model(model, tensors, config)
        problems = [f"{name}: {error}" for name, error in info.conversion_errors.items()]
        problems += [f"{name}: on disk {list(a)}, expected {list(b)}" for name, a, b in sorted(info.mismatched_keys)]
        if problems:
            raise ModelError(f"{self.directory}: weights do not fit the config:\n" + listing(problems))
        require_finite(str(self.directory), {name: value for name, value in _values(model) if wanted(name)})

    def rows(self, model: PreTrainedModel, name: str, index: Tensor, dtype: torch.dtype) -> Tensor:
        from safetensors import safe_open

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
        """One parameter, flattened, some rows at a time: about `ELEMENTS_AT_ONCE` elements, as they are on disk.

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
        if not kinds <= set(DTYPES.values()) or len(kinds) != 1:
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
            self._names = LoadedNames.of(model, self.keys)
        return self._names

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
    """Parameters and buffers that were brought in."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_meta:
            yield name, value


def release(module: nn.Module) -> None:
    """Put a module's parameters back on the meta device, freeing their memory; buffers stay."""
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
