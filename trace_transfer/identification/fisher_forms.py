"""Squared norms of weight gradients, group by group, from what enters a layer and the gradient of what leaves it.

A group is what one gradient belongs to: an example, or a batch. The squared norm of the sum of a group's token
gradients needs no gradient of the size of the weight: for a linear layer it is the inner product of two Gram matrices,
one of inputs and one of output gradients (Goodfellow 2015, arXiv:1510.01799, for one token; Li et al. 2022,
arXiv:2110.05679, for many). Where many tokens meet a small weight it is cheaper to form that gradient, one group at a
time in one scratch buffer: never dearer than an ordinary backward pass. Sums over tokens and groups are float64.

Which modules have such a form: a linear layer is torch's or transformers' (`Conv1D`), an embedding is torch's; a module
with one-dimensional tensors is taken for a norm, whose weight scales its output elementwise. Whether that is so, and
whether a tensor is used anywhere else, is not asked here: the forms are tried against single examples before they are
used. Hooks hand them what they need; a module's inputs and output gradients are forgotten at once.

Shapes: k groups, t tokens of a group (times heads, for a norm over heads), i inputs and o outputs of a layer, d width,
u used rows of an embedding, of v.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trace_transfer.families.anatomy import Split

if TYPE_CHECKING:
    from trace_transfer.identification.fisher import MicroBatch

GRAM_PENALTY = 1.1  # small products run a tenth slower than the one large one of a gradient
BLOCK = 128  # tokens; of Gram matrices, which are symmetric, only the blocks up to the diagonal are made

Axis = Literal["in", "out"] | None  # squares summed over everything, or kept apart by input or by output


def linear_squares(x_kti: Tensor, g_kto: Tensor, axis: Axis = None) -> Tensor:
    """Squared elements of each group's sum of g x', summed over groups: a number, or [i] or [o] by the axis."""
    if axis == "in":  # those of the transposed gradient, by output
        x_kti, g_kto = g_kto, x_kti
    way = by_grams if gram_is_cheaper(x_kti.shape[1], x_kti.shape[2], g_kto.shape[2]) else by_gradients
    return way(x_kti, g_kto, axis is not None)


def gram_is_cheaper(num_tokens: int, num_in: int, num_out: int) -> bool:
    pairs_of_a_token = min(num_tokens, (num_tokens + BLOCK) / 2)
    return pairs_of_a_token * GRAM_PENALTY * (num_in + num_out) < num_in * num_out


def by_grams(x_kti: Tensor, g_kto: Tensor, by_output: bool) -> Tensor:
    """Sum over pairs of tokens of the products of their inputs and of their gradients."""
    squares = x_kti.new_zeros(g_kto.shape[2] if by_output else (), dtype=torch.float64)
    for start in range(0, x_kti.shape[1], BLOCK):  # its tokens with those before it, twice, and with its own
        block = slice(start, start + BLOCK)
        gram_kst = torch.bmm(x_kti[:, block], x_kti[:, : block.stop].mT)
        gram_kst[..., :start] *= 2
        if by_output:
            products_kso = torch.bmm(gram_kst, g_kto[:, : block.stop]).mul_(g_kto[:, block])
            squares += products_kso.sum(dim=1).sum(dim=0, dtype=torch.float64)
        else:
            products_kst = torch.bmm(g_kto[:, block], g_kto[:, : block.stop].mT).mul_(gram_kst)
            squares += products_kst.sum(dim=2).sum(dtype=torch.float64)
    return squares


def by_gradients(x_kti: Tensor, g_kto: Tensor, by_output: bool) -> Tensor:
    """The same through each group's gradient, in one scratch buffer."""
    scratch_oi = x_kti.new_empty(g_kto.shape[2], x_kti.shape[2])
    squares_o = x_kti.new_zeros(g_kto.shape[2], dtype=torch.float64)
    for x_ti, g_to in zip(x_kti, g_kto, strict=True):
        torch.mm(g_to.T, x_ti, out=scratch_oi)
        squares_o += torch.linalg.vector_norm(scratch_oi, dim=1).square_()
    return squares_o if by_output else squares_o.sum()


def vector_squares(g_ktd: Tensor) -> Tensor:
    """Squares of each group's sum over tokens (a bias' gradient), summed over groups: [d]."""
    return g_ktd.sum(dim=1, dtype=torch.float64).square().sum(dim=0)


