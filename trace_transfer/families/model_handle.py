"""A model as all later stages need it: config, tensors by component, identity, tokenizer. No weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.models.named_code import refuse_code_in_tokenizer
from trace_transfer.models.names_on_disk import name_told
from trace_transfer.models.sources import ModelSource, build_meta_model, load_inventory
from trace_transfer.progress import tell
from trace_transfer.records import ModelIdentity

# What a tokenizer is made of. `tokenizer_config.json` is not: it has settings, no words.
TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab*", "merges.txt")
# In several scripts, with digits and the letters of sequences, so that a tokenizer of few characters knows some.
ORDINARY_TEXT = "The quick brown fox, 0123456789; a ACGT; ça va, привет, αβγ, 日本語, नमस्ते."


@dataclass(frozen=True)
class OpenModel:
    """A model whose names and shapes are known and belong to components."""

    source: ModelSource
    config: Any
    anatomy: Anatomy

    @property
    def name(self) -> str:
        return self.source.display_name

    @property
    def identity(self) -> ModelIdentity:
        inventory = self.anatomy.inventory
        return ModelIdentity(
            id=self.source.repo,
            revision=self.source.revision,
            family=self.anatomy.family,
            model_type=inventory.model_type,
            num_layers=self.anatomy.num_layers,
            num_parameters=len(inventory.shapes),
            num_elements=inventory.num_elements,
            names_sha256=inventory.names_sha256,
        )


def open_model(name: str | Path, registry: FamilyRegistry) -> OpenModel:
    """Read a model's config and take its tensors apart.

    Raises:
        ModelError: it is not there or not a causal language model.
        RulesError: no family, or the family's rules do not fit.
    """
    source = ModelSource.parse(name)
    inventory = load_inventory(source)
    return OpenModel(source, inventory.config, anatomy_of(inventory, registry))


@dataclass(frozen=True)
class NamesTold:
    """Names that are none of a model's tensors, as far as they can be made out.

    Attributes:
        translated: names on disk or of older versions → the tensor that is exactly that one.
        known: others → what they are.
    """

    translated: Mapping[str, str]
    known: Mapping[str, str]


def names_told(model: OpenModel, names: Sequence[str]) -> NamesTold:
    """Make out names that the model lacks: names on disk (`block_sparse_moe.gate.weight`), which are translated, which
    is told, and those of tied tensors."""
    lost = [name for name in names if name not in model.anatomy.inventory.shapes]
    if not lost:
        return NamesTold({}, {})
    built = build_meta_model(model.config)
    translated, known = {}, {}
    for name in lost:
        what, found = name_told(built, name) or (None, None)
        if what is not None and (found is None or what.startswith("tied") or found in names):
            known[name] = f"{what}; name that"
        elif found is not None:
            translated[name] = found
    if translated:
        pairs = [f"{name} → {found}" for name, found in translated.items()]
        tell(f"{len(pairs)} names on disk, or of older versions, are read as those of {model.name}:\n{listing(pairs)}")
    return NamesTold(translated, known)


def load_tokenizer(source: ModelSource) -> Any:
    """A model's fast tokenizer.

    `tokenizer.json`, where there is one, is read as it stands: `AutoTokenizer` would put the class of the `model_type`
    in its place, whatever the file says (a qwen2 directory with another tokenizer would be read wrongly).

    Raises:
        ModelError: there is none, it does not know character offsets, or it makes nothing of a text.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = _read_tokenizer(source)
        is_fast, makes_tokens = getattr(tokenizer, "is_fast", False), _makes_tokens(tokenizer)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each is one message to the user
        if source.gguf is None and source.directory is not None and not _tokenizer_files(source.directory):
            raise ModelError(_no_tokenizer(source)) from error
        why = first_line(error).rstrip(".")
        raise ModelError(f"{source.name}: its tokenizer cannot be read: {why}; {_remedy(source)}") from error
    if not is_fast:
        raise ModelError(f"{source.name}: its tokenizer has no fast version, which is needed for character offsets")
    if not makes_tokens:
        raise ModelError(_no_tokenizer(source))
    tokenizer.truncation_side = "right"  # whatever its config says: rows are compared by what was read before them
    return tokenizer


def _read_tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if source.gguf is None:
        where = {"local_files_only": True} if source.directory else {"revision": source.revision}
        refuse_code_in_tokenizer(source.name, get_tokenizer_config(source.directory or source.repo, **where))
    if source.directory is None:
        return AutoTokenizer.from_pretrained(source.repo, revision=source.revision, trust_remote_code=False)
    if source.gguf is not None:
        return AutoTokenizer.from_pretrained(source.directory, gguf_file=source.gguf, trust_remote_code=False)
    if (source.directory / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(source.directory, local_files_only=True)
    return AutoTokenizer.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)


def _makes_tokens(tokenizer: Any) -> bool:
    """Whether an ordinary text becomes a token that is not a special one.

    Where its files are missing transformers makes a tokenizer all the same for many families (Qwen, GPT-2, Gemma …),
    of nothing but special tokens: texts become no tokens, or unknown ones.
    """
    special = set(tokenizer.all_special_ids)
    return any(token not in special for token in tokenizer.encode(ORDINARY_TEXT, add_special_tokens=False))


def _tokenizer_files(directory: Path) -> list[str]:
    return sorted({file.name for pattern in TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()})


def _no_tokenizer(source: ModelSource) -> str:
    """What to say of a tokenizer that is not there, or of which nothing came but special tokens."""
    expected = "tokenizer.json or tokenizer.model, or vocab files, expected"
    files = [] if source.gguf or source.directory is None else _tokenizer_files(source.directory)
    if source.gguf is not None:
        found = "has no usable tokenizer: an ordinary text becomes no token (tokenizer.ggml.tokens expected)"
    elif source.directory is None:
        found = f"has no usable tokenizer on the hub: an ordinary text becomes no token ({expected})"
    elif files:
        found = f"has no usable tokenizer: an ordinary text becomes no token with its {', '.join(files)} ({expected})"
    else:
        found = f"has no tokenizer ({expected})"
    return f"{source.name}: {found}; {_remedy(source)}"


def _remedy(source: ModelSource) -> str:
    if source.gguf is not None:
        return "convert the model to GGUF again, with its tokenizer"
    if source.directory is None:
        return "check the name, which files there are, and your connection"
    return "copy the files of the model it was made from"


def require_vocabulary(name: str, texts: Iterable[Sequence[int]], config: Any) -> None:
    """Refuse token ids that a model has no row for.

    Raises:
        ModelError: the tokenizer belongs to another model.
    """
    largest, size = max((max(ids) for ids in texts if ids), default=0), config.get_text_config().vocab_size
    if largest >= size:
        raise ModelError(
            f"{name}: its tokenizer gives token id {largest}, but its vocabulary has {size} tokens: the tokenizer "
            "belongs to another model"
        )
