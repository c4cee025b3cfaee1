"""The modules whose parameters have a form: how each turns inputs and output gradients into squared gradients.

No model class is asked for: a linear layer is torch's or transformers' (`Conv1D`), an embedding is torch's, and
anything whose one-dimensional weight only scales its output elementwise is found by trying it.

Shapes: k groups, t tokens of a group (times heads, for a norm over heads), i inputs, o outputs, d width.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trace_transfer.fisher.totals import Totals
from trace_transfer.maths import fisher_forms as forms

AFFINE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}  # norms compute in float32, whatever the model's dtype
COARSE_TOLERANCE = 0.05  # of 16-bit models


@dataclass
class Inputs:
    """What entered a module, shared by all modules that read the same tensor."""

    tensor: Tensor
    uses: int = 0
    _gram: list[forms.Block] | None = field(default=None, repr=False)

    def by_group(self, num_groups: int) -> Tensor:
        return self.tensor.reshape(num_groups, -1, self.tensor.shape[-1])

    def gram(self, num_groups: int) -> list[forms.Block]:
        if self._gram is None:
            self._gram = forms.gram(self.by_group(num_groups))
        return self._gram


@dataclass
class Pass:
    """What sites share while gradients arrive.

    Attributes:
        num_rows, num_groups, num_tokens: examples, groups and padded length of the forward pass that is running.
        sparse: many tokens may be without gradient.
        ids: per embedding, the token ids of that forward pass.
        head_rows: per embedding, the used rows of its tied head's gradient, group after group.
        num_taken: per site, how many groups' gradients arrived.
    """

    totals: Totals
    num_rows: int = 0
    num_groups: int = 0
    num_tokens: int = 0
    sparse: bool = False
    ids: dict[str, Tensor] = field(default_factory=dict)
    head_rows: dict[str, list[Tensor]] = field(default_factory=dict)
    num_taken: Counter[str] = field(default_factory=Counter)
    last_inputs: tuple[weakref.ref[Tensor], weakref.ref[Inputs]] | None = None

    def inputs(self, tensor: Tensor) -> Inputs:
        """`tensor` for another module to read, the same object while modules read the same tensor one after another."""
        known = self.last_inputs[1]() if self.last_inputs and self.last_inputs[0]() is tensor else None
        if known is None:
            known = Inputs(tensor.detach())
            self.last_inputs = (weakref.ref(tensor), weakref.ref(known))
        known.uses += 1
        return known

    def by_example(self, tensor: Tensor) -> bool:
        """Whether a tensor has one row per example, or all tokens of one example after those of another."""
        if tensor.dim() == 2:
            return tensor.shape[0] == self.num_rows * self.num_tokens
        return tensor.dim() > 2 and tensor.shape[0] == self.num_rows


@dataclass(frozen=True)
class LinearSite:
    """torch's `Linear` and transformers' `Conv1D`, whose weight is stored [in, out]."""

    path: str
    weight: str
    bias: str | None
    transposed: bool
    tied: EmbeddingSite | None = None

    def take(self, inputs: Inputs, g: Tensor, run: Pass) -> None:
        x_kti, g_kto = inputs.by_group(run.num_groups), g.reshape(run.num_groups, -1, g.shape[-1])
        if self.bias is not None:
            run.totals.add(self.bias, forms.vector_squares(forms.bias_gradient(g_kto)))
        dim, axis, gram = run.totals.split_dim(self.weight), None, None
        if dim is not None:
            axis = "in" if (dim == 1) != self.transposed else "out"
        num_tokens = x_kti.shape[1]
        if run.sparse:
            x_kti, g_kto = forms.without_silent_tokens(x_kti, g_kto)
        if inputs.uses > 1 and axis != "in" and x_kti.shape[1] == num_tokens:
            size = (num_tokens, x_kti.shape[2], g_kto.shape[2])
            gram = inputs.gram(run.num_groups) if forms.gram_is_cheaper(*size, inputs.uses) else None
        run.totals.add(self.weight, forms.linear_squares(x_kti, g_kto, axis, gram))
        if self.tied is not None:
            self.tied.meet_head(x_kti, g_kto, run)


@dataclass(frozen=True)
class AffineSite:
    """A module whose output is `f(x) * weight + h(x)` elementwise, plus a bias if it has one.

    Attributes:
        pure: h is 0, so that its output with a weight of ones is f(x).
    """

    path: str
    module: nn.Module
    weight: str
    bias: str | None
    pure: bool

    def take(self, inputs: Inputs, g: Tensor, run: Pass) -> None:
        width = g.shape[-1]
        g_ktd = g.reshape(run.num_groups, -1, width)
        normed_ktd = scaled(self.module, inputs.tensor, self.pure).reshape(run.num_groups, -1, width)
        run.totals.add(self.weight, forms.vector_squares(forms.scale_gradient(normed_ktd, g_ktd)))
        if self.bias is not None:
            run.totals.add(self.bias, forms.vector_squares(forms.bias_gradient(g_ktd)))


@dataclass(frozen=True)
class EmbeddingSite:
    """torch's `Embedding`, its output scaled or not; a head may be tied to it.

    A tied head's gradient arrives first; what it adds to the rows that the texts use is kept until the embedding's
    own gradient is there, since the square of a sum needs both.

    Attributes:
        scale: the module's output is this times a row of its weight.
    """

    path: str
    module: nn.Embedding
    weight: str
    scale: float

    def meet_head(self, x_kti: Tensor, g_kto: Tensor, run: Pass) -> None:
        keys_u, _ = self._keys(run.ids[self.path], run)
        run.head_rows.setdefault(self.path, []).append(forms.linear_rows(x_kti, g_kto, keys_u))

    def take(self, inputs: Inputs, g: Tensor, run: Pass) -> None:
        ids_kt = self._by_group(inputs.tensor, run)
        keys_u, places_kt = self._keys(inputs.tensor, run)
        g_ktd = g.reshape(*ids_kt.shape, g.shape[-1])
        if self.module.padding_idx is not None:  # its row never gets a gradient from the embedding
            g_ktd = g_ktd.masked_fill((ids_kt == self.module.padding_idx)[..., None], 0)
        rows_ud = forms.embedding_rows(places_kt, g_ktd, len(keys_u)).mul_(self.scale)
        squares_ud = rows_ud.square()
        if self.path in run.head_rows:
            squares_ud += 2 * rows_ud * torch.cat(run.head_rows.pop(self.path))
        if run.totals.split_dim(self.weight) == 0:
            squares_v = squares_ud.new_zeros(self.module.num_embeddings, dtype=torch.float64)
            squares_u = squares_ud.sum(dim=1, dtype=torch.float64)
            run.totals.add(self.weight, squares_v.index_add_(0, keys_u % len(squares_v), squares_u))
        else:
            run.totals.add(self.weight, squares_ud.sum(dim=0, dtype=torch.float64))

    def _by_group(self, ids: Tensor, run: Pass) -> Tensor:
        return ids.expand(run.num_rows, -1).reshape(run.num_groups, -1)

    def _keys(self, ids: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        return forms.row_keys(self._by_group(ids, run), self.module.num_embeddings)


Site = LinearSite | AffineSite | EmbeddingSite


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
            pure = _affine(module, *seen[module])
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
def scaled(module: nn.Module, x: Tensor, pure: bool) -> Tensor:
    """What an affine module's weight is multiplied with, in the dtype of its output."""
    ones, zeros = _filled(module, 1.0), _filled(module, 0.0)
    normed = functional_call(module, ones, (x,))
    return normed if pure else normed - functional_call(module, zeros, (x,))


def _filled(module: nn.Module, value: float) -> dict[str, Tensor]:
    """The module's weight replaced by one value, its bias by zeros."""
    return {
        name: torch.full_like(parameter, value if name == "weight" else 0.0)
        for name, parameter in module.named_parameters()
    }


@torch.no_grad()
def _affine(module: nn.Module, x: Any, output: Any) -> bool | None:
    """Whether a module only scales (True) or scales and adds (False); None if it does anything else."""
    if not isinstance(output, Tensor) or output.shape[-1] != module.weight.shape[0] or not output.is_floating_point():
        return None
    at_zero = functional_call(module, _filled(module, 0.0), (x,))
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    rebuilt = at_zero + module.weight * scaled(module, x, pure=False) + bias
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
