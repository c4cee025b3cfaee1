"""A model as all later stages need it: config, parameters by component, identity, tokenizer. No weights are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_transfer.anatomy import Anatomy
from trace_transfer.artefacts import ModelIdentity
from trace_transfer.errors import ModelError, first_line
from trace_transfer.models import ModelSource, load_config, read_inventory
from trace_transfer.rules.application import anatomy_of
from trace_transfer.rules.registry import FamilyRegistry


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
    """Read a model's config and take its parameters apart.

    Raises:
        ModelError: it is not there or not a causal language model.
        RulesError: no family, or the family's rules do not fit.
    """
    source = ModelSource.parse(name)
    config = load_config(source)
    return OpenModel(source, config, anatomy_of(read_inventory(config), registry))


def load_tokenizer(source: ModelSource) -> Any:
    """A model's fast tokenizer.

    `tokenizer.json`, where there is one, is read as it stands: `AutoTokenizer` would put the class of the `model_type`
    in its place, whatever the file says (a qwen2 directory with another tokenizer would be read wrongly).

    Raises:
        ModelError: there is none, or it does not know character offsets.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    place = source.repo if source.directory is None else source.directory
    try:
        if source.gguf is not None:
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=source.gguf, trust_remote_code=False)
        elif source.directory is not None and (source.directory / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
        elif source.directory is not None:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each is one message to the user
        raise ModelError(f"{source.name}: its tokenizer cannot be read: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source.name}: its tokenizer has no fast version, which is needed for character offsets")
    tokenizer.truncation_side = "right"  # whatever its config says: rows are compared by what was read before them
    return tokenizer
