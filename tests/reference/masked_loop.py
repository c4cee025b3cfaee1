"""Fine-tuning in plain torch, one example at a time: a leaf for each trained part, whole weights put together from it.

Training the whole tensor and putting the frozen rows back after each step is not the same: their gradients count for
the clipping.
"""

import math
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM

from trace_transfer.core_sets.masks import Chosen, Mask, Part
from trace_transfer.data.examples import IGNORED, Example
from trace_transfer.engine.settings import TrainSettings


def trained_part(weight: torch.Tensor, part: Part | None) -> torch.Tensor:
    if part is None:
        return weight
    if isinstance(part, Chosen):
        return torch.stack([weight.reshape(-1)[place] for place in part.indices.tolist()])
    lines = weight.unbind(part.dim)
    return torch.stack([lines[index] for start, stop in part.ranges for index in range(start, stop)], part.dim)


def put_together(frozen: torch.Tensor, part: Part | None, values: torch.Tensor) -> torch.Tensor:
    if part is None:
        return values
    if isinstance(part, Chosen):
        single = list(frozen.reshape(-1).unbind())
        for place, value in zip(part.indices.tolist(), values.unbind(), strict=True):
            single[place] = value
        return torch.stack(single).view_as(frozen)
    lines, new = list(frozen.unbind(part.dim)), iter(values.unbind(part.dim))
    for start, stop in part.ranges:
        for index in range(start, stop):
            lines[index] = next(new)
    return torch.stack(lines, part.dim)


def train_masked_slowly(
    directory, steps: Sequence[Sequence[Example]], settings: TrainSettings, mask: Mask | None = None, make=None
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms before clipping, and the final values of the trained parts.

    Args:
        steps: the examples of each step, in any order.
        mask: None for all.
        make: leaves by name → optimizers, each group with its highest rate; AdamW if not given.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}
    aliases = {
        other: next(name for name, own in model.named_parameters() if own is parameter)
        for other, parameter in model.named_parameters(remove_duplicate=False)
    }
    mask = mask or Mask(dict.fromkeys(frozen))
    leaves = {name: trained_part(frozen[name], part).clone().requires_grad_(True) for name, part in mask.parts.items()}
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizers = make(leaves) if make else [torch.optim.AdamW(leaves.values(), lr=rate, weight_decay=decay)]
    groups = [(group, group["lr"]) for one in optimizers for group in one.param_groups]
    num_warmup = math.ceil(settings.warmup * len(steps))
    losses, norms = [], []
    for number, examples in enumerate(steps):
        weights = {n: put_together(w, mask.parts[n], leaves[n]) if n in leaves else w for n, w in frozen.items()}
        weights = {other: weights[name] for other, name in aliases.items()}
        supervised = sum(label != IGNORED for example in examples for label in example.labels[1:])
        sum_of_losses = 0.0
        for example in examples:
            ids = torch.tensor([example.input_ids])
            out = torch.func.functional_call(model, weights, kwargs={"input_ids": ids, "use_cache": False})
            for logits_v, label in zip(out.logits[0], example.labels[1:], strict=False):
                if label != IGNORED:
                    sum_of_losses = sum_of_losses - torch.log_softmax(logits_v, dim=0)[label]
        loss = sum_of_losses / supervised
        for leaf in leaves.values():
            leaf.grad = None
        loss.backward()
        limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
        norms.append(float(torch.nn.utils.clip_grad_norm_(leaves.values(), limit)))
        if number < num_warmup:
            share = number / num_warmup
        else:
            share = 0.5 * (1 + math.cos(math.pi * (number - num_warmup) / (len(steps) - num_warmup)))
        for group, highest in groups:
            group["lr"] = highest * share
        for one in optimizers:
            one.step()
        losses.append(float(loss.detach()))
    return losses, norms, {name: leaf.detach() for name, leaf in leaves.items()}
