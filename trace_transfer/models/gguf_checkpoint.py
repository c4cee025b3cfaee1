"""A GGUF file as a checkpoint: its tensors are mapped, named and de-quantised one by one, as transformers would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trace_transfer.errors import ModelError
from trace_transfer.models.content import weights_sha256
from trace_transfer.models.shards import require_finite
from trace_transfer.models.sources import row_blocks, tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GgufCheckpoint:
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
    def num_bytes(self) -> int:
        return self.file.stat().st_size

    @property
    def fingerprint(self) -> str:
        return weights_sha256(self.files)

    @cached_property
    def _architecture(self) -> str:
        from transformers.modeling_gguf_pytorch_utils import read_field

        return str(read_field(self._reader, "general.architecture")[0])

    def _names(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        """transformers' tensor processor of this architecture, and GGUF name → run-time name; made once per model."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        if self._bound is None or self._bound[0] is not model:
            make: Any = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)
            processor = make(config=model.config.to_dict())
            try:
                self._bound = (model, processor, get_gguf_hf_weights_map(model, processor))
            except NotImplementedError as error:
                kind = model.config.model_type
                raise ModelError(f"{self.file}: GGUF files of '{kind}' cannot be read ({error})") from error
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
