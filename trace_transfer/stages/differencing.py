"""The deltas of fine-tuned models, reduced to what scores need: one read of every shard, memory for a few chunks.

Reads: a base model and K fine-tuned ones. Gives: `DeltaFile`, per parameter the norms of the K deltas, all cosines
(through a K x K Gram matrix in float64) and how many elements did not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from trace_transfer.artefacts import DeltaFile, DeltaParameter, TunedModel, library_versions
from trace_transfer.checkpoints import SafetensorsCheckpoint, open_checkpoint
from trace_transfer.errors import ModelError, UserError, listing
from trace_transfer.maths.saliency import Deltas
from trace_transfer.models import build_meta_model, numel
from trace_transfer.progress import Reporter
from trace_transfer.stages.opening import OpenModel

SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def plan_deltas(base: OpenModel, tuned: Mapping[str, OpenModel]) -> dict[str, SafetensorsCheckpoint]:
    """Open all weights, headers only, and refuse models that do not fit together; task → checkpoint, base under "".

    Raises:
        UserError: no fine-tuned model, or a GGUF file (quantised weights say nothing of small updates).
        ModelError: names or shapes of a fine-tuned model are not those of the base; all are listed.
    """
    if not tuned:
        raise UserError("no fine-tuned model was given: name at least one, as --tuned TASK=MODEL")
    shapes, problems = base.anatomy.inventory.shapes, []
    for task, model in tuned.items():
        theirs = model.anatomy.inventory.shapes
        problems += [f"{task}: lacks {name}" for name in shapes if name not in theirs]
        problems += [f"{task}: has {name}, which the base has not" for name in theirs if name not in shapes]
        problems += [
            f"{task}: {name} is {list(theirs[name])}, in the base {list(shape)}"
            for name, shape in shapes.items()
            if name in theirs and theirs[name] != shape
        ]
    if problems:
        raise ModelError(f"fine-tuned models that are not of {base.source.name}:\n" + listing(problems))
    opened = {}
    for task, model in {"": base, **tuned}.items():
        checkpoint = open_checkpoint(model.source)
        if not isinstance(checkpoint, SafetensorsCheckpoint):
            raise UserError(
                f"{model.source.name}: a GGUF file; its quantisation is larger than the updates of fine-tuning. "
                "Give the safetensors directory"
            )
        opened[task] = checkpoint
    return opened


def read_deltas(
    base: OpenModel,
    tuned: Mapping[str, OpenModel],
    checkpoints: Mapping[str, SafetensorsCheckpoint],
    reporter: Reporter,
) -> DeltaFile:
    """Norms and cosines of all parameters' deltas.

    Raises:
        ModelError: a parameter is missing on disk, of another shape there, or not finite.
    """
    model = build_meta_model(base.config)
    shapes = base.anatomy.inventory.shapes
    parameters = []
    with reporter.task("comparing with the base", len(shapes)) as advance:
        for name, shape in shapes.items():
            chunks = [checkpoint.chunks(model, name, shape) for checkpoint in checkpoints.values()]
            gram_KK, unchanged = _gram(chunks, len(tuned))
            if not np.isfinite(gram_KK).all():
                raise ModelError(f"NaN or Inf in {name} of the base or of {', '.join(tuned)}")
            parameters.append(_parameter(name, shape, gram_KK, unchanged))
            advance()
    return DeltaFile(
        model=base.identity,
        base_fingerprint=checkpoints[""].fingerprint,
        tuned=tuple(
            TunedModel(
                task=task,
                id=opened.source.repo,
                fingerprint=checkpoints[task].fingerprint,
                sixteen_bit=bool(checkpoints[task].dtypes & set(SIXTEEN_BIT)),
            )
            for task, opened in tuned.items()
        ),
        parameters=tuple(parameters),
        libraries=library_versions(),
    )


def _gram(chunks: list[Iterator[torch.Tensor]], num_tasks: int) -> tuple[np.ndarray, list[int]]:
    """Inner products of the deltas, float64 [K, K], and for each task how many elements are as in the base.

    The differences are taken, and summed, in float64: bf16 next to float32 needs no care, and nothing cancels.
    """
    gram_KK = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    unchanged_K = torch.zeros(num_tasks, dtype=torch.int64)
    for base_E, *tuned in zip(*chunks, strict=True):
        reference_E = base_E.double()
        delta_KE = torch.empty(num_tasks, len(base_E), dtype=torch.float64)
        for row_E, values_E in zip(delta_KE, tuned, strict=True):
            row_E.copy_(values_E).sub_(reference_E)
        gram_KK += delta_KE @ delta_KE.T
        unchanged_K += len(base_E) - delta_KE.count_nonzero(dim=1)
    return gram_KK.numpy(), unchanged_K.tolist()


def _parameter(name: str, shape: tuple[int, ...], gram_KK: np.ndarray, unchanged: list[int]) -> DeltaParameter:
    """Norms and cosines instead of inner products: what people read, and as exact."""
    deltas = Deltas(gram_KK[None], np.array([numel(shape)]))
    cosines = deltas.cosines_PKK[0]
    pairs = [cosines[j, k] for j in range(len(cosines)) for k in range(j)]
    return DeltaParameter(
        name=name,
        shape=shape,
        norms=tuple(deltas.norms_PK[0].tolist()),
        cosines=tuple(None if np.isnan(value) else float(value) for value in pairs),
        unchanged=tuple(unchanged),
    )


def deltas_of(file: DeltaFile) -> Deltas:
    """The Gram matrices back from norms and cosines."""
    num_tasks = len(file.tuned)
    norms_PK = np.array([parameter.norms for parameter in file.parameters]).reshape(-1, num_tasks)
    gram_PKK = norms_PK[:, :, None] * norms_PK[:, None, :]
    below = [(j, k) for j in range(num_tasks) for k in range(j)]
    for index, parameter in enumerate(file.parameters):
        for (j, k), cosine in zip(below, parameter.cosines, strict=True):
            value = gram_PKK[index, j, k] * (0.0 if cosine is None else cosine)
            gram_PKK[index, j, k] = gram_PKK[index, k, j] = value
    return Deltas(gram_PKK, np.array([numel(parameter.shape) for parameter in file.parameters]))