def linear_rows(x_kti: Tensor, g_kto: Tensor, keys_u: Tensor) -> Tensor:
    """The rows of a linear layer's gradient that stand for `row_keys`, [u, i]: what a tied embedding has to add to."""
    num_rows = g_kto.shape[2]
    groups_u = torch.div(keys_u, num_rows, rounding_mode="floor")
    pairs = enumerate(zip(x_kti, g_kto, strict=True))
    return torch.cat([g_to[:, keys_u[groups_u == group] % num_rows].T @ x_ti for group, (x_ti, g_to) in pairs])


# ---- modules


class Totals:
    """Sums of squares in float64 by tensor, each under its owner's name, on the device where the squares arise."""

    def __init__(self, model: nn.Module, splits: Mapping[str, Split]) -> None:
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.splits = splits
        self._sums: dict[str, Tensor] = {}

    def split_dim(self, name: str) -> int | None:
        return self.splits[name].dim if name in self.splits else None

    def add(self, name: str, squares: Tensor) -> None:
        """Add squares: a number, or one for each index of the dimension by which the tensor is split."""
        split = self.splits.get(name)
        squares = squares.sum(dtype=torch.float64) if split is None else squares.double().view(-1, split.size).sum(1)
        self._sums[name] = self._sums[name] + squares if name in self._sums else squares

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        dim = self.split_dim(name)
        if dim is None:
            self.add(name, torch.linalg.vector_norm(gradient, dim=-1).double().square())
        else:
            by_index = gradient.movedim(dim, 0).reshape(gradient.shape[dim], -1)
            self.add(name, by_index.double().square().sum(dim=1))

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self._sums.pop(name, None)

    def of(self, name: str) -> Tensor:
        """The sum of a tensor, or those of its units; 0 for one that no gradient reached."""
        split = self.splits.get(name)
        shape = () if split is None else (self.shapes[name][split.dim] // split.size,)
        return self._sums[name].cpu() if name in self._sums else torch.zeros(shape, dtype=torch.float64)


@dataclass
class Pass:
    """What sites share while gradients arrive."""

    totals: Totals
    batch: MicroBatch = field(init=False)
    # per embedding's tensor, the token ids of the pass that is running
    ids: dict[str, Tensor] = field(default_factory=dict)
    # per embedding's tensor, the used rows of its tied head's gradient. It arrives before the embedding's own, and the
    # square of their sum needs both.
    head_rows: dict[str, Tensor] = field(default_factory=dict)
    num_taken: Counter[str] = field(default_factory=Counter)  # per site, how many groups' gradients arrived

    def by_group(self, values: Tensor) -> Tensor:
        """[…, d] → [k, t, d]."""
        return values.reshape(self.batch.num_groups, -1, values.shape[-1])

    def by_example(self, values: Tensor) -> bool:
        """Whether a tensor has one row per example, or all tokens of one example after those of another."""
        num_rows, num_tokens = self.batch.input_ids_bt.shape
        return values.dim() > 1 and values.shape[0] == (num_rows * num_tokens if values.dim() == 2 else num_rows)


@dataclass(frozen=True)
class Site:
    """A module whose tensors (the weight first, then a bias of its output) have a form: `take` adds the weight's."""

    path: str
    module: Any
    names: tuple[str, ...]
    take: Take


Take = Callable[[Site, Tensor, Tensor, Pass], None]


def linear(site: Site, x: Tensor, g: Tensor, run: Pass) -> None:
    """torch's `Linear` and transformers' `Conv1D`, whose weight is stored [in, out]."""
    weight, x_kti, g_kto = site.names[0], run.by_group(x), run.by_group(g)
    dim = run.totals.split_dim(weight)
    axis: Axis = None
    if dim is not None:
        axis = "in" if (dim == 1) != isinstance(site.module, Conv1D) else "out"
    run.totals.add(weight, linear_squares(x_kti, g_kto, axis))
    if weight in run.ids:
        keys_u, _ = row_keys(run.ids[weight], site, run)
        run.head_rows[weight] = linear_rows(x_kti, g_kto, keys_u)


def affine(site: Site, x: Tensor, g: Tensor, run: Pass) -> None:
    """A module whose output is `f(x) * weight + h(x)` elementwise, plus a bias if it has one."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in site.module.named_parameters()}
    scaled = functional_call(site.module, {**zeros, "weight": torch.ones_like(zeros["weight"])}, (x,))
    shifted = functional_call(site.module, zeros, (x,))
    run.totals.add(site.names[0], vector_squares(run.by_group((scaled - shifted) * g)))


def embedding(site: Site, ids: Tensor, g_btd: Tensor, run: Pass) -> None:
    """torch's `Embedding`, its output scaled or not; a head may be tied to it."""
    weight, module = site.names[0], site.module
    scale_bt1 = functional_call(module, {"weight": torch.ones_like(module.weight[:, :1])}, (ids,))
    if module.padding_idx is not None:  # its row never gets a gradient from the embedding
        scale_bt1 = scale_bt1.masked_fill((ids == module.padding_idx)[..., None], 0)
    keys_u, places_kt = row_keys(ids, site, run)
    g_ktd = run.by_group(scale_bt1 * g_btd)  # a row's gradient is their sum over the tokens that used it
    rows_ud = g_ktd.new_zeros(len(keys_u), g_ktd.shape[-1]).index_add_(0, places_kt.flatten(), g_ktd.flatten(0, 1))
    squares_ud = rows_ud.square()
    if weight in run.head_rows:
        squares_ud += 2 * rows_ud * run.head_rows.pop(weight)
    if run.totals.split_dim(weight) == 0:
        squares_v = squares_ud.new_zeros(module.num_embeddings, dtype=torch.float64)
        rows_u = keys_u % len(squares_v)
        run.totals.add(weight, squares_v.index_add_(0, rows_u, squares_ud.sum(dim=1, dtype=torch.float64)))
    else:
        run.totals.add(weight, squares_ud.sum(dim=0, dtype=torch.float64))


def row_keys(ids: Tensor, site: Site, run: Pass) -> tuple[Tensor, Tensor]:
    """Which rows of an embedding each group uses: [u], sorted, group × number of rows + row; and [k, t], the place of
    each token's row in it."""
    ids_kt = ids.expand(len(run.batch.input_ids_bt), -1).reshape(run.batch.num_groups, -1)
    groups_k1 = torch.arange(len(ids_kt), device=ids_kt.device)[:, None]
    keys_u, places_kt = torch.unique(ids_kt + site.module.weight.shape[0] * groups_k1, return_inverse=True)
    return keys_u, places_kt


def find_sites(model: nn.Module) -> list[Site]:
    """The modules whose tensors may have a form; a tensor of two of one kind has none."""
    owners = {parameter: name for name, parameter in model.named_parameters()}
    sites = []
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        take: Take | None = None
        if isinstance(module, nn.Linear | Conv1D):
            take = linear
        elif isinstance(module, nn.Embedding):
            take = embedding
        elif all(parameter.dim() == 1 for parameter in own.values()):
            take = affine
        if take is not None and "weight" in own and own.keys() <= {"weight", "bias"}:
            names = tuple(owners[own[key]] for key in ("weight", "bias") if key in own)
            sites.append(Site(path, module, names, take))
    users = Counter((name, site.take) for site in sites for name in site.names)
    return without(sites, {name for (name, _), count in users.items() if count > 1})


def without(sites: Sequence[Site], names: set[str]) -> list[Site]:
    """Sites of other tensors only: a tied tensor has two, and is right only if both are."""
    left = [site for site in sites if not names & set(site.names)]
    more = {name for site in sites if site not in left for name in site.names}
    return left if more <= names else without(left, names | more)


@contextmanager
def captured(sites: Sequence[Site], run: Pass) -> Iterator[None]:
    """While it lasts, every backward pass through the model adds to `run.totals`."""
    with ExitStack() as stack:
        for site in sites:
            hook = site.module.register_forward_hook(partial(_hook, site, run), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _hook(site: Site, run: Pass, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> Tensor | None:
    """What is called in another way than its form expects is not taken, and so not counted."""
    if not torch.is_grad_enabled() or len(args) != 1 or kwargs or not isinstance(output, Tensor):
        return None
    (x,), out = args, output
    if site.take is embedding:
        num_rows = len(run.batch.input_ids_bt)
        if x.shape[0] not in (1, num_rows):
            return None
        run.ids[site.names[0]] = x
        # Positions that all examples share: each needs its own gradient.
        out = output.expand(num_rows, *output.shape[1:]).requires_grad_()
    elif not (output.requires_grad and run.by_example(x)):
        return None
    held = [x.detach()]  # given away with the first gradient: the graph holds this function longer than needed

    def receive(gradient: Tensor) -> None:
        with torch.no_grad():
            site.take(site, held.pop(), gradient, run)
            for bias in site.names[1:]:
                run.totals.add(bias, vector_squares(run.by_group(gradient)))
        run.num_taken[site.path] += run.batch.num_groups

    out.register_hook(receive)
    return out
