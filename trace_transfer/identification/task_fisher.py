"""Fisher information of a model's parameters on each task's examples, at the warm-started model or at the base.

Reads: the base, a delta or a fine-tuned model, the task's examples. Writes for each a `fisher.json`, and beside it
`fisher.units.safetensors` where heads and neurons are wanted; an earlier one of the same is taken as it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine.loading import load_model
from trace_transfer.errors import ArtefactError
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import prepare_directory, remove_leftovers, sha256_text, write_tensors, write_text
from trace_transfer.identification.delta_store import DeltaStore
from trace_transfer.identification.differencing import DeltaPlan, DeltaSource
from trace_transfer.identification.fisher.information import fisher_information
from trace_transfer.identification.records import FisherFile, FisherParameter
from trace_transfer.identification.score_inputs import Fisher
from trace_transfer.identification.scoring_settings import Compute, ScoreSettings
from trace_transfer.models.running import on_device, resolve_device
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact, to_json

FOLDER = "fisher"
FILE = "fisher.json"
UNITS = "fisher.units.safetensors"
EXAMPLES_OF_A_BATCH = 2  # the authors' code


@dataclass(frozen=True)
class FisherReading:
    """One Fisher information to be read: at which model, on which examples."""

    source: DeltaSource
    examples: tuple[Example, ...]
    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / FILE


def draw(data: TaskData, count: int, seed: int) -> tuple[Example, ...]:
    """`count` examples in a drawn order, or all of them if there are fewer."""
    return tuple(random.Random(seed).sample(data.examples, min(count, len(data.examples))))


def plan_readings(
    plan: DeltaPlan, data: Mapping[str, TaskData], settings: ScoreSettings, seed: int, out: Path
) -> tuple[FisherReading, ...]:
    """One reading for each delta.

    Args:
        data: label of a delta (`math`, `math/1`) → the examples that it was made with, or the task's.
    """
    return tuple(
        FisherReading(
            source,
            draw(data[source.tuned.label], settings.fisher_examples, seed),
            out / FOLDER / source.tuned.task / (str(source.tuned.replicate) if source.tuned.replicate else ""),
        )
        for source in plan.sources
    )


def read_fisher(
    plan: DeltaPlan,
    reading: FisherReading,
    settings: ScoreSettings,
    splits: Mapping[str, Split] | None,
    compute: Compute,
    reporter: Reporter,
) -> Fisher:
    """Read it, or take an earlier one that was made of the same.

    Raises:
        NumericalError: a loss that is not finite, with the examples' ids.
    """
    remove_leftovers(reading.directory)
    tuned = reading.source.tuned
    expected = FisherFile(
        task=tuned.task,
        replicate=tuned.replicate,
        model=plan.base.identity,
        at=settings.fisher_at,
        fingerprint=plan.base_weights.fingerprint if settings.fisher_at == "base" else tuned.fingerprint,
        per=settings.fisher,
        num=0,
        data_sha256=sha256_text(repr([(e.input_ids, e.labels) for e in reading.examples])),
        parameters=(),
        units=splits is not None,
        libraries=library_versions(),
    )
    known = _earlier(reading.directory, expected)
    if known is not None:
        reporter.note(f"{tuned.label}: Fisher information read before, {reading.directory / FILE}")
        return known
    model = _model(plan.base, reading.source, settings, compute)
    of_a_batch = EXAMPLES_OF_A_BATCH if settings.fisher == "batch" else 1
    with reporter.task(f"Fisher of {tuned.label}", -(-len(reading.examples) // of_a_batch)) as advance:
        found = fisher_information(
            model,
            reading.examples,
            layer_path=plan.base.anatomy.layer_path,
            per="batch" if settings.fisher == "batch" else "example",
            batch_of=EXAMPLES_OF_A_BATCH,
            tokens_at_once=compute.tokens_at_once,
            streamed=compute.layer_streamed,
            splits=splits or {},
            advance=advance,
        )
    directory = prepare_directory(reading.directory)
    file = expected.model_copy(
        update={
            "num": found.num,
            "parameters": tuple(FisherParameter(name=name, value=value) for name, value in found.values.items()),
            "fallback": found.fallback,
        }
    )
    if splits is not None:
        write_tensors(directory / UNITS, found.units, {"format": "trace-transfer/fisher-units", "version": "1"})
    write_text(directory / FILE, to_json(file))
    return Fisher(file, found.units)


def _earlier(directory: Path, expected: FisherFile) -> Fisher | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (directory / FILE).is_file():
        return None
    try:
        found: FisherFile = read_artefact(directory / FILE, FisherFile)
        units = load_file(directory / UNITS) if expected.units else {}
    except (ArtefactError, OSError, SafetensorError):
        return None  # damaged, or without units: read again
    same: Any = {"num", "parameters", "fallback", "libraries", "units"}
    if found.model_dump(exclude=same) != expected.model_dump(exclude=same) or (expected.units and not found.units):
        return None
    return Fisher(found, units)


def _model(base: OpenModel, source: DeltaSource, settings: ScoreSettings, compute: Compute) -> nn.Module:
    """The model at which the gradients are taken, in float32."""
    device = resolve_device(compute.device)
    if settings.fisher_at == "tuned" and source.opened is not None:
        tuned = load_model(source.opened.source, source.opened.anatomy.inventory, torch.float32)
        return on_device(tuned, device)
    model = load_model(base.source, base.anatomy.inventory, torch.float32)
    if settings.fisher_at == "tuned":
        assert isinstance(source.weights, DeltaStore)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(source.weights.tensor(name))
    return on_device(model, device)
