"""Models as they are named by users: a directory, a GGUF file or a hub name; their configs, tensors and layers.

Reads: configs (and, for hub names, what the hub client downloads). Never reads weights: a model is built on the meta
device, so that its `named_parameters()` are the names and shapes that training will see, at any size, in a second.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.models.stored_weights import CONFIG_NAME, has_weights, read_leniently
from trace_transfer.printable import is_name
from trace_transfer.progress import tell

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HUB_TIMEOUT = 10  # s
MOST_LAYERS = 4096  # of models that are known, some hundreds
ELEMENTS_AT_ONCE = 1 << 18
# What belongs to a model beside its weights and its config, and is fetched and copied with it.
KEPT = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.vocab", "*.bpe", "*.py", "tokenizer*",
    "merges*", "vocab*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
FOLDERS = ("additional_chat_templates", "custom_generate")
# Implementations that transformers has itself; any other name it takes as that of a kernel on the hub.
ATTENTION = ("eager", "sdpa", "flex_attention")
EXPERTS = ("eager", "batched_mm", "grouped_mm")

Ranges = tuple[tuple[int, int], ...]
AXES = ("rows", "columns", "depth")  # what ranges of dimension 0, 1 and 2 are called, in files and in code


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    `name` is what the user typed. `directory` holds its files (for a GGUF file: the folder it lies in), or is None
    for a hub name whose files are fetched on demand; `gguf` is the file's name within `directory`."""

    name: str
    directory: Path | None = None
    gguf: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, name: str | Path) -> ModelSource:
        """Tell a directory, a GGUF file and a hub name (`owner/name`, `owner/name@revision`) apart."""
        text = str(name)
        if not is_name(text):
            raise ModelError(f"{text!a}: a name with line breaks or control characters; give the model another")
        path = Path(text).expanduser()
        if text.strip() and path.is_dir():
            ggufs = sorted(file.name for file in path.glob("*.gguf"))
            if (path / CONFIG_NAME).is_file() or not ggufs:
                return cls(text, path)
            if len(ggufs) > 1:
                raise ModelError(f"{text}: has several GGUF files ({', '.join(ggufs[:5])}); name the one to use")
            return cls(text, path, ggufs[0])
        if path.is_file():
            if path.suffix == ".gguf":
                return cls(text, path.parent, path.name)
            raise ModelError(f"{text} is a file, but not a GGUF file; give the directory that holds config.json")
        repo, _, revision = text.partition("@")
        if text.endswith(".gguf") or text.startswith(("/", ".", "~")) or repo.count("/") > 1 or not repo.strip():
            raise ModelError(f"{text}: no such file or directory")
        return cls(text, None, None, revision or None)

    @property
    def repo(self) -> str:
        """The hub name without its revision."""
        return self.name.partition("@")[0]

    @property
    def display_name(self) -> str:
        """A short name for tables and plots: the last part of the path or hub name."""
        return Path(self.gguf).stem if self.gguf else Path(self.repo).name or self.repo


def load_config(source: ModelSource) -> PretrainedConfig:
    """Read a model's config through transformers, never with `trust_remote_code`; all commands enter a model by this.

    Of a directory with weights, what is stored is compared with what the config says, headers only, and what a user
    should know of a usable one is told (`progress.telling`). A directory with a config alone is a model's names."""
    if source.directory is None:
        return _known_config(source)
    entered = _enter(source)
    for note in entered.notes:
        tell(note)
    return copy.deepcopy(entered.config)


def load_inventory(source: ModelSource) -> Inventory:
    """Config, names and shapes of a model; raises as `load_config`, which has built it where there are weights."""
    config = load_config(source)
    built = None if source.directory is None else _enter(source).inventory
    return read_inventory(config) if built is None else replace(built, config=config)


def superfluous_tensors(source: ModelSource) -> tuple[str, ...]:
    """Stored tensors of a directory that the model made by its config lacks: nobody reads, compares or writes them."""
    return () if source.directory is None else _enter(source).superfluous


@dataclass(frozen=True)
class _Entered:
    """A usable directory; the inventory is that of a model that was built to be compared with its weights."""

    config: PretrainedConfig
    inventory: Inventory | None = None
    superfluous: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _enter(source: ModelSource) -> _Entered:
    assert source.directory is not None
    found = [(file.name, file.stat()) for file in sorted(source.directory.iterdir()) if file.is_file()]
    return _enter_at(source, tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found))


