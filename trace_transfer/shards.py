"""Tensors of safetensors files, some rows at a time, by plain reads in the order of the file.

The library maps files, and a mapped file comes from a cold disk page by page; read in order it comes much faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.errors import ModelError
from trace_transfer.models import row_blocks
from trace_transfer.stored_weights import stored_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_rows(file: Path, key: str, shape: tuple[int, ...], owner: str) -> Iterator[Tensor]:
    """One tensor, flattened, in blocks of whole rows as `row_blocks` cuts them, as it is on disk.

    Args:
        owner: whose it is, for messages.

    Raises:
        ModelError: it is of another shape or of an element type that cannot be compared, or the file is cut short.
    """
    entry = stored_tensors(file)[key]
    if entry.shape != shape:
        raise ModelError(f"{owner}: {key} is {list(entry.shape)} on disk, expected {list(shape)}")
    if entry.dtype not in DTYPES:
        raise ModelError(f"{owner}: {key} is of type {entry.dtype}, expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry.dtype]
    width = (entry.stop - entry.start) // (shape[0] if shape else 1)  # bytes of a row
    with file.open("rb", buffering=0) as stream:
        stream.seek(entry.start)
        for first, last in row_blocks(shape):
            block = bytearray((last - first) * width)
            if stream.readinto(block) != len(block):
                raise ModelError(f"{owner}: {file.name} is cut short within {key}; have it made or downloaded again")
            yield torch.frombuffer(block, dtype=dtype)
