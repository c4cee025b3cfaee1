"""Debiased linear CKA of all layer pairs, against the bare matrix products and against loops over pairs.

In one run, on the same rows: ours; the same triangular Gram products and the one cross product with nothing around
them; a loop over pairs as torch_cka does it, measured on some pairs and multiplied. Rows are drawn layer by layer,
outside of the timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks.table import is_small, median_seconds, seconds, show
from trace_transfer.transfer.similarity import GramStack, debiased_cka, pack_layer, packed_length

SEED = 0
SHARED = 64  # directions that all layers have in common, so that similarities are not zero


@dataclass(frozen=True)
class Size:
    num_rows: int
    layers: tuple[int, int]
    widths: tuple[int, int]
    num_pairs: int
    checked: tuple[int, ...]


FULL = Size(2048, (32, 64), (4096, 5120), 3, (0, 13, 31))
SMALL = Size(512, (6, 8), (512, 640), 2, (0, 3))


def draw_rows(size: Size, side: int, layer: int) -> Tensor:
    """The rows of one layer, float32 [R, d]: a shared part that grows with depth, noise, and one large offset."""
    common_RK = torch.randn(size.num_rows, SHARED, generator=torch.Generator().manual_seed(SEED))
    generator = torch.Generator().manual_seed(1 + SEED + 1000 * side + layer)
    width = size.widths[side]
    mixing_Kd = torch.randn(SHARED, width, generator=generator) * (0.1 + 0.3 * layer / size.layers[side])
    rows_Rd = torch.randn(size.num_rows, width, generator=generator).addmm_(common_RK, mixing_Kd)
    rows_Rd[:, layer % width] += 50
    return rows_Rd


def bare_triangle(rows_Nd: Tensor) -> None:
    """The products that packing needs, and nothing else."""
    for start in range(0, len(rows_Nd), 128):
        _ = rows_Nd[start : start + 128] @ rows_Nd[start:].T


def race_grams(size: Size) -> tuple[list[GramStack], dict[str, float]]:
    """Ours and the bare products, layer by layer, taking turns at being first; seconds summed over layers."""
    length, times = packed_length(size.num_rows), {"ours": 0.0, "bare": 0.0}
    stacks = []
    for side in (0, 1):
        packed_LP = torch.zeros(size.layers[side], length)
        for layer in range(size.layers[side]):
            rows_Rd = draw_rows(size, side, layer)
            runs = {
                "ours": partial(pack_layer, rows_Rd, [size.num_rows], packed_LP[layer]),
                "bare": partial(bare_triangle, rows_Rd),
            }
            for name in list(runs) if layer % 2 else reversed(list(runs)):
                times[name] += seconds(runs[name])
        stacks.append(GramStack(packed_LP, (torch.arange(size.num_rows),)))
    return stacks, times


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


def exact_cka(size: Size) -> Tensor:
    """Some pairs by the formula, float64 [checked, checked]."""

    def centred(side: int, layer: int) -> Tensor:
        rows_Rd = draw_rows(size, side, layer).double()
        return hollow_gram(rows_Rd - rows_Rd.mean(dim=0))

    source, target = ([centred(side, layer) for layer in size.checked] for side in (0, 1))
    own = [[hsic_by_products(k_NN, k_NN) for k_NN in one] for one in (source, target)]
    cross_ST = torch.stack([torch.stack([hsic_by_products(k_NN, l_NN) for l_NN in target]) for k_NN in source])
    return cross_ST / (torch.stack(own[0])[:, None] * torch.stack(own[1])).sqrt()


def main() -> None:
    size = SMALL if is_small(__doc__) else FULL
    (source, target), times = race_grams(size)
    found: list[Tensor] = []
    times["bare"] += seconds(lambda: source.packed_LP @ target.packed_LP.T)
    times["ours"] += seconds(lambda: found.append(debiased_cka(source, target)))
    checked = list(size.checked)
    error = (found[0][checked][:, checked] - exact_cka(size)).abs().max()
    rows = [
        ("ours: pack_layer + debiased_cka", times["ours"], "goal: at most 1.6 times the bare products"),
        ("bare products: triangles and cross", times["bare"], ""),
        ("loop over pairs as torch_cka", loop_seconds(size), f"extrapolated from {size.num_pairs} pairs"),
    ]
    show(
        f"Debiased linear CKA, {' x '.join(map(str, size.layers))} layers, {size.num_rows} rows, widths {size.widths}",
        [(name, f"{value:.2f}", f"{value / times['bare']:.2f}", note) for name, value, note in rows],
        ("", "seconds", "/ bare", ""),
    )
    print(f"largest error against float64 on {len(checked) ** 2} pairs: {error:.1e}")


if __name__ == "__main__":
    main()
