"""Fisher information of a model of 50 million parameters from four texts: seconds and peak memory, at three lengths.

Against an ordinary forward and backward pass over the same batch, the one-example loop, and Opacus' ghost clipping,
which gives the same squared norms per tensor and example. Each in a process of its own; processor seconds, the best
of a few runs; memory above that of the model, pages of its own only. What is measured is one micro-batch: the trial
of the forms on two short texts, once per run, has a line of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable

from tests.benchmarks.streaming import watched
from tests.benchmarks.table import is_small, show

FULL = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 8192}
SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 2048}
WIDE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 1, "vocab_size": 8192}
MODELS = {"full": FULL, "wide": WIDE, "small": SMALL}
RUNS = {
    "full": (("full", 128), ("full", 512), ("full", 1024), ("wide", 1024)),
    "small": (("small", 32), ("small", 128)),
}
NUM_TEXTS = 4
ORDINARY, LOOP, OPACUS = "ordinary forward and backward", "one-example loop", "Opacus, ghost clipping"
WHOLE, STREAMED, TRIAL = "ours", "ours, layer-streamed", "ours: the trial, once per run"
REPEATS = {128: 4, 512: 2}
ROUNDS = 2  # through all ways, one after another: a shared machine is not equally busy all the time


def build(size: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = MODELS[size]
    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048)
    return LlamaForCausalLM(config).eval()


def texts(model, length: int) -> list:
    """Random texts, every token of them supervised."""
    import torch

    from trace_transfer.data.examples import Example

    shape = (NUM_TEXTS, length)
    ids = torch.randint(1, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1)).tolist()
    return [Example(f"text:{index}", tuple(one), tuple(one)) for index, one in enumerate(ids)]


def loss(model, examples):
    """The sum of the examples' mean losses."""
    import torch

    from trace_transfer.data.examples import IGNORED, collate, losses

    batch = collate(examples)
    logits_btv = model(input_ids=batch.input_ids_bt, use_cache=False).logits
    summed_b = losses(logits_btv, batch.targets_bt).sum(dim=1)
    return torch.sum(summed_b / (batch.targets_bt != IGNORED).sum(dim=1))


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


def passes(model, examples, streamed: bool) -> Callable[[], None]:
    import torch

    from trace_transfer.identification.fisher.information import _trusted_sites
    from trace_transfer.identification.fisher.passes import group_examples, prepare, streamed_pass, whole_pass
    from trace_transfer.identification.fisher.sites import Pass, Totals, captured

    model.requires_grad_(False)
    through = streamed_pass if streamed else whole_pass
    layers = list(model.model.layers)
    sites = _trusted_sites(model, layers, examples, through)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    batch = prepare(group_examples(examples, 1), torch.device("cpu"))

    def work() -> None:
        run = Pass(Totals(shapes, {}))
        with captured(model, sites, run):
            through(model, layers, batch, run)

    return work


def trial(model, examples) -> Callable[[], None]:
    from trace_transfer.identification.fisher.information import _trusted_sites
    from trace_transfer.identification.fisher.passes import whole_pass

    model.requires_grad_(False)
    return lambda: _trusted_sites(model, list(model.model.layers), examples, whole_pass)


WAYS = {
    ORDINARY: ordinary,
    LOOP: loop,
    OPACUS: opacus,
    WHOLE: lambda model, examples: passes(model, examples, streamed=False),
    STREAMED: lambda model, examples: passes(model, examples, streamed=True),
    TRIAL: trial,
}


def measured(way: str, size: str, length: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(size)
    WAYS[way](model, texts(model, 16))()  # imports and first calls are not what is measured
    model = build(size)
    work = WAYS[way](model, texts(model, length))
    seconds = []
    give_back_free_memory()
    with watched() as peak:
        for _ in range(REPEATS.get(length, 1)):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    return {"seconds": min(seconds), "own": peak.own}


def give_back_free_memory() -> None:
    """What earlier work left free in the heap would not count when it is used again."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def in_child(way: str, size: str, length: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.fisher", "--child", way, size, str(length)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def row(way: str, found: dict[str, dict[str, float]]) -> tuple[str, ...]:
    def against(other: str, key: str) -> str:
        return f"{found[way][key] / found[other][key]:.2f}" if other in found and way != TRIAL else ""

    return (
        way,
        f"{found[way]['seconds']:.2f}",
        against(ORDINARY, "seconds"),
        against(OPACUS, "seconds"),
        f"{found[way]['own'] / 1e6:,.0f}",
        against(ORDINARY, "own"),
    )


def main() -> None:
    runs = RUNS["small" if is_small(__doc__) else "full"]
    ways = [way for way in WAYS if way != OPACUS or importlib.util.find_spec("opacus")]
    for size, length in runs:
        rounds = [{way: in_child(way, size, length) for way in ways} for _ in range(ROUNDS)]
        found = {way: {key: min(one[way][key] for one in rounds) for key in ("seconds", "own")} for way in ways}
        show(
            f"Fisher information, LLaMA {MODELS[size]}, {NUM_TEXTS} texts of {length} tokens",
            [row(way, found) for way in ways],
            ("", "cpu seconds", "/ ordinary", "/ Opacus", "peak MB", "/ ordinary"),
        )
    if OPACUS not in ways:
        print("Opacus is not installed: pip install --no-deps 'opacus==1.6.*'")
    print("goals: ours at most 1 of ordinary and 0.7 of Opacus; layer-streamed at most 0.4 of the memory of ordinary")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measured(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
