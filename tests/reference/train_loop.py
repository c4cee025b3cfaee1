"""Fine-tuning in plain torch, one example at a time: what the engine and the loop must do, obviously."""

import math
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM

from trace_transfer.data.examples import IGNORED, Example
from trace_transfer.engine.settings import TrainSettings


def train_slowly(
    directory, steps: Sequence[Sequence[Example]], settings: TrainSettings, trainable=lambda name: True
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and final weights.

    Args:
        steps: the examples of each step, in any order.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    parameters = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name))
        if trainable(name):
            parameters.append(parameter)
    adamw = torch.optim.AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay)
    num_warmup = math.ceil(settings.warmup * len(steps))
    losses, norms = [], []
    for number, examples in enumerate(steps):
        supervised = sum(label != IGNORED for example in examples for label in example.labels[1:])
        sum_of_losses = 0.0
        adamw.zero_grad()
        for example in examples:
            logits_tv = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
            for position, label in enumerate(example.labels[1:]):
                if label != IGNORED:
                    sum_of_losses = sum_of_losses - torch.log_softmax(logits_tv[position], dim=0)[label]
        loss = sum_of_losses / supervised
        loss.backward()
        limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, limit)))
        if number < num_warmup:
            share = number / num_warmup
        else:
            share = 0.5 * (1 + math.cos(math.pi * (number - num_warmup) / (len(steps) - num_warmup)))
        adamw.param_groups[0]["lr"] = settings.learning_rate * share
        adamw.step()
        losses.append(float(loss.detach()))
    return losses, norms, {name: parameter.detach() for name, parameter in model.named_parameters()}
