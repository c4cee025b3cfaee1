"""Fisher information one example (or batch) after another, in float64, with every gradient formed."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import IGNORED, Example


def fisher_by_loop(model: nn.Module, groups: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    """The mean over groups of the squared gradient of a group's mean loss, element by element."""
    return {name: square for name, (_, square) in gradients_by_loop(model, groups).items()}


def gradients_by_loop(model: nn.Module, groups: Sequence[Sequence[Example]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean over groups of the gradient of a group's mean loss, and of its square, element by element.

    The examples of a group are run one by one, without any padding.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    sums = {name: torch.zeros(2, *parameter.shape, dtype=torch.float64) for name, parameter in model.named_parameters()}
    for group in groups:
        model.zero_grad()
        num_tokens = sum(example.num_supervised for example in group)
        for example in group:
            labels_t = torch.tensor(example.labels[1:])
            logits_tv = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1]
            supervised_t = labels_t != IGNORED
            logprobs_tv = logits_tv[supervised_t].log_softmax(dim=-1)
            loss = -logprobs_tv.gather(1, labels_t[supervised_t, None]).sum() / num_tokens
            loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += torch.stack([parameter.grad, parameter.grad.square()])
    return {name: (one[0] / len(groups), one[1] / len(groups)) for name, one in sums.items()}
