"""The loss of a causal language model at its supervised tokens, a chunk of them at a time.

Of a long prompt and a short answer, nearly all hidden states never meet the head. The others meet it in chunks, so that
no [n, v] is ever in memory: the gradient of a chunk is taken at once, and its logits are forgotten. What a family does
to its logits (scales, soft caps, a bias) its own forward pass does, in which the body returns hidden states that are
there already. torch's `linear_cross_entropy` (2.13) knows neither scales nor soft caps.

Shapes: b texts, t tokens of the longest, n supervised tokens, c of a chunk, d hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from trace_transfer.data.examples import IGNORED
from trace_transfer.engine import settings
from trace_transfer.models.running import replaced_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = Callable[[Tensor], Tensor]  # [c, d] → [c, v]


def give_loss(model: PreTrainedModel, *, partitioned: bool) -> None:
    """Let `model(..., targets_bt=..., weight=...)` return the weighted sum of all supervised tokens' cross-entropies.

    In float64, which loses nothing of a float32 sum; the weight enters the gradient before that is rounded to bfloat16.
    ZeRO 3 (`partitioned`) has a parameter whole only while a module runs. So a chunk is computed again in the backward
    pass, and all ranks have as many chunks."""
    ordinary = model.forward
    bodies = list({id(body): body for body in (model.base_model, model.get_decoder())}.values())
    chunk_size = max(1, settings.LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)

    @wraps(ordinary)
    def forward(*args: Any, targets_bt: Tensor | None = None, weight: float = 1.0, **inputs: Any) -> Any:
        if targets_bt is None:
            return ordinary(*args, **inputs)
        body = model.base_model(*args, **{key: value for key, value in inputs.items() if value is not None})
        kept_bt = targets_bt != IGNORED
        hidden_nd, targets_n = body.last_hidden_state[kept_bt], targets_bt[kept_bt]

        def head(hidden_cd: Tensor) -> Tensor:
            def give(*_: Any, **__: Any) -> Any:
                return type(body)(last_hidden_state=hidden_cd[None])

            with replaced_forwards(bodies, [give] * len(bodies)):
                logits_cv: Tensor = ordinary(input_ids=targets_n[None], use_cache=False).logits[0]
            return logits_cv

        num_chunks = -(-len(targets_n) // chunk_size)
        if partitioned:
            num_chunks = _most(num_chunks, hidden_nd.device)
        chunks = [*zip(hidden_nd.tensor_split(num_chunks), targets_n.tensor_split(num_chunks), strict=True)]
        if partitioned or not torch.is_grad_enabled():
            sums = (checkpoint(_summed, head, *chunk, use_reentrant=False) for chunk in chunks)
            return weight * sum(one.double() for one in sums)
        trained = [parameter for parameter in model.get_output_embeddings().parameters() if parameter.requires_grad]
        at_once: Any = _AtOnce  # torch does not type its `apply`
        return at_once.apply(head, weight, [targets_c for _, targets_c in chunks], hidden_nd, *trained)

    model.forward = forward


def _most(mine: int, device: torch.device) -> int:
    """The largest number of all ranks; collective."""
    number = torch.tensor(mine, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number)


def _summed(head: Head, hidden_cd: Tensor, targets_c: Tensor) -> Tensor:
    return -log_softmax(head(hidden_cd).float(), dim=1).gather(1, targets_c[:, None]).sum()  # the bits of `_AtOnce`


class _AtOnce(torch.autograd.Function):
    """The loss of all chunks, each with its gradient: to the backward pass nothing is left but to hand out the sums."""

    @staticmethod
    def forward(
        ctx: Any, head: Head, weight: float, targets: list[Tensor], hidden_nd: Tensor, *trained: Tensor
    ) -> Tensor:
        total = hidden_nd.new_zeros((), dtype=torch.float64)
        ctx.hidden, ctx.trained = [], [torch.zeros_like(one, dtype=torch.float32) for one in trained]
        for hidden_cd, targets_c in zip(hidden_nd.tensor_split(len(targets)), targets, strict=True):
            with torch.enable_grad():
                leaf_cd = hidden_cd.detach().requires_grad_()
                logits_cv = head(leaf_cd).float()
            scores_cv = log_softmax(logits_cv.detach(), dim=1)
            total -= scores_cv.gather(1, targets_c[:, None]).sum()
            slope_cv = scores_cv.exp_()  # of the logits
            slope_cv[torch.arange(len(targets_c), device=targets_c.device), targets_c] -= 1
            grads = torch.autograd.grad(logits_cv, [leaf_cd, *trained], slope_cv.mul_(weight))
            ctx.hidden.append(grads[0])
            for so_far, grad in zip(ctx.trained, grads[1:], strict=True):
                so_far += grad
        return total * weight

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, None, None, *(grad.mul_(upstream[0]) for grad in (torch.cat(ctx.hidden), *ctx.trained))
