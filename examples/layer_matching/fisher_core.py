"""A core file from Fisher information alone, one example at a time: enough to have something real to carry across.

The squared gradient norm of each tensor, averaged over examples (the paper's eq. 4, at the base model): what LF
becomes with alpha = 0. No warm start is needed; a model of a million parameters takes seconds.

    python -m examples.layer_matching.fisher_core MODEL_DIRECTORY --domain maths --out maths.core.json
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.selection import select
from trace_transfer.data.probe import SHIPPED_PROBE
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import write_text
from trace_transfer.records import library_versions, to_json


def fisher(model: torch.nn.Module, examples: list[torch.Tensor]) -> dict[str, float]:
    """Mean over examples of |∂loss/∂parameter|², by tensor; each example is a row of token ids [1, T]."""
    totals = dict.fromkeys((name for name, _ in model.named_parameters()), 0.0)
    for ids in examples:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            totals[name] += float(parameter.grad.double().square().sum())
    return {name: total / len(examples) for name, total in totals.items()}


def write_core(directory: Path, texts: list[str], task: str, ratio: float, file: Path) -> None:
    """Score all tensors of a model on a task's texts and write `TASK.core.json`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    examples = [torch.tensor([tokenizer(text, truncation=True, max_length=128)["input_ids"]]) for text in texts]
    scores = fisher(model, examples)
    opened = open_model(directory, load_families())
    scored = [
        CoreTensor(name=name, shape=shape, score=scores[name])
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


def texts_of(domain: str) -> list[str]:
    """The texts of one domain of the shipped probe set."""
    records = [json.loads(line) for line in SHIPPED_PROBE.read_text("utf-8").splitlines()]
    return [record["text"] for record in records if record["domain"] == domain]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--domain", type=click.Choice(["maths", "code", "medicine", "law", "general"]), default="maths")
@click.option("--ratio", default=0.05, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(model: Path, domain: str, ratio: float, out: Path) -> None:
    """Write a core file of MODEL for a domain of the shipped probe set."""
    write_core(model, texts_of(domain), domain, ratio, out)


if __name__ == "__main__":
    main()
