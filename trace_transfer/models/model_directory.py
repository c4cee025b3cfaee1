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
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, UserError, first_line
from trace_transfer.files import PART, DiskFullError, is_disk_full, prepare_directory, sync
from trace_transfer.models.names_on_disk import Layout, SavedNames
from trace_transfer.models.sources import FOLDERS, KEPT, ModelSource, download
from trace_transfer.models.stored_weights import CONFIG_NAME, INDEX_NAME, read_leniently
from trace_transfer.models.tensors import TensorSpec, TensorWriter, writing_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEFT = (
    CONFIG_NAME, "*.index.json", "README*", "adapter_*", ".*", "trainer_state.json", "training_args*", "optimizer*",
    "scheduler*", "rng_state*", "*_results.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5",
    "*.msgpack", "*.onnx",
)  # fmt: skip
HAVE_CODE = ("*_config.json", "video_preprocessor_config.json")  # may name code in `auto_map`, as the config itself


def companions(model: Path) -> list[Path]:
    """The files that belong to a model in a directory, sorted."""
    here = [file for file in model.iterdir() if any(fnmatch(file.name, one) for one in KEPT)]
    below = [file for folder in FOLDERS for file in (model / folder).glob("*")]
    return sorted(
        file for file in (*here, *below) if file.is_file() and not any(fnmatch(file.name, one) for one in LEFT)
    )


def copy_companions(model: Path, directory: Path) -> None:
    """Copy them byte for byte; `auto_map` of a JSON file goes where it names code that is not there."""
    for file in companions(model):
        place = directory / file.relative_to(model)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
        if any(fnmatch(file.name, one) for one in HAVE_CODE):
            _leave_out_missing_code(place, model)


def code_that_is_there(auto_map: Any, model: Path) -> Any:
    """The entries of an `auto_map` whose code lies in the model's directory, or is named as `owner/name--file.Class`.

    A value is a reference, or a list of some (of a tokenizer, slow and fast) of which any may be None.
    """
    if not isinstance(auto_map, Mapping):
        return auto_map if _is_there(auto_map, model) else None
    return {name: value for name, value in auto_map.items() if _is_there(value, model)} or None


