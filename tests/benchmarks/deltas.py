"""Norms and cosines of four fine-tuned models from one read of all shards, against that read with nothing done and
against loading all models: seconds, GB/s and peak memory, each in a process of its own. Cold: the files were dropped
from the page cache first, so that the disk is read; warm: they are in it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from tests.benchmarks.streaming import write_checkpoint
from tests.benchmarks.table import in_child, is_small, race, seconds, show, watched
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.deltas import plan_deltas, read_deltas
from trace_transfer.progress import Silent

FULL = {"num_hidden_layers": 12, "hidden_size": 1536, "intermediate_size": 6144, "vocab_size": 65536}
SMALL = {"num_hidden_layers": 2, "hidden_size": 384, "intermediate_size": 1024, "vocab_size": 8000}
TASKS = ("math", "code", "law", "medicine")


def one_pass(folder: Path) -> None:
    """What `trace-transfer score` does."""
    read_deltas(plan_deltas(*opened(folder)), Silent())


def bare_read(folder: Path) -> None:
    """The same bytes, read into a buffer and forgotten."""
    buffer = bytearray(1 << 20)
    for file in sorted(folder.glob("*/*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def whole_models(folder: Path) -> None:
    """All models loaded, then norms and cosines tensor by tensor, as the authors' scripts do."""
    states = []
    for name in ("base", *TASKS):
        states.append({})
        for file in sorted((folder / name).glob("*.safetensors")):
            states[-1] |= load_file(file)
    base, *tuned = states
    for name, values in base.items():
        deltas = [(state[name].float() - values.float()).flatten() for state in tuned]
        for j, one in enumerate(deltas):
            one.norm()
            for other in deltas[:j]:
                torch.nn.functional.cosine_similarity(one, other, dim=0)


WAYS = {"one pass: read_deltas": one_pass, "bare read": bare_read, "whole models, pair by pair": whole_models}
TIMES = dict(zip(WAYS, (5, 5, 1), strict=True))  # the last takes long, and is far off


def opened(folder: Path) -> tuple:
    registry = load_families()
    return open_model(folder / "base", registry), {task: open_model(folder / task, registry) for task in TASKS}


def evict(folder: Path) -> None:
    """Drop the files from the page cache; what was written must be on the disk for that."""
    os.sync()
    for file in folder.glob("*/*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(way: str, place: str, cache: str) -> dict[str, float]:
    folder = Path(place)
    opened(folder)  # what is imported late is not what is measured
    if cache == "cold":
        evict(folder)
    with watched() as peak:
        wall = seconds(lambda: WAYS[way](folder))
    return {"seconds": wall, "own": peak.own}


def main() -> None:
    sizes = SMALL if is_small(__doc__) else FULL
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed, name in enumerate(("base", *TASKS)):
            (folder / name).mkdir()
            write_checkpoint(folder / name, sizes, seed)
        on_disk = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        for cache in ("cold", "warm"):
            found = {way: [in_child("deltas", way, folder, cache) for _ in range(n)] for way, n in TIMES.items()}
            middle = {way: median(one["seconds"] for one in runs) for way, runs in found.items()}
            rows += [
                (
                    f"{way}, {cache}", f"{middle[way]:.2f}", f"{on_disk / middle[way] / 1e9:.2f}",
                    f"{middle['bare read'] / middle[way]:.2f}", f"{max(one['own'] for one in runs) / 1e6:,.0f} MB",
                )
                for way, runs in found.items()
            ]  # fmt: skip
    show(
        f"Norms and cosines of {len(TASKS)} models and their base, {on_disk / 1e9:.2f} GB of bf16 on disk; medians of "
        f"{max(TIMES.values())} runs",
        rows,
        ("", "seconds", "GB/s", "of a bare read", "peak memory above imports"),
    )


if __name__ == "__main__":
    race(main, measured)
