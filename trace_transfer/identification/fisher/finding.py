"""Which modules of a model have a form for their parameters: found by what they hold and do, not by their class's name.

A linear layer is torch's or transformers' (`Conv1D`), an embedding is torch's, and anything whose one-dimensional
weight only scales its output elementwise is found by trying it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trace_transfer.identification.fisher.sites import AffineSite, EmbeddingSite, LinearSite, Site, filled, scaled

AFFINE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}  # norms compute in float32, whatever the model's dtype
COARSE_TOLERANCE = 0.05  # of 16-bit models


def find_sites(model: nn.Module, seen: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> list[Site]:
    """The modules whose parameters have a form.

    Args:
        seen: input and output of every module that a forward pass called exactly once, with one argument.
    """
    owners = {parameter: name for name, parameter in model.named_parameters()}
    users = _users(model)
    sites: dict[nn.Module, Site] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        names = {key: owners[parameter] for key, parameter in own.items()}
        if not own or module not in seen or not set(names) <= {"weight", "bias"} or "weight" not in names:
            continue
        weight, bias = names["weight"], names.get("bias")
        if isinstance(module, nn.Linear | Conv1D):
            sites[module] = LinearSite(path, weight, bias, isinstance(module, Conv1D))
        elif isinstance(module, nn.Embedding):
            scale = _embedding_scale(module, *seen[module])
            if scale is not None:
                sites[module] = EmbeddingSite(path, module, weight, scale)
        elif all(parameter.dim() == 1 for parameter in own.values()):
            pure = _affine(module, own["weight"], own.get("bias"), *seen[module])
            if pure is not None:
                sites[module] = AffineSite(path, module, weight, bias, pure)
    return _joined(sites, users)


def _users(model: nn.Module) -> dict[Tensor, list[nn.Module]]:
    users: dict[Tensor, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    return users


def _joined(sites: dict[nn.Module, Site], users: Mapping[Tensor, list[nn.Module]]) -> list[Site]:
    """Tie heads to their embeddings, and leave out modules that share a parameter in any other way."""
    left: list[Site] = []
    for module, site in sites.items():
        others = [user for own in module.parameters(recurse=False) for user in users[own] if user is not module]
        if not others:
            left.append(site)
            continue
        pair = [sites.get(user) for user in (module, *others)]
        embeddings = [one for one in pair if isinstance(one, EmbeddingSite)]
        heads = [one for one in pair if isinstance(one, LinearSite) and not one.transposed]
        if len(embeddings) == len(heads) == 1 and len(pair) == 2 and heads[0].weight == embeddings[0].weight:
            if isinstance(site, LinearSite):
                site = LinearSite(site.path, site.weight, site.bias, False, embeddings[0])
            left.append(site)
    return left


@torch.no_grad()
def _affine(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Any, output: Any) -> bool | None:
    """Whether a module only scales (True) or scales and adds (False); None if it does anything else."""
    if not isinstance(output, Tensor) or output.shape[-1] != weight.shape[0] or not output.is_floating_point():
        return None
    at_zero = functional_call(module, filled(module, 0.0), (x,))
    rebuilt = at_zero + weight * scaled(module, x, pure=False) + (0 if bias is None else bias)
    tolerance = AFFINE_TOLERANCE.get(output.dtype, COARSE_TOLERANCE)
    if not torch.allclose(rebuilt, output, rtol=tolerance, atol=tolerance * float(output.abs().max())):
        return None
    return not bool(at_zero.any())


@torch.no_grad()
def _embedding_scale(module: nn.Embedding, ids: Any, output: Any) -> float | None:
    """By what an embedding multiplies its rows; None if it does anything else."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse or ids.dim() != 2:
        return None
    factors = functional_call(module, {"weight": torch.ones_like(module.weight[:, :1])}, (ids,))
    if factors.shape != (*ids.shape, 1) or not (factors == factors.flatten()[0]).all():
        return None
    scale = factors.flatten()[0]
    return float(scale) if torch.equal(module.weight[ids] * scale, output) else None
