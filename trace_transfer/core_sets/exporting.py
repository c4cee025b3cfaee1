"""`export`: core files as the settings of other trainers. A new format is one function and one line of `FORMATS`.

Reads: core files; a model's config where a trainer's format needs its modules, or where a core file does not list all
of its tensors. Writes: nothing; the text is returned. `docs/howto/new-export.md` adds a format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from trace_transfer.core_sets import trainer_settings
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.importing import write_authors_list
from trace_transfer.core_sets.trainer_settings import CoreSet, ExportError
from trace_transfer.errors import ArtefactError, ModelError, UserError
from trace_transfer.models.sources import AXES, Inventory, ModelSource, load_config, load_inventory
from trace_transfer.progress import quiet_libraries
from trace_transfer.records import ModelIdentity, read_artefact

COLUMNS = ("task", "rank", "name", *AXES, "shape", "elements", "component", "layer", "score", "core")
PROGRAM = """\
{header}#
#     python FILE DATA.jsonl OUT        (or `accelerate launch FILE DATA.jsonl OUT`)

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import trace_transfer as tt


def main(data, out):
    trainer = SFTTrainer(
        model={model!r},
        # Learning rate, epochs and batches are set here. In bf16 alone small updates would be rounded away.
        args=SFTConfig(
            output_dir=out,
            use_cpu=not torch.accelerator.is_available(),
            model_init_kwargs={{"revision": {revision!r}, "dtype": "float32"}},
        ),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        callbacks=[tt.CoreCallback({file!r})],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def write_trl(core: CoreSet) -> str:
    """The program; it reads the core file where it is now."""
    if len(core.files) > 1:
        raise ExportError(f"a program for trl trains the core set of one core file; {len(core.files)} were given")
    model, revision = core.model.id, core.model.revision or "main"
    return PROGRAM.format(header=core.header("trl"), model=model, revision=revision, file=core.files[0])


def write_csv(core: CoreSet) -> str:
    """One row per entry, in the order of the files: best score first. Ranges are `0:576 1152:1728`, none is all."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for file in core.cores:
        for rank, entry in enumerate(file.parameters, 1):
            ranges = (" ".join(f"{start}:{stop}" for start, stop in place or ()) for place in entry.place[1:])
            table.writerow([
                file.task, rank if entry.score is not None else None, entry.name, *ranges,
                "x".join(map(str, entry.shape)), entry.num_elements, entry.component, entry.layer, entry.score,
                int(entry.core),
            ])  # fmt: skip
    return text.getvalue()


class Format(NamedTuple):
    """What is written, and what it is in a few words; None of peft, which needs the model and the adapters' size."""

    write: Callable[[CoreSet], str] | None
    about: str


FORMATS: dict[str, Format] = {
    "axolotl": Format(trainer_settings.write_axolotl, "lines of YAML"),
    "ms-swift": Format(trainer_settings.write_ms_swift, "lines of YAML"),
    "llama-factory": Format(trainer_settings.write_llama_factory, "YAML, where it can say the set at all"),
    "trl": Format(write_trl, "a Python program"),
    "peft": Format(None, "a LoraConfig in Python: adapters on the core modules"),
    "regex": Format(trainer_settings.write_regex, "one regular expression"),
    "csv": Format(write_csv, "every entry with its score"),
    "authors": Format(write_authors_list, "a JSON list as the authors' scripts write it"),
}


def export_core(
    files: Sequence[str | Path], to: str, *, model: str | Path | None = None, rank: int = 8, alpha: float = 16.0
) -> tuple[CoreSet, str]:
    """A core set, of several core files what any trains, and the text that makes a trainer (of `FORMATS`) train it.

    Of the model (None: the one that the files name) only the config is read, if anything. A UserError for files that
    are no core files, of several models or not of this one, or where the trainer has no words for the core set."""
    cores: dict[str, CoreFile] = {str(file): read_artefact(file, CoreFile) for file in files}
    if to not in FORMATS:
        raise UserError(f"trainer {to!r} is none of {', '.join(FORMATS)}")
    first, write = next(iter(cores.values())), FORMATS[to].write
    shapes = {tensor.name: tuple(tensor.shape) for tensor in first.parameters}
    if write is None:
        from trace_transfer.models.sources import build_meta_model, inventory_of

        built = build_meta_model(load_config(_source(first.model, model)))
        shapes = dict(inventory_of(built).shapes)
    elif model is not None or _sha256(shapes) != first.model.names_sha256:  # it does not list all
        quiet_libraries()
        shapes = dict(load_inventory(_source(first.model, model)).shapes)
    if _sha256(shapes) != first.model.names_sha256:
        raise ArtefactError(
            f"{files[0]}: is of {first.model.id}, a model with {first.model.num_parameters} tensors; "
            f"{model or 'what is there'} has other names or shapes ({len(shapes)} tensors), or this version of "
            "transformers gives it others. Say with --model where the model is"
        )
    core = CoreSet.of(cores, shapes)
    return core, trainer_settings.write_peft(core, built, rank, alpha) if write is None else write(core)


def _sha256(shapes: dict[str, tuple[int, ...]]) -> str:
    return Inventory(None, shapes, {}).names_sha256


def _source(identity: ModelIdentity, model: str | Path | None) -> ModelSource:
    if model is not None:
        return ModelSource.parse(model)
    try:
        source = ModelSource.parse(f"{identity.id}@{identity.revision}" if identity.revision else identity.id)
        load_config(source)
    except ModelError as error:
        raise ModelError(f"{error}\nThe core file names this model; say where it is with --model") from error
    return source