@lru_cache(maxsize=64)
def _enter_at(source: ModelSource, state: tuple[tuple[str, int, int, int], ...]) -> _Entered:
    """Config and verdict of a directory, or of a GGUF file in it, while its files have these sizes and times."""
    from trace_transfer.models import door

    assert source.directory is not None
    if source.gguf is not None:
        config = _known_config(source)
        model = build_meta_model(config)
        door.examine_gguf(source.directory / source.gguf, model, source.name)
        return _Entered(config, inventory_of(model))
    if not (source.directory / CONFIG_NAME).is_file():
        if (file := source.directory / door.ADAPTER_CONFIG).is_file():
            base = read_leniently(file).get("base_model_name_or_path") or "its base model"
            raise ModelError(
                f"{source.name}: an adapter of {base}, not a model: give what `merge_and_unload()` and "
                "`save_pretrained` make of both"
            )
        raise ModelError(f"{source.name}: the directory has no config.json (and no GGUF file); is it a model?")
    config = _known_config(source)
    if not has_weights(source.directory):
        return _Entered(config)
    model = build_meta_model(config)
    inventory = inventory_of(model)
    return _Entered(config, inventory, *door.examine(source.directory, model, source.name))


def _known_config(source: ModelSource) -> PretrainedConfig:
    from huggingface_hub import try_to_load_from_cache

    from trace_transfer.models.names_on_disk import dequantiser_of

    try:
        here = source.directory or try_to_load_from_cache(source.repo, CONFIG_NAME, revision=source.revision)
        if not isinstance(here, (Path, str)) and (silence := hub_silence(source.repo, source.revision)):
            raise ModelError(_config_failure(source, silence))
        config = _read_config(source)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each is one message to the user
        raise ModelError(_config_failure(source, first_line(error))) from error
    _require_causal_lm(config, source)
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(num_layers, int) or num_layers > MOST_LAYERS:  # they are built one by one
        raise ModelError(f"{source.name}: its config says {num_layers!r:.40} layers, expected {MOST_LAYERS:,} at most")
    if getattr(config, "quantization_config", None) and dequantiser_of(config.to_dict()) is not None:
        del config.quantization_config  # whatever is made of it is plain
    return config


def _read_config(source: ModelSource) -> PretrainedConfig:
    from transformers import AutoConfig, PretrainedConfig

    place: Any = source.directory or source.repo
    where: dict[str, Any] = {"local_files_only": True} if source.directory else {"revision": source.revision}
    if source.gguf is not None:
        where = {"gguf_file": source.gguf}
    else:
        _refuse_code(source.name, PretrainedConfig.get_config_dict(place, **where)[0])
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **where)
    return config


def _refuse_code(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for kernels or files that transformers would fetch, whatever `trust_remote_code` is."""
    from transformers.utils import import_utils

    attention = list(ATTENTION)
    for version in (2, 3, 4):  # where it is not installed, transformers takes a kernel of the hub for it
        is_available: Callable[[], bool] = getattr(import_utils, f"is_flash_attn_{version}_available", bool)
        attention += [f"flash_attention_{version}"] if is_available() else []
    known = {"attn_implementation": attention, "experts_implementation": EXPERTS, "transformers_weights": ()}
    problems = [
        f"{place}: {value!a:.80}, expected {'one of ' if known[key] else ''}{', '.join(known[key]) or 'none'}"
        for place, key, value in _fields(config)
        if key in known and value is not None and value not in known[key]
    ]
    if problems:
        raise ModelError(
            f"{model}: config.json asks for code or files from elsewhere, which are never fetched or run here:\n"
            + listing(problems)
        )


def _fields(value: Any, place: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Place, key and value at any depth; below an implementation, that of each sub-config."""
    if isinstance(value, (Mapping, list)):
        for name, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            own = key if key.endswith("_implementation") else str(name).strip("_").removesuffix("_internal")
            yield from _fields(one, f"{place}.{name}".lstrip("."), own)
    else:
        yield place, key, value


def hub_silence(repo: str, revision: str | None = None, *, dataset: bool = False) -> str | None:
    """Ask the hub once for a model or a data set: its client would try a dead connection for half a minute. Says why
    there is no answer; None if there is one, whatever it says, or if nothing is to be asked."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or (dataset and ("/" not in repo or Path(repo).is_dir())):
        return None
    file, kind = ("README.md", "dataset") if dataset else (CONFIG_NAME, None)
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind, revision=revision), timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return None  # an answer: what is wrong with the name is told better by who reads it
    except Exception as error:  # of whatever carries the connection
        return first_line(error)
    return None


def download(source: ModelSource) -> Path:
    """Fetch a hub model's safetensors, config, card and all that belongs to it; returns the local snapshot."""
    from huggingface_hub import snapshot_download

    patterns = [CONFIG_NAME, "*.safetensors", "*.safetensors.index.json", *KEPT, *(f"{folder}/*" for folder in FOLDERS)]
    patterns.append("README.md")  # for its licence
    try:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each is one message to the user
        raise ModelError(f"{source.name}: could not be had from the hub: {first_line(error)}") from error


def _config_failure(source: ModelSource, why: str) -> str:
    if source.directory is None:
        return (
            f"{source.name}: no such directory, and its config could not be had from the hub ({why}). "
            "Check the name, that it is a whole model, your connection and, for a gated model, `hf auth login`"
        )
    return f"{source.name}: its config cannot be read: {why}"


def _require_causal_lm(config: PretrainedConfig, source: ModelSource) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    kind, architectures = config.model_type, ", ".join(map(str, config.architectures or [])) or "none named"
    encodes = kind in MASKED and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False) or encodes or kind not in CAUSAL:
        raise ModelError(
            f"{source.name}: model_type '{kind}' (architectures: {architectures}) is not a decoder-only causal "
            "language model, which trace-transfer needs (of one that reads images, the language model in it will do)"
        )


