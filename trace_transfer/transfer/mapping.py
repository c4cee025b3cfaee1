"""`map`: from two models and a probe set to a layer match, a correspondence and translated core sets.

Reads: two models, a probe set, core files of the source. Writes into one directory: `layer_match.json`,
`similarity.safetensors`, `correspondence.json`, one translated `TASK.core.json` per core file, `heatmap.html`,
`heatmap.png`. `carry_along` is the second half alone, along a layer match that lies there.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.selection import core_path
from trace_transfer.data.probe import NO_ROWS, ProbeSet, RowPlan, load_probe, plan_rows
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.correspondence import Correspondence
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, open_model, require_vocabulary
from trace_transfer.families.registry import load_families
from trace_transfer.files import (
    check_directory,
    held,
    prepare_directory,
    refuse_inputs,
    remove_leftovers,
    sha256_file,
    sha256_text,
    write_text,
)
from trace_transfer.models.checkpoints import Checkpoint, open_checkpoint
from trace_transfer.models.running import require_attention, resolve_device, resolve_dtype
from trace_transfer.models.sources import build_meta_model, numel
from trace_transfer.models.tensors import write_tensors
from trace_transfer.progress import Reporter
from trace_transfer.records import Strict, library_versions, read_artefact, to_json
from trace_transfer.transfer.draw import HEATMAPS, MATCH, SIMILARITY, write_heatmap
from trace_transfer.transfer.matching import massive_warnings, match_layers
from trace_transfer.transfer.policies import POLICIES, Matrix
from trace_transfer.transfer.probing import NOT_READ, REPRESENTATIONS, Grams, read_grams
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch, ProbeRecord
from trace_transfer.transfer.settings import MapSettings
from trace_transfer.transfer.similarity import SIMILARITIES, packed_length
from trace_transfer.transfer.translation import Carried, Carrier, Cores, open_cores

CORRESPONDENCE = "correspondence.json"


@dataclass(frozen=True)
class MapResult:
    """What `map` found and wrote; `similarity`: float64 [source layers, target layers], NaN for a degenerate layer."""

    source: OpenModel
    target: OpenModel
    match: LayerMatch
    similarity: Matrix
    correspondence: Correspondence
    carried: tuple[Carried, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class MapPlan:
    """All that can be known, and refused, before weights are read."""

    source: OpenModel
    target: OpenModel
    cores: Cores
    probe: ProbeSet
    rows: RowPlan
    devices: tuple[str, str]
    dtype: torch.dtype

    @property
    def at_once(self) -> bool:
        """Whether both models are read at the same time."""
        return self.devices[0] != self.devices[1]


def plan_map(src: str | Path, dst: str | Path, cores: Sequence[str | Path], settings: MapSettings) -> MapPlan:
    """Open both models, the core files and the probe set, and choose the rows; reads no weights."""
    if settings.cache is not None:
        check_directory(settings.cache, "cache", "; give another with --cache, or --no-cache")
    registry = load_families([Path(path) for path in settings.rules])
    source, target = open_model(src, registry), open_model(dst, registry)
    opened = open_cores(cores, source)
    probe, rows = ProbeSet("none", ()), NO_ROWS
    if POLICIES[settings.match].reads:
        probe = load_probe(settings.probe)
        rows = plan_rows(
            probe, load_tokenizer(source.source), load_tokenizer(target.source), kind=settings.rows,
            num_minibatches=1 if settings.rows == "example" else settings.minibatches, max_length=settings.max_length,
            seed=settings.seed,
        )  # fmt: skip
        for model, reading in ((source, rows.source), (target, rows.target)):
            require_vocabulary(model.source.name, reading.ids, model.config)
    device = resolve_device(settings.device)
    other = device if settings.target_device is None else resolve_device(settings.target_device)
    for model in (source, target):
        require_attention(model.config, settings.attention)
    return MapPlan(source, target, opened, probe, rows, (device, other), resolve_dtype(settings.dtype, device))


class ModelEstimate(NamedTuple):
    """What reading one model takes: bytes of its largest layer, of hidden states and of Gram matrices; seconds."""

    layer_bytes: int
    hidden_bytes: int
    gram_bytes: int
    seconds: float


class MapEstimate(NamedTuple):
    models: tuple[ModelEstimate, ModelEstimate]
    flops_per_second: float
    peak_bytes: int


def estimate(plan: MapPlan, settings: MapSettings) -> MapEstimate:
    """What a planned run takes, by its configs; learns the machine's speed from a tenth of a second's product."""
    speed, found = measure_speed(plan.devices[0], plan.dtype), []
    for model, reading in ((plan.source, plan.rows.source), (plan.target, plan.rows.target)):
        prefix = f"{model.anatomy.layer_path}."
        elements: Counter[str] = Counter()  # of each layer
        for name, shape in model.anatomy.inventory.shapes.items():
            if name.startswith(prefix):
                elements[name.removeprefix(prefix).partition(".")[0]] += numel(shape)
        lengths, at_once = sorted(map(len, reading.ids)), settings.batch_size
        batches = [lengths[start : start + at_once] for start in range(0, len(lengths), at_once)]
        padded = sum(some[-1] * len(some) for some in batches)
        grams = len(REPRESENTATIONS) * sum(map(packed_length, plan.rows.sizes)) * model.anatomy.num_layers
        hidden = padded * model.config.get_text_config().hidden_size
        seconds = 2 * padded * elements.total() / speed  # two operations per weight and token, paddings included
        size = plan.dtype.itemsize
        largest = max(elements.values()) * size if batches else 0
        found.append(ModelEstimate(largest, hidden * size, 4 * grams, seconds))
    first, second = (2 * one.layer_bytes + one.hidden_bytes + one.gram_bytes for one in found)  # the next layer, too
    peak = first + second if plan.at_once else max(first, found[0].gram_bytes + second)  # Gram matrices are kept
    return MapEstimate((found[0], found[1]), speed, peak)


def measure_speed(device: str, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating point operations per second of a square matrix product, by 0.1 s of them."""
    from torch.utils.benchmark import Timer

    a = torch.ones(side, side, device=device, dtype=dtype)
    timer = Timer("(a @ a)[0, 0].item()", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=0.1).median


