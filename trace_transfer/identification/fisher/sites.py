"""The modules whose tensors have a form, found by what they hold and do, and hooks that hand them what they need.

A site turns a module's inputs and output gradients into squared gradients and forgets both at once. A linear layer is
torch's or transformers' (`Conv1D`), an embedding is torch's, and anything whose one-dimensional weight only scales its
output elementwise is found by trying it.

Shapes: k groups, t tokens of a group (times heads, for a norm over heads), i inputs, o outputs, d width, u used rows
of an embedding.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trace_transfer.families.anatomy import Split
from trace_transfer.identification.fisher import forms

AFFINE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}  # norms compute in float32, whatever the model's dtype
COARSE_TOLERANCE = 0.05  # of 16-bit models


class Totals:
    """Sums in float64, on the device where the squares arise: reading them there one by one would make it wait.

    Attributes:
        shapes: tensor → shape, each tensor under its owner's name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], splits: Mapping[str, Split]) -> None:
        self.shapes = shapes
        self._splits = splits
        self._sums: dict[str, Tensor] = {}

    def split_dim(self, name: str) -> int | None:
        """The dimension by which a tensor's squares are kept apart."""
        split = self._splits.get(name)
        return None if split is None else split.dim

    def add(self, name: str, squares: Tensor) -> None:
        """Add squares: a number, or one for each index of the dimension by which the tensor is split."""
        split = self._splits.get(name)
        squares = squares.sum(dtype=torch.float64) if split is None else squares.double().view(-1, split.size).sum(1)
        if name in self._sums:
            self._sums[name] += squares
        else:
            self._sums[name] = squares.clone()

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add the squares of a whole gradient."""
        rows = torch.linalg.vector_norm(gradient.float() if gradient.itemsize < 4 else gradient, dim=-1).double()
        dim = self.split_dim(name)
        if dim is None:
            self.add(name, rows.square().sum())
        elif gradient.dim() == 1:
            self.add(name, gradient.double().square())
        else:
            others = [other for other in range(gradient.dim()) if other != dim]
            self.add(name, gradient.double().square().sum(dim=others))

    def drop(self, name: str) -> None:
        """Forget a tensor's sum; it is then counted anew."""
        self._sums.pop(name, None)

    def of(self, name: str) -> Tensor:
        """The sum of a tensor, or those of its units; 0 for one that no gradient reached."""
        split = self._splits.get(name)
        shape = () if split is None else (self.shapes[name][split.dim] // split.size,)
        return self._sums[name].cpu() if name in self._sums else torch.zeros(shape, dtype=torch.float64)


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


# ---- found


def find_sites(model: nn.Module, seen: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> list[Site]:
    """The modules whose tensors have a form.

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
    """Tie heads to their embeddings, and leave out modules that share a tensor in any other way."""
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


# ---- hooks


@contextmanager
def captured(model: nn.Module, sites: Sequence[Site], run: Pass) -> Iterator[None]:
    """While it lasts, every backward pass through the model adds to `run.totals`."""
    with ExitStack() as stack:
        for site in sites:
            hook = partial(_embedding_hook, site) if isinstance(site, EmbeddingSite) else partial(_hook, site)
            handle = model.get_submodule(site.path).register_forward_hook(partial(hook, run))
            stack.callback(handle.remove)
        yield


def _hook(site: Site, run: Pass, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    if torch.is_grad_enabled() and output.requires_grad and run.by_example(args[0]):
        output.register_hook(_receiver(site, run, run.inputs(args[0])))


def _embedding_hook(
    site: EmbeddingSite, run: Pass, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    if not torch.is_grad_enabled():
        return None
    ids = args[0]
    if ids.shape[0] not in (1, run.num_rows):
        return None
    run.ids[site.path] = ids
    # Positions that all examples share: each needs its own gradient.
    output = output.expand(run.num_rows, *output.shape[1:]).requires_grad_()
    output.register_hook(_receiver(site, run, Inputs(ids)))
    return output


def _receiver(site: Site, run: Pass, inputs: Inputs) -> Any:
    held = [inputs]  # given away with the first gradient: the graph holds this function longer than needed

    def receive(gradient: Tensor) -> None:
        with torch.no_grad():
            site.take(held.pop(), gradient, run)
        run.num_taken[site.path] += run.num_groups

    return receive


@contextmanager
def observed(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Collect input and output of each module that has parameters of its own; full once the block is left.

    Left out are modules that are called twice, or with more than one argument.
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    odd: set[nn.Module] = set()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if module in found or not alone:
            odd.add(module)
        else:
            found[module] = (args[0], output)

    with ExitStack() as stack:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield found
    for module in odd:
        found.pop(module, None)
