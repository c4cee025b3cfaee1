"""Debiased linear CKA of all layer pairs, against the bare matrix products and against loops over pairs.

In one run, on the same rows: ours; the same triangular Gram products and the one cross product with nothing around
them; whole square Gram products; a loop over pairs as torch_cka does it; a loop in feature space. The loops are
measured on some pairs and multiplied. Rows are drawn layer by layer, outside of the timing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.table import is_small, median_seconds, seconds, show
from trace_transfer.transfer.similarity import (
    GramStack,
    debiased_cka,
    pack_layer,
    pack_layout,
    packed_length,
    split_halves,
)

SEED = 0
SHARED = 64  # directions that all layers have in common, so that similarities are not zero


@dataclass(frozen=True)
class Size:
    num_rows: int
    layers: tuple[int, int]
    widths: tuple[int, int]
    texts: int
    num_pairs: int
    checked: tuple[int, ...]


FULL = Size(2048, (32, 64), (4096, 5120), 480, 3, (0, 13, 31))
SMALL = Size(512, (6, 8), (512, 640), 64, 2, (0, 3))


@dataclass
class Times:
    """Seconds, summed over layers."""

    ours: float = 0.0
    bare: float = 0.0
    square: float = 0.0


def draw_rows(size: Size, side: int, layer: int) -> Tensor:
    """The rows of one layer, float32 [R, d]: a shared part that grows with depth, noise, and one large offset."""
    common_RK = torch.randn(size.num_rows, SHARED, generator=torch.Generator().manual_seed(SEED))
    generator = torch.Generator().manual_seed(1 + SEED + 1000 * side + layer)
    width = size.widths[side]
    mixing_Kd = torch.randn(SHARED, width, generator=generator) * (0.1 + 0.3 * layer / size.layers[side])
    rows_Rd = torch.randn(size.num_rows, width, generator=generator).addmm_(common_RK, mixing_Kd)
    rows_Rd[:, layer % width] += 50
    return rows_Rd


def bare_triangle(rows_Nd: Tensor, out_P: Tensor) -> None:
    """The products that packing needs, and nothing else."""
    n = len(rows_Nd)
    for start, stop, diagonal, strip in pack_layout(n):
        size, block_Bd = stop - start, rows_Nd[start:stop]
        torch.mm(block_Bd, block_Bd.T, out=out_P[diagonal:strip].view(size, size))
        if stop < n:
            out_BN = out_P[strip : strip + size * (n - stop)].view(size, n - stop)
            torch.mm(block_Bd, rows_Nd[stop:].T, out=out_BN)


def race_grams(size: Size, times: Times) -> tuple[GramStack, GramStack]:
    """Ours and the bare products, layer by layer, taking turns at being first."""
    length = packed_length(size.num_rows)
    scratch_P, square_NN = torch.empty(length), torch.empty(size.num_rows, size.num_rows)
    stacks = []
    for side in (0, 1):
        packed_LP = torch.zeros(size.layers[side], length)
        for layer in range(size.layers[side]):
            rows_Rd = draw_rows(size, side, layer)
            runs = {
                "ours": lambda: pack_layer(rows_Rd, [size.num_rows], packed_LP[layer]),  # noqa: B023 (called at once)
                "bare": lambda: bare_triangle(rows_Rd, scratch_P),  # noqa: B023
                "square": lambda: torch.mm(rows_Rd, rows_Rd.T, out=square_NN),  # noqa: B023
            }
            for name in list(runs) if layer % 2 else reversed(list(runs)):
                setattr(times, name, getattr(times, name) + seconds(runs[name]))
        stacks.append(GramStack(packed_LP, (torch.arange(size.num_rows),)))
    return stacks[0], stacks[1]


def hsic_by_products(k_NN: Tensor, l_NN: Tensor) -> Tensor:
    """As torch_cka: the trace of the whole product of two matrices whose diagonals are zero."""
    n = len(k_NN)
    ones_N1 = k_NN.new_ones(n, 1)
    total = torch.trace(k_NN @ l_NN)
    total = total + ((ones_N1.T @ k_NN @ ones_N1) * (ones_N1.T @ l_NN @ ones_N1) / ((n - 1) * (n - 2))).item()
    return (total - ((ones_N1.T @ k_NN) @ (l_NN @ ones_N1) * 2 / (n - 2)).item()) / (n * (n - 3))


def hollow_gram(rows_Nd: Tensor) -> Tensor:
    return (rows_Nd @ rows_Nd.T).fill_diagonal_(0)


def loop_seconds(size: Size) -> float:
    """torch_cka's loop, extrapolated: for each source layer its Gram matrix and HSIC, then for each pair the
    Gram matrix of the target layer and two HSICs."""
    x_Rd, y_Rd = draw_rows(size, 0, 0), draw_rows(size, 1, 0)
    k_NN = hollow_gram(x_Rd)

    def outer() -> None:
        hsic_by_products(hollow_gram(x_Rd), k_NN)

    def pair() -> None:
        l_NN = hollow_gram(y_Rd)
        hsic_by_products(k_NN, l_NN)
        hsic_by_products(l_NN, l_NN)

    pair()
    source, target = size.layers
    return source * median_seconds(outer, size.num_pairs) + source * target * median_seconds(pair, size.num_pairs)


def feature_seconds(size: Size) -> float:
    """In feature space, each layer's own term once, extrapolated: |X'Y|² for each pair."""
    x_Rd, y_Rd = draw_rows(size, 0, 0), draw_rows(size, 1, 0)
    source, target = size.layers
    terms = ((x_Rd, x_Rd, source), (y_Rd, y_Rd, target), (x_Rd, y_Rd, source * target))
    return sum(count * median_seconds(lambda a=a, b=b: (a.T @ b).norm(), size.num_pairs) for a, b, count in terms)


def exact_cka(size: Size, layers: tuple[int, ...]) -> Tensor:
    """Some pairs from Song's formula as it is printed, float64 [len(layers), len(layers)]."""

    def hollow(side: int, layer: int) -> Tensor:
        rows_Rd = draw_rows(size, side, layer).double()
        return hollow_gram(rows_Rd - rows_Rd.mean(dim=0))

    def hsic(k_NN: Tensor, l_NN: Tensor) -> Tensor:
        n = len(k_NN)
        sums = k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k_NN.sum(0) @ l_NN.sum(0))
        return (k_NN.flatten() @ l_NN.flatten() + sums) / (n * (n - 3))

    source, target = ([hollow(side, layer) for layer in layers] for side in (0, 1))
    return torch.stack(
        [torch.stack([hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt() for l in target]) for k in source]  # noqa: E741
    )


