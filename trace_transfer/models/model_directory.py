"""A model written as an ordinary directory that `from_pretrained` loads, a tensor at a time, whole or not at all.

Reads: config, tokenizer and whatever else belongs to the model that it was made from. Writes, under a hidden name that
is changed to the right one at the end: safetensors shards with the names on disk that `save_pretrained` gives, their
index, the config, copies of all that lies beside the base's weights and belongs to it, and what the caller gives.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from trace_transfer.errors import UserError
from trace_transfer.files import DiskFullError, is_disk_full, new_directory, prepare_directory, sync
from trace_transfer.models.names_on_disk import SavedNames
from trace_transfer.models.sources import FOLDERS, KEPT, ModelSource, download
from trace_transfer.models.stored_weights import CONFIG_NAME, INDEX_NAME
from trace_transfer.models.tensors import TensorSpec, TensorWriter, writing_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEFT = (
    CONFIG_NAME, "*.index.json", "README*", "adapter_*", ".*", "trainer_state.json", "training_args*", "optimizer*",
    "scheduler*", "rng_state*", "*_results.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5",
    "*.msgpack", "*.onnx",
)  # fmt: skip
SHARD_BYTES = 5_000_000_000  # as transformers does


def copy_companions(model: Path, directory: Path) -> None:
    """Copy byte for byte the files that belong to a model in a directory."""
    here = [file for file in model.iterdir() if any(fnmatch(file.name, one) for one in KEPT)]
    below = [file for folder in FOLDERS for file in (model / folder).glob("*")]
    for file in (*here, *below):
        if file.is_file() and not any(fnmatch(file.name, one) for one in LEFT):
            place = directory / file.relative_to(model)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


class ModelWriter:
    """Writes a model's directory; a context manager that finishes it, or after an error leaves nothing.

    Nothing is touched until the first tensor comes, so that of several ranks one may write.

    Args:
        specs: all tensors, by their names at run time, in the order in which they will come.
        model: the same model on the meta device, which tells the names on disk.
        texts: further files, name → content.
        replace: what is in the directory goes when the new model is whole; otherwise only an empty one is taken.
    """

    def __init__(
        self, source: ModelSource, config: Any, specs: Mapping[str, TensorSpec], directory: Path, *,
        model: PreTrainedModel, texts: Mapping[str, str] | None = None, replace: bool = False,
        shard_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.source, self.config, self.specs = source, config, specs
        self.saved, self.texts = SavedNames(model), dict(texts or {})
        self.layouts = {name: self.saved.shapes(name, spec.shape) for name, spec in specs.items()}
        self.directory, self.replace = Path(directory).absolute(), replace
        stored = {
            key: TensorSpec(specs[name].dtype, shape)
            for name, layout in self.layouts.items()
            for key, shape in layout.items()
        }
        self.shards = _shards(stored, SHARD_BYTES if shard_bytes is None else shard_bytes)
        self.places = {name: number for number, shard in enumerate(self.shards) for name in shard}
        self._open = ExitStack()  # the directory, and in it the shard that is written now
        self._shard = ExitStack()
        self._writer: TensorWriter | None = None
        self._number = -1

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, value: Tensor) -> None:
        """Write one tensor."""
        layout = self.layouts[name]
        if tuple(value.shape) != self.specs[name].shape:
            raise ValueError(f"{name}: {list(value.shape)} given, {list(self.specs[name].shape)} expected")
        cut = {name: value} if list(layout) == [name] else self.saved.cut(name, value)
        for key in layout:
            self._shard_of(key).add(key, cut[key])

    def add_blocks(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write one tensor given in pieces; raises as `add`. One that is several on disk is whole in memory."""
        if list(self.layouts[name]) == [name]:
            self._shard_of(name).add_blocks(name, blocks)
        else:
            self.add(name, torch.cat(list(blocks)).view(self.specs[name].shape))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._open:  # which removes it after an error
                if error is not None:
                    raise error
                self.finish()
        except BaseException as raised:
            if is_disk_full(raised) or isinstance(raised, DiskFullError):
                # Told of the directory, not of a file in it that nobody will see.
                raise DiskFullError.writing(self.directory) from raised
            if raised is not error:
                raise

    def _shard_of(self, name: str) -> TensorWriter:
        number = self.places[name]
        if number != self._number or self._writer is None:
            if number != self._number + 1:
                raise ValueError(f"{name}: of shard {number + 1}, expected one of shard {self._number + 2}")
            if number == 0:
                self._start()
            self._shard.close()
            place = self.temporary / self._file(number)
            self._writer = self._shard.enter_context(writing_tensors(place, self.shards[number], {"format": "pt"}))
            self._number = number
        return self._writer

    def _file(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def _start(self) -> None:
        require_room(self.directory, self.replace)
        prepare_directory(self.directory.parent)
        self.temporary = self._open.enter_context(new_directory(self.directory, self.replace))
        self._open.enter_context(self._shard)
        self._write_companions()

    def finish(self) -> None:
        """Bring the directory to its name, if anything was written; leaving the block does so, too."""
        if self._number < 0:
            return
        self._shard.close()
        if self._number + 1 != len(self.shards):
            raise ValueError(f"{self._number + 1} of {len(self.shards)} shards were written")
        self._write_index()
        self._write_config()
        for name, text in self.texts.items():
            (self.temporary / name).write_text(text, "utf-8")
        for file in self.temporary.rglob("*"):
            sync(file)
        self._open.close()
        self._number = -1

    def _write_index(self) -> None:
        index = {
            "metadata": {"total_size": sum(spec.num_bytes for spec in self.specs.values())},
            "weight_map": {name: self._file(number) for name, number in sorted(self.places.items())},
        }
        (self.temporary / INDEX_NAME).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _write_config(self) -> None:
        """The config, its type the one that holds all that is stored, so that loading loses nothing."""
        config = copy.deepcopy(self.config)
        widest = next(iter(self.specs.values())).dtype
        for spec in self.specs.values():
            widest = torch.promote_types(widest, spec.dtype)
        config.dtype = str(widest).removeprefix("torch.")
        config.save_pretrained(self.temporary)

    def _write_companions(self) -> None:
        """As files, byte for byte; of a GGUF file, a tokenizer is made of what it holds."""
        if self.source.gguf is None:
            copy_companions(self.source.directory or download(self.source), self.temporary)
            return
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.source.directory, gguf_file=self.source.gguf)
        tokenizer.save_pretrained(self.temporary)


def require_room(directory: Path, replace: bool = False) -> None:
    """Refuse a directory that holds something."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: a file, expected the name of a directory to be made")
    if not replace and directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory}: not empty; name another --out, or remove it")


def _shards(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    """Cut in order, none larger than that but for a single tensor."""
    shards: list[dict[str, TensorSpec]] = []
    room = 0
    for name, spec in specs.items():
        if not shards or spec.num_bytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = spec
        room -= spec.num_bytes
    return shards