def check_out(plan: MapPlan, out: str | Path, settings: MapSettings) -> None:
    """Refuse a directory in which an input would be replaced, by a UserError."""
    directory = Path(out)
    written = [directory / name for name in (MATCH, SIMILARITY, CORRESPONDENCE, *HEATMAPS)]
    inputs: list[Path | str] = [plan.source.source.name, plan.target.source.name, *(path for path, _ in plan.cores)]
    inputs += [settings.probe] if settings.probe else []
    refuse_inputs([directory, *written, *(core_path(directory, core) for _, core in plan.cores)], inputs)


def run_map(plan: MapPlan, out: str | Path, settings: MapSettings, reporter: Reporter) -> MapResult:
    """Carry the plan out: read both models, unless depth alone decides, match, translate, write, draw."""
    check_out(plan, out, settings)
    models = (plan.source, plan.target) if plan.rows.sizes else ()
    weights = [open_checkpoint(model.source) for model in models]  # both are there, or none is read
    with held(out) as directory:
        remove_leftovers(directory)
        source, target = _read_both(plan, weights, settings, reporter) if models else (NOT_READ, NOT_READ)
        used = settings.representation
        probe = ProbeRecord(
            name=plan.probe.name, sha256=plan.probe.sha256, num_texts=len(plan.probe.texts), rows=plan.rows.kind,
            num_minibatches=len(plan.rows.sizes), num_rows=sum(plan.rows.sizes), max_length=settings.max_length,
            seed=settings.seed,
        )  # fmt: skip
        with reporter.task("matching layers", len(source.stacks) or 1) as advance:
            match, similarity_ST = match_layers(
                source.stacks.get(used), target.stacks.get(used), num_splits=settings.splits,
                source=plan.source.identity, target=plan.target.identity, probe=probe,
                similarity=settings.similarity, representation=used, transform=settings.transform,
                policy=settings.match, settings=settings.recorded(), libraries=library_versions(),
            )  # fmt: skip
            tensors = {"similarity": torch.from_numpy(similarity_ST)}
            tensors[f"similarity.{used}"] = tensors["similarity"].clone()
            advance()
            for name in source.stacks.keys() - {used}:
                measure = SIMILARITIES[settings.similarity]
                tensors[f"similarity.{name}"] = measure(source.stacks[name], target.stacks[name])
                advance()
        massive = (*massive_warnings(source, used, "source"), *massive_warnings(target, used, "target"))
        match = match.model_copy(update={"warnings": match.warnings + massive})
        text = to_json(match)
        carrier = Carrier(plan.source, plan.target, match.pairs, sha256_text(text))
        carried = carrier.carry_all(plan.cores, settings.carry, settings.ratio)  # before anything is written
        _refuse_others(directory, [core for _, core in plan.cores], match)
        write_text(directory / MATCH, text)
        write_tensors(directory / SIMILARITY, tensors, {"format": "trace-transfer/similarity", "version": "1"})
        files = [directory / MATCH, directory / SIMILARITY, *_write(directory, carrier, carried)]
        files += write_heatmap(directory)
    return MapResult(plan.source, plan.target, match, similarity_ST, carrier.correspondence, carried, tuple(files))