def halves_seconds(size: Size, num_minibatches: int = 8, num_splits: int = 10) -> float:
    """Stability over random halves of the texts, as a match measures it."""
    generator = torch.Generator().manual_seed(SEED)
    texts = (torch.arange(size.texts),) * num_minibatches
    length = num_minibatches * packed_length(size.texts)
    source, target = (GramStack(torch.randn(count, length, generator=generator), texts) for count in size.layers)
    return seconds(lambda: split_halves(source, target, debiased_cka, num_splits=num_splits, seed=SEED))


def main() -> None:
    size = SMALL if is_small(__doc__) else FULL
    times = Times()
    source, target = race_grams(size, times)
    found: list[Tensor] = []
    times.bare += (cross := seconds(lambda: source.packed_LP @ target.packed_LP.T))
    times.square += cross
    times.ours += seconds(lambda: found.append(debiased_cka(source, target).values))
    checked = list(size.checked)
    error = (found[0][checked][:, checked] - exact_cka(size, size.checked)).abs().max()
    loop, feature = loop_seconds(size), feature_seconds(size)
    of_pairs = f"measured on {size.num_pairs} pairs, extrapolated"
    rows = [
        ("ours: pack_layer + debiased_cka", times.ours, "goal: at most 1.6 times the bare products"),
        ("bare products: triangles and cross", times.bare, ""),
        ("bare products: squares and cross", times.square, ""),
        ("loop over pairs as torch_cka", loop, of_pairs),
        ("loop over pairs in feature space", feature, of_pairs),
    ]
    source_layers, target_layers = size.layers
    show(
        f"Debiased linear CKA, {source_layers} x {target_layers} layers, {size.num_rows} rows, widths {size.widths}",
        [
            (name, f"{value:.2f}", f"{value / times.bare:.2f}", f"{value / times.ours:.2f}", note)
            for name, value, note in rows
        ],
        ("", "seconds", "/ bare", "/ ours", ""),
    )
    print(f"largest error against float64 on {len(checked) ** 2} pairs: {error:.1e}")
    print(f"10 random splits into halves, {size.texts} texts, 8 minibatches: {halves_seconds(size):.2f} s")


if __name__ == "__main__":
    main()
