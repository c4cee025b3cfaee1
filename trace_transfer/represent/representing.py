"""Models and tasks → embeddings of the tasks' texts, how well they keep the tasks apart, and a picture of it.

Writes into one directory: `embeddings.safetensors` (of each model `LABEL.embeddings` [texts, width] and `LABEL.tsne`
[texts, 2], float32; texts task by task), `representation.html`, `representation.png`, and last `representation.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trace_transfer.data.encoding import encode_task
from trace_transfer.data.examples import padded
from trace_transfer.data.records import Records, read_records
from trace_transfer.data.tasks_file import TaskError, TaskSpec, load_tasks
from trace_transfer.errors import ModelError, NumericalError, UserError, listing, together
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, open_model, require_fitting
from trace_transfer.families.registry import load_families
from trace_transfer.figures import write_figure
from trace_transfer.files import held, refuse_inputs, remove_leftovers, sha256_text, write_text
from trace_transfer.models.checkpoints import return_freed_memory
from trace_transfer.models.running import attend, on_device, require_attention, resolve_device, resolve_dtype
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.tensors import dtype_name, write_tensors
from trace_transfer.patch.model_state import ModelState, PatchedModel
from trace_transfer.patch.patches import Patch
from trace_transfer.printable import is_name
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, to_json
from trace_transfer.represent import draw
from trace_transfer.represent.records import RepresentationFile, RepresentedModel
from trace_transfer.represent.settings import RepresentSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILES = ("embeddings.safetensors", "representation.html", "representation.png", "representation.json")
LEAST_TEXTS = 3  # of a task: of fewer there is no covariance worth an ellipse
WORDS = 110  # characters of a text that the page shows


@dataclass(frozen=True)
class PlannedModel:
    """A model and what it will read; `num_cut` texts were longer than the maximal length."""

    label: str
    opened: OpenModel
    state: ModelState
    ids: tuple[tuple[int, ...], ...]
    num_cut: int

    @property
    def width(self) -> int:
        return int(self.state.config.get_text_config().hidden_size)


@dataclass(frozen=True)
class RepresentPlan:
    """All that can be known, and refused, before weights are read. Texts lie task by task."""

    models: tuple[PlannedModel, ...]
    records: tuple[Records, ...]
    settings: RepresentSettings
    device: str
    dtype: torch.dtype

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(records.task for records in self.records)

    @property
    def num_texts(self) -> tuple[int, ...]:
        return tuple(len(records.records) for records in self.records)

    @property
    def unified(self) -> bool:
        """Whether all models share one t-SNE space: they must be equally wide."""
        return len({model.width for model in self.models}) == 1


def name_models(models: Sequence[str], labelled: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Label → model, of models under their own short names and of `(label, model)` pairs, in this order."""
    pairs = [(ModelSource.parse(model).display_name, model) for model in models] + list(labelled)
    labels = [label for label, _ in pairs]
    if twice := [f"{label}: {model}" for label, model in pairs if labels.count(label) > 1]:
        raise UserError("models of the same label; give each its own with --label NAME=MODEL:\n" + listing(twice))
    return dict(pairs)


def open_states(models: Mapping[str, str | Path], patches: Sequence[tuple[str, Path]]) -> dict[str, ModelState]:
    """Each model with the patches of its label, in the order given."""
    if strange := [f"{label}={file}" for label, file in patches if label not in models]:
        raise UserError(f"patches of no model; the labels are {', '.join(models)}:\n" + listing(strange))
    return {
        label: ModelState(ModelSource.parse(model), Patch.open_all(file for own, file in patches if own == label))
        for label, model in models.items()
    }