def build_meta_model(config: PretrainedConfig, dtype: Any = None) -> PreTrainedModel:
    """The causal language model of a config with every tensor on the meta device: names and shapes, no memory.

    Buffers (rotary frequencies) are real and those of `from_pretrained`, so that a forward pass works once weights are
    brought in; those that are saved with the weights are brought in like these. `dtype` is that of the tensors;
    default is torch's."""
    import torch
    from accelerate import init_empty_weights
    from torch.overrides import TorchFunctionMode
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    class EmptyOnMeta(TorchFunctionMode):
        """accelerate moves a tensor to the meta device once it is made: the experts of one layer may be 30 GB."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with init_empty_weights(include_buffers=False), no_init_weights(), EmptyOnMeta():
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.get_default_dtype())
        except Exception as error:  # fields that are missing, or do not fit each other: of many kinds
            name = config.name_or_path or config.model_type
            raise ModelError(f"{name}: no model can be built from its config: {first_line(error)}") from error
    model.tie_weights()
    _compute_buffers(model)
    model.eval()
    return model


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute buffers as `from_pretrained` does: anew after the model was built, out of its type.

    While a model is built its type is torch's default, and what is made of `arange` without a type of its own is
    rounded to it: the positions that GPT-J turns by would be off by 0.02 in bf16, in a table that is float32 itself."""
    import torch

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # made by `torch.empty`, to be filled below
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
    parameters: list[Any] = list(model.parameters())  # Any, for a mark that torch's own do not have
    for parameter in parameters:
        parameter._is_hf_initialized = True  # transformers' own mark: leave this one alone
    model.initialize_weights()
    for parameter in parameters:
        del parameter._is_hf_initialized


@dataclass(frozen=True)
class Inventory:
    """Names and shapes of a model's tensors in model order, at run time (`named_parameters()`).

    `tied` maps an alias (`lm_head.weight`) to the tensor that owns the values; an alias is not in `shapes`."""

    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @cached_property
    def num_elements(self) -> int:
        return sum(numel(shape) for shape in self.shapes.values())

    @cached_property
    def names_sha256(self) -> str:
        """SHA-256 of the lines `NAME [d0, d1]`, sorted by name and joined by newlines: the model's identity."""
        lines = (f"{name} {list(shape)}" for name, shape in sorted(self.shapes.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def numel(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape; 1 for a scalar."""
    return math.prod(shape)


def part_numel(shape: tuple[int, ...], rows: Ranges | None, columns: Ranges | None, depth: Ranges | None = None) -> int:
    """Number of elements in some ranges of rows (dimension 0), columns (1) and depth (2) of a shape; None is all."""
    count = numel(shape)
    for dim, ranges in enumerate((rows, columns, depth)):
        if ranges is not None:
            count = count // shape[dim] * sum(stop - start for start, stop in ranges)
    return count


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where chunks of a tensor begin and end, in whole rows of about `ELEMENTS_AT_ONCE` elements together; a scalar
    is one row."""
    if not shape:
        yield 0, 1
        return
    step = max(1, ELEMENTS_AT_ONCE * shape[0] // numel(shape))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def tied_names(model: PreTrainedModel, name: str) -> set[str]:
    """All run-time names of a tensor: its own and those tied to it."""
    parameter = model.get_parameter(name)
    return {other for other, found in model.named_parameters(remove_duplicate=False) if found is parameter}


def inventory_of(model: PreTrainedModel) -> Inventory:
    """List a model's tensors; tied ones once, under the name that `named_parameters()` gives."""
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tied = {name: owners[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if name not in shapes}
    return Inventory(model.config, shapes, tied)


def read_inventory(config: PretrainedConfig) -> Inventory:
    """Names and shapes from a config alone."""
    return inventory_of(build_meta_model(config))
