"""A core set trained the obvious way: whole tensors, of which everything else has no gradient and is put back."""

from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM

from trace_transfer.core_sets.masks import Chosen, Part


def outside_of(tensor: torch.Tensor, part: Part | None) -> torch.Tensor:
    """True where a tensor is to stay."""
    still = torch.full(tensor.shape, part is not None)
    if isinstance(part, Chosen):
        still.view(-1)[part.indices.tolist()] = False
    elif part is not None:
        for start, stop in part.ranges:
            still.narrow(part.dim, start, stop - start).fill_(False)
    return still


def train_frozen_slowly(
    directory, batches, parts: Mapping[str, Part | None], *, learning_rate, weight_decay, max_grad_norm
):
    """Losses and final weights; no weight decay of norms and biases, as transformers' Trainer has it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    still = {name: outside_of(before[name], part) for name, part in parts.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parts)
    trained = {name: model.get_parameter(name) for name in parts}
    plain = {name for name in parts if "norm" in name or "bias" in name}
    adamw = torch.optim.AdamW(
        [
            {"params": [trained[name] for name in parts if name not in plain], "weight_decay": weight_decay},
            {"params": [trained[name] for name in parts if name in plain], "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )
    losses = []
    for batch in batches:
        adamw.zero_grad()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        for name, parameter in trained.items():
            parameter.grad[still[name]] = 0
        torch.nn.utils.clip_grad_norm_(trained.values(), max_grad_norm)
        adamw.step()
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter[still[name]] = before[name][still[name]]
        losses.append(float(loss.detach()))
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}
