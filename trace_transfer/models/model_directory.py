"""A model written as an ordinary directory that `from_pretrained` loads, a tensor at a time, whole or not at all.

Reads: config, tokenizer and whatever else belongs to the model that it was made from. Writes, under a hidden name that
is changed to the right one at the end: safetensors shards with the names on disk that `save_pretrained` gives, their
index, the config, copies of all that lies beside the base's weights and belongs to it, and what the caller gives.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.errors import UserError
from trace_transfer.files import DiskFullError, is_disk_full, new_directory, prepare_directory, sync
from trace_transfer.models.names_on_disk import SavedNames
from trace_transfer.models.sources import FOLDERS, KEPT, ModelSource, download
from trace_transfer.models.stored_weights import CONFIG_NAME, INDEX_NAME
from trace_transfer.models.tensors import TensorSpec, writing_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEFT = (
    CONFIG_NAME, "*.index.json", "README*", "adapter_*", ".*", "trainer_state.json", "training_args*", "optimizer*",
    "scheduler*", "rng_state*", "*_results.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5",
    "*.msgpack", "*.onnx",
)  # fmt: skip
SHARD_BYTES = 5_000_000_000  # as transformers does


def write_model_directory(
    source: ModelSource, config: Any, specs: Mapping[str, TensorSpec], values: Iterable[tuple[str, Iterable[Tensor]]],
    directory: Path, *, model: PreTrainedModel, texts: Mapping[str, str] | None = None, replace: bool = False,
) -> None:  # fmt: skip
    """Write a model's directory, or after an error nothing.

    Args:
        specs: all tensors, by their names at run time, in the order in which they will come.
        values: each tensor in pieces, in the order of its elements; one that is several on disk is whole in memory.
        model: the same model on the meta device, which tells the names on disk.
        texts: further files, name → content.
        replace: what is in the directory goes when the new model is whole; otherwise only an empty one is taken.
    """
    require_room(directory, replace)
    directory = directory.absolute()
    prepare_directory(directory.parent)
    saved = SavedNames(model)
    layouts = {name: saved.shapes(name, spec.shape) for name, spec in specs.items()}

    def on_disk() -> Iterator[tuple[str, Iterable[Tensor]]]:
        for name, blocks in values:
            if list(layouts[name]) == [name]:
                yield name, blocks
            else:
                first, *others = blocks
                whole = torch.cat([first, *others]) if others else first
                cut = saved.cut(name, whole.view(specs[name].shape))
                yield from ((key, (cut[key],)) for key in layouts[name])

    stored = {
        key: TensorSpec(specs[name].dtype, shape) for name, layout in layouts.items() for key, shape in layout.items()
    }
    shards, coming = _shards(stored), on_disk()
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": sum(spec.num_bytes for spec in specs.values())},
        "weight_map": dict(sorted((key, file) for file, shard in zip(files, shards, strict=True) for key in shard)),
    }
    texts = {INDEX_NAME: json.dumps(index, indent=2, ensure_ascii=False) + "\n", **(texts or {})}
    try:
        with new_directory(directory, replace) as temporary:
            _write_companions(source, temporary)
            for file, shard in zip(files, shards, strict=True):
                with writing_tensors(temporary / file, shard, {"format": "pt"}) as writer:
                    for key, blocks in islice(coming, len(shard)):
                        writer.add_blocks(key, blocks)
            if (more := next(coming, None)) is not None:
                raise ValueError(f"{more[0]}: written before, or not one of the expected tensors")
            _write_config(config, specs, model, temporary)
            for name, text in texts.items():
                (temporary / name).write_text(text, "utf-8")
            for written in temporary.rglob("*"):
                sync(written)
    except Exception as error:
        if is_disk_full(error) or isinstance(error, DiskFullError):
            # Told of the directory, not of a file in it that nobody will see.
            raise DiskFullError.writing(directory) from error
        raise


def _write_config(config: Any, specs: Mapping[str, TensorSpec], model: PreTrainedModel, directory: Path) -> None:
    """The config, its type the one that holds all that is stored, so that loading loses nothing."""
    config = copy.deepcopy(config)
    config.architectures = config.architectures or [type(model).__name__]  # a GGUF file does not say it
    widest = reduce(torch.promote_types, (spec.dtype for spec in specs.values()))
    config.dtype = str(widest).removeprefix("torch.")
    config.save_pretrained(directory)


def _write_companions(source: ModelSource, directory: Path) -> None:
    """All that belongs to a model, byte for byte; of a GGUF file, a tokenizer is made of what it holds."""
    if source.gguf is not None:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source.directory, gguf_file=source.gguf).save_pretrained(directory)
        return
    model = source.directory or download(source)
    here = [file for file in model.iterdir() if any(fnmatch(file.name, one) for one in KEPT)]
    below = [file for folder in FOLDERS for file in (model / folder).glob("*")]
    for file in (*here, *below):
        if file.is_file() and not any(fnmatch(file.name, one) for one in LEFT):
            place = directory / file.relative_to(model)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


def require_room(directory: Path, replace: bool = False) -> None:
    """Refuse a directory that holds something."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: a file, expected the name of a directory to be made")
    if not replace and directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory}: not empty; name another --out, or remove it")


def _shards(specs: Mapping[str, TensorSpec]) -> list[dict[str, TensorSpec]]:
    """Cut in order, none larger than `SHARD_BYTES` but for a single tensor."""
    shards: list[dict[str, TensorSpec]] = []
    room = 0
    for name, spec in specs.items():
        if not shards or spec.num_bytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = spec
        room -= spec.num_bytes
    return shards
