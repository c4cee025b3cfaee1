"""Fisher information of a model of 50 million parameters from four texts: seconds and peak memory, at three lengths.

Against an ordinary forward and backward pass over the same batch, the one-example loop, and Opacus' ghost clipping,
which gives the same squared norms per tensor and example. Each in a process of its own; processor seconds, the best
of a few runs; memory above that of the model, pages of its own only. What is measured is one micro-batch.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.table import in_child, is_small, race, show, watched
from trace_transfer.data.examples import IGNORED, Example, collate, losses
from trace_transfer.identification.fisher import backward, prepare
from trace_transfer.identification.fisher_forms import BLOCK, Pass, Totals, captured, find_sites, gram_is_cheaper
from trace_transfer.models.checkpoints import return_freed_memory

FULL = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 8192}
SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 2048}
WIDE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 1, "vocab_size": 8192}
MODELS = {"full": FULL, "wide": WIDE, "small": SMALL}
RUNS = {False: (("full", 128), ("full", 512), ("full", 1024), ("wide", 1024)), True: (("small", 32), ("small", 128))}
NUM_TEXTS, ROUNDS = 4, 2  # rounds through all ways: a shared machine is not equally busy all the time
ORDINARY, OPACUS = "ordinary forward and backward", "Opacus, ghost clipping"


def build(size: str):
    heads = MODELS[size]["hidden_size"] // 64
    config = LlamaConfig(**MODELS[size], num_attention_heads=heads, num_key_value_heads=heads)
    return LlamaForCausalLM(config).eval()


def texts(model, length: int) -> list:
    """Random texts, every token of them supervised."""
    shape = (NUM_TEXTS, length)
    ids = torch.randint(1, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1)).tolist()
    return [Example(f"text:{index}", tuple(one), tuple(one)) for index, one in enumerate(ids)]


def loss(model, examples):
    """The sum of the examples' mean losses."""
    batch = collate(examples)
    logits_btv = model(input_ids=batch.input_ids_bt, use_cache=False).logits
    summed_b = losses(logits_btv, batch.targets_bt).sum(dim=1)
    return (summed_b / (batch.targets_bt != IGNORED).sum(dim=1)).sum()


def ordinary(model, examples) -> Callable[[], None]:
    def work() -> None:
        loss(model, examples).backward()
        model.zero_grad()

    return work


def loop(model, examples) -> Callable[[], None]:
    def work() -> None:
        for example in examples:
            loss(model, [example]).backward()
            [float(parameter.grad.square().sum()) for parameter in model.parameters()]
            model.zero_grad()

    return work


def opacus(model, examples) -> Callable[[], None]:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model.train(), strict=False, loss_reduction="sum")

    def work() -> None:
        loss(wrapped, examples).backward()
        [float(parameter._norm_sample.square().sum()) for parameter in model.parameters()]
        wrapped.zero_grad()

    return work


def ours(model, examples, streamed: bool = False) -> Callable[[], None]:
    sites = find_sites(model.requires_grad_(False))
    batch = prepare([(one,) for one in examples], torch.device("cpu"))

    def work() -> None:
        run = Pass(Totals(model, {}))
        with captured(sites, run):
            backward(model, list(model.model.layers), batch, run, streamed)

    return work


def counted(size: str, length: int) -> float:
    """Matrix products of ours over those of an ordinary pass: forward, gradients of inputs, gradients of weights."""
    layers = [one.weight.shape for one in build(size).modules() if isinstance(one, torch.nn.Linear)]
    pairs = min(length, (length + BLOCK) / 2)
    ours = sum(2 * o * i + (pairs * (i + o) if gram_is_cheaper(length, i, o) else i * o) for o, i in layers)
    return ours / sum(3 * o * i for o, i in layers)


WAYS = {
    ORDINARY: ordinary, "one-example loop": loop, OPACUS: opacus, "ours": ours,
    "ours, layer-streamed": lambda model, examples: ours(model, examples, streamed=True),
}  # fmt: skip


def measured(way: str, size: str, length: str) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(size)
    WAYS[way](model, texts(model, 16))()  # imports and first calls are not what is measured
    model = build(size)
    work, seconds = WAYS[way](model, texts(model, int(length))), []
    return_freed_memory()  # what is free in the heap would not count when it is used again
    with watched() as peak:
        for _ in range(max(1, 512 // int(length))):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    return {"seconds": min(seconds), "own": peak.own}


def main() -> None:
    small = is_small(__doc__)
    ways = [way for way in WAYS if way != OPACUS or importlib.util.find_spec("opacus")]
    for size, length in RUNS[small]:
        rounds = [{way: in_child("fisher", way, size, length) for way in ways} for _ in range(ROUNDS)]
        seconds = {way: min(one[way]["seconds"] for one in rounds) for way in ways}
        own = {way: min(one[way]["own"] for one in rounds) for way in ways}
        rows = [
            (
                way, f"{seconds[way]:.2f}", f"{seconds[way] / seconds[ORDINARY]:.2f}",
                f"{seconds[way] / seconds[OPACUS]:.2f}" if OPACUS in ways else "",
                f"{own[way] / 1e6:,.0f}", f"{own[way] / own[ORDINARY]:.2f}",
            )
            for way in ways
        ]  # fmt: skip
        show(
            f"Fisher information, LLaMA {MODELS[size]}, {NUM_TEXTS} texts of {length} tokens; "
            f"products of ours, / ordinary, by count: {counted(size, length):.2f}",
            rows,
            ("", "cpu seconds", "/ ordinary", "/ Opacus", "peak MB", "/ ordinary"),
        )
    if OPACUS not in ways:
        print("Opacus is not installed: pip install --no-deps 'opacus==1.6.*'")
    print("goals: ours at most 0.85 of ordinary and 0.7 of Opacus; layer-streamed at most 0.4 of its memory")


if __name__ == "__main__":
    race(main, measured)
