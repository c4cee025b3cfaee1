"""Tensors of safetensors files, some rows at a time, by plain reads in the order of the file.

The library maps files, and a mapped file comes from a cold disk page by page; read in order it comes much faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, listing
from trace_transfer.models.bits import all_finite
from trace_transfer.models.sources import row_blocks
from trace_transfer.models.stored_weights import stored_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_rows(file: Path, key: str, shape: tuple[int, ...], owner: str) -> Iterator[Tensor]:
    """One tensor, flattened, in blocks of whole rows as `row_blocks` cuts them, as it is on disk.

    Args:
        owner: whose it is, for messages.

    Raises:
        ModelError: it is of another shape or of an element type that cannot be compared, holds NaN or Inf, or the file
            is cut short.
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
            values = torch.frombuffer(block, dtype=dtype)
            require_finite(owner, {key: values})
            yield values


def require_finite(owner: str, values: Mapping[str, Tensor]) -> None:
    """Refuse weights that say nothing, wherever they are read: whatever is computed of them is noise, or NaN.

    Raises:
        ModelError: NaN or Inf; all names are told.
    """
    if bad := [name for name, value in values.items() if not all_finite(value)]:
        raise ModelError(
            f"{owner}: NaN or Inf in {len(bad)} tensor{'s' if len(bad) > 1 else ''}; the file is damaged, or the "
            "training that made it diverged:\n" + listing(bad)
        )
