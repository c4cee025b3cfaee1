"""A core file from Fisher information alone, one example at a time: enough to have something real to carry across.

The squared gradient norm of each parameter, averaged over examples (the paper's eq. 4, at the base model): what LF
becomes with alpha = 0. No warm start is needed, and for a model of a million parameters it takes seconds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trace_transfer.artefacts import CoreFile, CoreParameter, library_versions, to_json
from trace_transfer.files import write_text
from trace_transfer.rules.registry import load_families
from trace_transfer.stages.opening import open_model
from trace_transfer.stages.selection import select


def fisher(model: torch.nn.Module, examples: list[torch.Tensor]) -> dict[str, float]:
    """Mean over examples of |∂loss/∂parameter|², by parameter; each example is a row of token ids [1, T]."""
    totals = dict.fromkeys((name for name, _ in model.named_parameters()), 0.0)
    for ids in examples:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            totals[name] += float(parameter.grad.double().square().sum())
    return {name: total / len(examples) for name, total in totals.items()}


def write_core(directory: Path, texts: list[str], task: str, ratio: float, file: Path) -> None:
    """Score all parameters of a model on a task's texts and write `TASK.core.json`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    examples = [torch.tensor([tokenizer(text, truncation=True, max_length=128)["input_ids"]]) for text in texts]
    scores = fisher(model, examples)
    opened = open_model(directory, load_families())
    scored = [
        CoreParameter(name=name, shape=shape, score=scores[name])
        for name, shape in opened.anatomy.inventory.shapes.items()
    ]
    core = CoreFile(
        task=task,
        model=opened.identity,
        method={"name": "fisher", "ratio": ratio, "unit": "tensors", "fisher_at": "base", "num_examples": len(texts)},
        parameters=select(scored, ratio),
        libraries=library_versions(),
    )
    write_text(file, to_json(core))