def plan_representation(
    models: Mapping[str, ModelState | str | Path], tasks_file: str | Path, settings: RepresentSettings
) -> RepresentPlan:
    """Open the models (by their labels), read the texts and encode them; reads no weights."""
    if not models:
        raise UserError("no model to look at; name one or more")
    if blank := [label for label in models if not label.strip() or not is_name(label)]:
        raise UserError("labels must be one printable line:\n" + listing(list(map(repr, blank))))
    specs = []
    for spec in load_tasks(tasks_file, TaskSpec):  # one text for each record: nothing is generated
        limits = [limit for limit in (spec.max_examples, settings.max_examples) if limit is not None]
        specs.append(spec.model_copy(update={"max_examples": min(limits, default=None), "mismatch": "keep"}))
    if len(specs) < 2:
        raise UserError(f"{tasks_file}: one task; how tasks are kept apart needs two at least")
    records = tuple(read_records(spec, Path(tasks_file).parent, seed=settings.seed) for spec in specs)
    if few := [f"{one.task}: {len(one.records)}" for one in records if len(one.records) < LEAST_TEXTS]:
        raise TaskError(f"each task needs {LEAST_TEXTS} texts at least; too few are in:\n" + listing(few))
    if (total := sum(len(one.records) for one in records)) <= settings.perplexity:
        raise UserError(
            f"{total} texts are too few for t-SNE of perplexity {settings.perplexity:g}, which needs more texts than "
            f"that; raise --max-examples, or give --perplexity {max(1, total // 4)}"
        )
    registry = load_families([Path(path) for path in settings.rules])
    planned, problems = [], []
    for label, model in models.items():
        state = model if isinstance(model, ModelState) else ModelState(ModelSource.parse(model))
        try:
            require_attention(state.config, settings.attention)
            opened = open_model(state.source.name, registry)
            planned.append(_plan_model(label, state, opened, specs, records, settings.max_length))
        except ModelError as problem:
            problems.append(f"{label}: {problem}")
    if problems:
        raise ModelError(together("models that cannot be looked at", problems))
    device = resolve_device(settings.device)
    return RepresentPlan(tuple(planned), records, settings, device, resolve_dtype(settings.dtype, device))


def _plan_model(
    label: str, state: ModelState, opened: OpenModel, specs: Sequence[TaskSpec], records: Sequence[Records],
    max_length: int,
) -> PlannedModel:  # fmt: skip
    name = state.source.name
    if state.source.directory is not None:
        state.base.weights  # noqa: B018 (opens headers: missing or damaged files are refused now)
    tokenizer = load_tokenizer(state.source)
    whole = [  # cut here: the encoder would refuse one whose answer is cut off
        example.input_ids
        for spec, one in zip(specs, records, strict=True)
        for example in encode_task(spec, one, tokenizer).examples
    ]
    ids = tuple(text[:max_length] for text in whole)
    require_fitting(name, ids, opened.config)
    return PlannedModel(label, opened, state, ids, sum(len(text) > max_length for text in whole))


def run_representation(plan: RepresentPlan, out: str | Path, reporter: Reporter) -> RepresentationFile:
    """Read each model once, one at a time in memory, and write what was found; a NumericalError for embeddings that are
    not finite, a StateError for a patch that does not begin where the one before ended."""
    refuse_inputs([Path(out)], [model.state.source.name for model in plan.models])
    with held(out) as directory:
        return _represent(plan, directory, reporter)


def _represent(plan: RepresentPlan, directory: Path, reporter: Reporter) -> RepresentationFile:
    remove_leftovers(directory)
    texts, lines = [], []
    for records in plan.records:
        for record in records.records:
            message = next((m for m in record.messages if m.role == "user"), record.messages[0])
            words = shorten(message.content, WORDS, placeholder=" …")
            texts.append({"id": f"{records.task}:{record.number}", "words": words})
        lines.append([[[m.role, m.content, m.is_answer] for m in record.messages] for record in records.records])
    embeddings = [_embeddings(plan, model, [text["id"] for text in texts], reporter) for model in plan.models]
    coordinates = _coordinates(plan, embeddings, reporter)
    task_N = np.repeat(np.arange(len(plan.records)), plan.num_texts)
    tensors: dict[str, Tensor] = {}
    found = []
    for model, tensor, points in zip(plan.models, embeddings, coordinates, strict=True):
        tensors |= {f"{model.label}.embeddings": tensor, f"{model.label}.tsne": torch.from_numpy(points)}
        found.append(
            RepresentedModel(
                label=model.label, model=model.opened.identity, fingerprint=model.state.fingerprint,
                silhouette=draw.silhouette(tensor.numpy(), task_N),
                distances=tuple(map(tuple, draw.centroid_distances(tensor.numpy(), task_N).tolist())),
                spread=tuple(draw.spread(tensor.numpy(), task_N).tolist()),
            )
        )  # fmt: skip
    settings: dict[str, Any] = {
        **plan.settings.recorded(), "dtype": dtype_name(plan.dtype),
        "space": "unified" if plan.unified else "separate",
        "num_cut": {model.label: model.num_cut for model in plan.models},
    }  # fmt: skip
    file = RepresentationFile(
        tasks=plan.tasks, num_texts=plan.num_texts, models=tuple(found), settings=settings,
        data_sha256=tuple(sha256_text(json.dumps(one)) for one in lines),
        libraries={**library_versions(), "scikit-learn": version("scikit-learn")},
    )  # fmt: skip
    metadata = {"format": "trace-transfer/embeddings", "version": "1", draw.METADATA_TEXTS: json.dumps(texts)}
    write_tensors(directory / FILES[0], tensors, metadata)
    write_figure(directory / "representation", draw.figure(file, coordinates, texts))
    write_text(directory / FILES[3], to_json(file))
    return file


