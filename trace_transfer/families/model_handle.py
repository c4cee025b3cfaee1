"""A model as all later stages need it: config, tensors by component, identity, tokenizer. No weights are read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_transfer.errors import ModelError, first_line
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.models.sources import Inventory, ModelSource, load_inventory
from trace_transfer.records import ModelIdentity

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
        return identity_of(self.source, self.anatomy.inventory, self.anatomy.family, self.anatomy.num_layers)


def identity_of(source: ModelSource, inventory: Inventory, family: str, num_layers: int) -> ModelIdentity:
    return ModelIdentity(
        id=source.repo, revision=source.revision, family=family, model_type=inventory.model_type,
        num_layers=num_layers, num_parameters=len(inventory.shapes), num_elements=inventory.num_elements,
        names_sha256=inventory.names_sha256,
    )  # fmt: skip


def open_model(name: str | Path, registry: FamilyRegistry) -> OpenModel:
    """Read a model's config and take its tensors apart."""
    source = ModelSource.parse(name)
    inventory = load_inventory(source)
    return OpenModel(source, inventory.config, anatomy_of(inventory, registry))


def load_tokenizer(source: ModelSource) -> Any:
    """A model's fast tokenizer.

    Of a directory, `tokenizer.json` is read as it stands: `AutoTokenizer` would put the class of the `model_type`
    in its place, whatever the file says (a qwen2 directory with another tokenizer would be read wrongly)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = _read_tokenizer(source)
        special = set(tokenizer.all_special_ids)
        tokens = tokenizer.encode(ORDINARY_TEXT, add_special_tokens=False)
    except Exception as error:  # transformers raises many kinds; each is one message to the user
        why = f"(.json, .model or vocab files) cannot be read: {first_line(error).rstrip('.: ')}"
        raise ModelError(f"{source.name}: its tokenizer {why}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source.name}: its tokenizer has no fast version, which is needed for character offsets")
    # Where its files are missing transformers makes a tokenizer all the same for many families (Qwen, GPT-2, Gemma …),
    # of nothing but special tokens: texts become no tokens, or unknown ones.
    if special.issuperset(tokens):
        raise ModelError(
            f"{source.name}: has no usable tokenizer: an ordinary text becomes no token (tokenizer.json or "
            "tokenizer.model, or vocab files, expected); copy them from the model that it was made of"
        )
    tokenizer.truncation_side = "right"  # whatever its config says: rows are compared by what was read before them
    return tokenizer


def _read_tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if source.directory is None:
        return AutoTokenizer.from_pretrained(source.repo, revision=source.revision, trust_remote_code=False)
    if source.gguf is not None:
        return AutoTokenizer.from_pretrained(source.directory, gguf_file=source.gguf, trust_remote_code=False)
    if (source.directory / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(source.directory, local_files_only=True)
    return AutoTokenizer.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)


def require_vocabulary(name: str, texts: Iterable[Sequence[int]], config: Any) -> None:
    """Refuse token ids that a model has no row for."""
    largest, size = max((max(ids) for ids in texts if ids), default=0), config.get_text_config().vocab_size
    if largest >= size:
        raise ModelError(
            f"{name}: its tokenizer gives token id {largest}, but its vocabulary has {size} tokens: the tokenizer "
            "belongs to another model"
        )


def require_fitting(name: str, texts: Collection[Sequence[int]], config: Any) -> None:
    """Refuse texts with token ids that a model has no row for, or of more tokens than it was made for."""
    require_vocabulary(name, texts, config)
    positions, longest = getattr(config.get_text_config(), "max_position_embeddings", None), max(map(len, texts))
    if positions and longest > positions:
        raise ModelError(
            f"{name}: was made for {positions} tokens, the longest text has {longest}; give --max-length {positions}"
        )
