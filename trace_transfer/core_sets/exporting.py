"""`export`: core files as the settings of other trainers.

Reads: core files; a model's config where a trainer's format needs its modules, or where a core file does not list all
of its parameters. Writes: nothing; the text is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.core_sets.authors_list import to_authors_list
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.exports.core_set import CoreSet
from trace_transfer.core_sets.exports.registry import WRITERS
from trace_transfer.errors import ArtefactError, ModelError, UserError
from trace_transfer.models.sources import Inventory, ModelSource, load_config, read_inventory
from trace_transfer.records import ModelIdentity, read_artefact

PEFT, AUTHORS = "peft", "authors"
TRAINERS = (*WRITERS, PEFT, AUTHORS)


@dataclass(frozen=True)
class Export:
    """A text, and of which core set it is."""

    core: CoreSet
    trainer: str
    text: str


def export_core(
    files: Sequence[str | Path], to: str, *, model: str | Path | None = None, rank: int = 8, alpha: float = 16.0
) -> Export:
    """What makes another trainer train exactly a core set.

    Args:
        files: core files of one model; of several what any of them trains.
        to: one of `TRAINERS`.
        model: the model of the core files; None for the one that they name. Only its config is read, if anything.
        rank, alpha: of peft's adapters.

    Raises:
        ArtefactError: one is not a core file.
        ExportError: the trainer has no words for the core set.
        UserError: core files of several models, or not of the model given.
    """
    cores: dict[str, CoreFile] = {str(file): read_artefact(file, CoreFile) for file in files}
    if to not in TRAINERS:
        raise UserError(f"trainer {to!r} is none of {', '.join(TRAINERS)}")
    core = CoreSet.of(cores, _shapes(cores, model))
    if to == PEFT:
        from trace_transfer.core_sets.exports.lora import write_peft
        from trace_transfer.models.sources import build_meta_model, inventory_of

        built = build_meta_model(load_config(_source(core.model, model)))
        _require_same(core.model, inventory_of(built).shapes, str(files[0]), model)
        return Export(core, to, write_peft(core, built, rank, alpha))
    if to == AUTHORS:
        if len(cores) > 1:
            raise UserError(f"a list of the authors' form is of one task; {len(cores)} core files were given")
        return Export(core, to, to_authors_list(core.cores[0]))
    return Export(core, to, WRITERS[to](core))


def _shapes(cores: Mapping[str, CoreFile], model: str | Path | None) -> Mapping[str, tuple[int, ...]]:
    """All parameters of the model: as the first core file lists them if it lists them all, otherwise as it has them."""
    file, core = next(iter(cores.items()))
    listed = {parameter.name: tuple(parameter.shape) for parameter in core.parameters}
    if model is None and _sha256(listed) == core.model.names_sha256:
        return listed
    shapes = read_inventory(load_config(_source(core.model, model))).shapes
    _require_same(core.model, shapes, file, model)
    return shapes


def _require_same(
    identity: ModelIdentity, shapes: Mapping[str, tuple[int, ...]], file: str, model: str | Path | None
) -> None:
    if _sha256(shapes) != identity.names_sha256:
        raise ArtefactError(
            f"{file}: is of {identity.id}, a model with {identity.num_parameters} parameters; "
            f"{model or 'what is there'} has other names or shapes ({len(shapes)} parameters), or this version of "
            "transformers gives it others. Say with --model where the model is"
        )


def _sha256(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return Inventory(None, shapes, {}).names_sha256


def _source(identity: ModelIdentity, model: str | Path | None) -> ModelSource:
    if model is not None:
        return ModelSource.parse(model)
    try:
        source = ModelSource.parse(f"{identity.id}@{identity.revision}" if identity.revision else identity.id)
        load_config(source)
    except ModelError as error:
        raise ModelError(
            f"{error}\nThis is the model that the core file names; say where it is with --model"
        ) from error
    return source
