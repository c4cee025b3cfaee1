"""The modules whose parameters have a form: how each turns inputs and output gradients into squared gradients.

Shapes: k groups, t tokens of a group (times heads, for a norm over heads), i inputs, o outputs, d width.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trace_transfer.identification import fisher_forms as forms
from trace_transfer.identification.fisher.totals import Totals


@dataclass
class Inputs:
    """What entered a module, shared by all modules that read the same tensor."""

    tensor: Tensor
    uses: int = 0
    _gram: list[forms.Panel] | None = field(default=None, repr=False)

    def by_group(self, num_groups: int) -> Tensor:
        return self.tensor.reshape(num_groups, -1, self.tensor.shape[-1])

    def gram(self, num_groups: int) -> list[forms.Panel]:
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
        dim, gram = run.totals.split_dim(self.weight), None
        axis: forms.Axis = None
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


@torch.no_grad()
def scaled(module: nn.Module, x: Tensor, pure: bool) -> Tensor:
    """What an affine module's weight is multiplied with, in the dtype of its output."""
    ones, zeros = filled(module, 1.0), filled(module, 0.0)
    normed: Tensor = functional_call(module, ones, (x,))
    return normed if pure else normed - functional_call(module, zeros, (x,))


def filled(module: nn.Module, value: float) -> dict[str, Tensor]:
    """The module's weight replaced by one value, its bias by zeros."""
    return {
        name: torch.full_like(parameter, value if name == "weight" else 0.0)
        for name, parameter in module.named_parameters()
    }
