"""The slow twin of the layer-by-layer pass: the whole model in memory, its ordinary forward, one text at a time."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trace_transfer.data.probe import Reading


@torch.no_grad()
def rows_of_all_layers(
    directory: Path, layer_path: str, reading: Reading, texts: Tensor, attention: str | None = None, **where: str
) -> list[tuple[Tensor, Tensor]]:
    """For each layer its rows, float64 [R, d]: the stream after it, and that minus the stream before it.

    Args:
        texts: the text of each row.
        attention: None for the one that transformers chooses, or `eager`.
        where: passed to `from_pretrained` (`gguf_file`).
    """
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention, **where
    ).eval()
    for parameter in model.parameters():  # a mapped file is not aligned, and products give other last bits there
        parameter.data = parameter.data.clone()
    inputs: list[list[Tensor]] = []
    outputs: list[list[Tensor]] = []
    for layer in model.get_submodule(layer_path):
        before, after = [], []
        layer.register_forward_pre_hook(lambda _, args, seen=before: seen.append(args[0][0].double()))
        layer.register_forward_hook(
            lambda _, __, out, seen=after: seen.append((out[0] if isinstance(out, tuple) else out)[0].double())
        )
        inputs.append(before)
        outputs.append(after)
    for ids in reading.ids:
        model(torch.tensor([ids]), use_cache=False)
    found = []
    for before, after in zip(inputs, outputs, strict=True):
        stream, update = [], []
        for text, (first, last) in zip(texts.tolist(), reading.spans_R2.tolist(), strict=True):
            tokens = range(first, last)
            stream.append(sum(after[text][t] for t in tokens) / len(tokens))
            update.append(sum(after[text][t] - before[text][t] for t in tokens) / len(tokens))
        found.append((torch.stack(stream), torch.stack(update)))
    return found
