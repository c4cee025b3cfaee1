"""Tensors of safetensors files, some rows at a time, by plain reads in the order of the file.

The library maps files, and a mapped file comes from a cold disk page by page; read in order it comes much faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trace_transfer.errors import ModelError
from trace_transfer.models import row_blocks
from trace_transfer.text_formats import read_tensor_header

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_rows(file: Path, key: str, shape: tuple[int, ...], owner: str) -> Iterator[Tensor]:
    """One tensor, flattened, in blocks of whole rows as `row_blocks` cuts them, as it is on disk.

    Args:
        owner: whose it is, for messages.

    Raises:
        ModelError: it is of another shape or of an element type that cannot be compared, or the file is cut short.
    """
    stat = file.stat()
    start, header = _header(file, stat.st_size, stat.st_mtime_ns)
    entry = header[key]
    if tuple(entry["shape"]) != shape:
        raise ModelError(f"{owner}: {key} is {entry['shape']} on disk, expected {list(shape)}")
    if entry["dtype"] not in DTYPES:
        raise ModelError(f"{owner}: {key} is of type {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    width = (entry["data_offsets"][1] - entry["data_offsets"][0]) // (shape[0] if shape else 1)  # bytes of a row
    with file.open("rb", buffering=0) as stream:
        stream.seek(start + entry["data_offsets"][0])
        for first, last in row_blocks(shape):
            block = bytearray((last - first) * width)
            if stream.readinto(block) != len(block):
                raise ModelError(f"{owner}: {file.name} is cut short within {key}; have it made or downloaded again")
            yield torch.frombuffer(block, dtype=dtype)


@lru_cache(maxsize=1024)
def _header(file: Path, size: int, changed: int) -> tuple[int, Mapping[str, Any]]:
    """Where the data begin, and what the file holds; size and time are those for which it was read."""
    return read_tensor_header(file, ModelError)