def _read_both(
    plan: MapPlan, weights: Sequence[Checkpoint], settings: MapSettings, reporter: Reporter
) -> tuple[Grams, Grams]:
    """The source here and the target in a thread, where they have two devices; else one after the other."""
    stopped, models = Event(), (plan.source, plan.target)
    of_source, of_target = (
        partial(read_grams, model, files, plan.rows, reading, settings, device, plan.dtype, reporter, stopped)
        for model, files, reading, device in zip(
            models, weights, (plan.rows.source, plan.rows.target), plan.devices, strict=True
        )
    )
    if not plan.at_once:
        return of_source(), of_target()
    ours, theirs = (build_meta_model(model.config, plan.dtype) for model in models)
    with ThreadPoolExecutor(max_workers=1) as other:
        target = other.submit(copy_context().run, of_target, theirs)
        try:
            return of_source(ours), target.result()
        finally:
            stopped.set()  # what is read for nothing, after Ctrl-C or an error, ends at its next layer


def _refuse_others(directory: Path, cores: Sequence[CoreFile], match: LayerMatch) -> None:
    """Core files that were carried along other pairs of layers may not stay beside this match."""
    with suppress(ArtefactError):
        earlier: LayerMatch = read_artefact(directory / MATCH, LayerMatch)
        same = [(one.source.id, one.target.id, [(p.source, p.target) for p in one.pairs]) for one in (earlier, match)]
        if same[0] == same[1]:
            return
    staying, written = [], {core_path(directory, core) for core in cores}
    for file in sorted({*directory.glob("*.core.json")} - written):
        with suppress(ArtefactError):
            found: CoreFile = read_artefact(file, CoreFile)
            if found.transferred_from is not None:
                staying.append(file.name)
    if staying:
        raise UserError(
            f"{directory}: holds core files that another layer match carried; they would stay beside the new one. Give "
            f"--core for each of them, too, or name another --out:\n{listing(staying)}"
        )


def _write(directory: Path, carrier: Carrier, carried: Sequence[Carried]) -> list[Path]:
    payload: dict[str, Any] = carrier.correspondence.to_payload()
    listed = CorrespondenceFile(
        source=carrier.source.identity, target=carrier.target.identity, layer_match_sha256=carrier.match_sha256,
        libraries=library_versions(), **payload,
    )  # fmt: skip
    contents: dict[Path, Strict] = {directory / CORRESPONDENCE: listed}
    contents |= {core_path(directory, one.core): one.core for one in carried}
    for file, content in contents.items():
        write_text(file, to_json(content))
    return list(contents)


def carry_along(
    src: str | Path, dst: str | Path, match: Path, cores: Sequence[Path], *, how: str, ratio: float | None,
    rules: Sequence[str], out: Path,
) -> tuple[Carried, ...]:  # fmt: skip
    """Translate core files along the layer match in a directory, which is copied beside them."""
    registry = load_families([Path(path) for path in rules])
    source, target = open_model(src, registry), open_model(dst, registry)
    found: LayerMatch = read_artefact(match / MATCH, LayerMatch)
    for what, model, matched in (("source", source, found.source), ("target", target, found.target)):
        if model.identity.names_sha256 != matched.names_sha256:
            raise ArtefactError(f"{match / MATCH}: its {what} is {matched.id}; {model.source.name} is another model")
    carrier = Carrier(source, target, found.pairs, sha256_file(match / MATCH))
    carried = carrier.carry_all(open_cores(cores, source), how, ratio)
    directory = prepare_directory(out)
    for name in (MATCH, SIMILARITY):
        shutil.copyfile(match / name, directory / name)
    _write(directory, carrier, carried)
    return carried