def _is_there(value: Any, model: Path) -> bool:
    names = value if isinstance(value, list) else [value]
    modules = [name.rpartition(".")[0] for name in names if isinstance(name, str) and "--" not in name]
    return all(module and (model / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def _leave_out_missing_code(file: Path, model: Path) -> None:
    values = read_leniently(file)
    if "auto_map" in values:
        kept = code_that_is_there(values["auto_map"], model)
        if kept != values["auto_map"]:
            values = {key: value for key, value in values.items() if key != "auto_map"} | (
                {"auto_map": kept} if kept else {}
            )
            file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


SHARD_BYTES = 5_000_000_000  # as transformers does


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
        self.layouts = {name: self.saved.layout(name, spec.shape) for name, spec in specs.items()}
        self.directory, self.replace = Path(directory).absolute(), replace
        self.temporary = self.directory.with_name(f".{self.directory.name}{PART}")
        stored = {
            key: TensorSpec(specs[name].dtype, shape)
            for name, layout in self.layouts.items()
            for key, shape in layout.shapes.items()
        }
        self.shards = _shards(stored, SHARD_BYTES if shard_bytes is None else shard_bytes)
        self.places = {name: number for number, shard in enumerate(self.shards) for name in shard}
        self._open: tuple[int, AbstractContextManager[TensorWriter], TensorWriter] | None = None
        self._next = 0
        self._started = False

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, value: Tensor) -> None:
        """Write one tensor.

        Raises:
            ValueError: it is not the one that was expected, or of another type or shape.
            DiskFullError: nothing is left.
        """
        layout = self._layout_of(name)
        if tuple(value.shape) != self.specs[name].shape:
            raise ValueError(f"{name}: {list(value.shape)} given, {list(self.specs[name].shape)} expected")
        self._add_all(self.saved.tensors(name, value, layout), layout.shapes)

    def add_blocks(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write one tensor given in pieces of whole rows, flattened; raises as `add`.

        One that is several tensors on disk is cut a row (an expert) at a time where each row has tensors of its own;
        otherwise it is whole in memory.
        """
        layout, shape = self._layout_of(name), self.specs[name].shape
        if list(layout.shapes) == [name]:
            self._shard_of(name).add_blocks(name, blocks)
        elif layout.rows is None:
            self.add(name, torch.cat(list(blocks)).view(shape))
        else:
            rows = (row for block in blocks for row in block.view(-1, 1, *shape[1:]))
            for number, row in zip(range(shape[0]), rows, strict=True):
                self._add_all(self.saved.row(name, row, layout, number), layout.rows[number])

    def _layout_of(self, name: str) -> Layout:
        if name not in self.layouts:
            raise ValueError(f"{name}: not one of the expected tensors")
        return self.layouts[name]

    def _add_all(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
        for key in names:
            self._shard_of(key).add(key, tensors[key])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised: BaseException | None = None
        try:
            if error is not None:
                self._close(error)
            else:
                self.finish()
        except BaseException as another:
            raised = another
        cause = raised or error
        if cause is None:
            return
        if self._started:
            shutil.rmtree(self.temporary, ignore_errors=True)
        if _is_full(cause):  # told of the directory, not of a file in it that nobody will see
            raise DiskFullError.writing(self.directory) from cause
        if raised is not None:
            raise raised

    def _shard_of(self, name: str) -> TensorWriter:
        if name not in self.places:
            raise ValueError(f"{name}: not one of the expected tensors")
        number = self.places[name]
        if self._open is None or self._open[0] != number:
            if number != self._next:
                raise ValueError(f"{name}: it belongs to shard {number + 1}, expected one of shard {self._next + 1}")
            self._start() if number == 0 else self._close(None)
            context = writing_tensors(self.temporary / self._file(number), self.shards[number], {"format": "pt"})
            self._open = (number, context, context.__enter__())
            self._next += 1
        return self._open[2]

    def _file(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def _start(self) -> None:
        require_room(self.directory, self.replace)
        prepare_directory(self.directory.parent)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._started = True
        self.temporary.mkdir()
        self._write_companions()

    def _close(self, error: BaseException | None) -> None:
        if self._open is not None:
            context, self._open = self._open[1], None
            if error is None:
                context.__exit__(None, None, None)
            else:
                _leave(context, error)

    def finish(self) -> None:
        """Bring the directory to its name, if anything was written; leaving the block does so, too.

        Raises:
            ValueError: tensors are missing.
        """
        if not self._started:
            return
        self._close(None)
        if self._next != len(self.shards):
            raise ValueError(f"{self._next} of {len(self.shards)} shards were written")
        self._write_index()
        self._write_config()
        for name, text in self.texts.items():
            (self.temporary / name).write_text(text, "utf-8")
        for file in self.temporary.rglob("*"):
            sync(file)
        replaced = self.temporary.with_suffix(f".old{PART}")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.replace and self.directory.is_dir():
            self.directory.rename(replaced)
        try:
            self.temporary.rename(self.directory)
        except BaseException:
            if replaced.is_dir() and not self.directory.exists():
                replaced.rename(self.directory)
            raise
        self._started = False
        sync(self.directory.parent)
        shutil.rmtree(replaced, ignore_errors=True)

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
        if (named := getattr(config, "auto_map", None)) is not None:
            config.auto_map = code_that_is_there(named, self.temporary)
            if config.auto_map is None:
                del config.auto_map
        config.save_pretrained(self.temporary)

    def _write_companions(self) -> None:
        """As files, byte for byte; of a GGUF file, a tokenizer is made of what it holds."""
        if self.source.gguf is None:
            copy_companions(self.source.directory or download(self.source), self.temporary)
            return
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.source.directory, gguf_file=self.source.gguf, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds; each is one message to the user
            raise ModelError(f"{self.source.name}: its tokenizer cannot be read: {first_line(error)}") from error
        tokenizer.save_pretrained(self.temporary)


def require_room(directory: Path, replace: bool = False) -> None:
    """Refuse a directory that holds something.

    Raises:
        UserError: it is a file, or not empty and not to be replaced.
    """
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


def _leave(context: AbstractContextManager[Any], error: BaseException) -> None:
    """Let a context clean up after an error that the caller raises himself."""
    try:
        context.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error and not _is_full(raised):
            raise


def _is_full(error: BaseException) -> bool:
    return is_disk_full(error) or isinstance(error, DiskFullError)