def _embeddings(plan: RepresentPlan, planned: PlannedModel, names: Sequence[str], reporter: Reporter) -> Tensor:
    planned.state.check(reporter)
    model = attend(PatchedModel(planned.state).load(plan.dtype), plan.settings.attention)
    model = on_device(model, plan.device).eval()
    size = plan.settings.batch_size
    with reporter.task(f"reading texts with {planned.label}", -(-len(planned.ids) // size)) as advance:
        found_ND = embed_texts(model, planned.ids, pool=plan.settings.pool, batch_size=size, advance=advance)
    del model
    return_freed_memory()
    if bad := (~torch.isfinite(found_ND).all(dim=1)).nonzero().flatten().tolist():
        raise NumericalError(
            f"{planned.label}: NaN or Inf in the embeddings of {len(bad)} of {len(found_ND)} texts; try --dtype "
            "float32:\n" + listing([names[text] for text in bad])
        )
    return found_ND


def _coordinates(plan: RepresentPlan, embeddings: Sequence[Tensor], reporter: Reporter) -> list[NDArray[np.float32]]:
    """t-SNE of each model's texts: of all models together where they are equally wide, so that panels compare."""
    together = [torch.cat(list(embeddings))] if plan.unified else embeddings
    with reporter.task("t-SNE", len(together)) as advance:
        found = []
        for points in together:
            found.append(draw.tsne(points.numpy(), perplexity=plan.settings.perplexity, seed=plan.settings.seed))
            advance()
    return np.split(found[0], len(embeddings)) if plan.unified else found


@torch.no_grad()
def embed_texts(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], *, pool: str, batch_size: int,
    advance: Callable[[], object] = lambda: None,
) -> Tensor:  # fmt: skip
    """The final hidden states of texts, after the final norm: float32 [texts, D] on the CPU, D the hidden size; `pool`:
    `mean` over all tokens of a text, or its `last`. Shapes: b texts of a batch, t tokens of its longest."""
    found_ND = torch.empty(len(ids), model.config.get_text_config().hidden_size)
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))  # texts of like length together: least padding
    for start in range(0, len(order), batch_size):
        texts = order[start : start + batch_size]
        ids_bt = padded([ids[text] for text in texts]).to(model.device)
        lengths_b = torch.tensor([len(ids[text]) for text in texts], device=model.device)
        mask_bt = (torch.arange(ids_bt.shape[1], device=model.device) < lengths_b[:, None]).long()
        hidden_btD = model.base_model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).last_hidden_state
        if pool == "last":
            pooled_bD = hidden_btD[torch.arange(len(texts), device=model.device), lengths_b - 1]
        else:  # in float64: a mean over a thousand bfloat16 states would otherwise depend on the padding
            pooled_bD = torch.einsum("btd,bt->bd", hidden_btD.double(), mask_bt.double()) / lengths_b[:, None]
        found_ND[texts] = pooled_bD.float().cpu()
        advance()
    return found_ND
