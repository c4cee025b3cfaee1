"""The layer-by-layer pass over a model of 3 GB: bytes read, peak memory, time.

A random Qwen2 of 1.5 billion parameters (the shape of Qwen2.5-1.5B) is written to a temporary directory, shard by shard
and never whole in memory. Children follow: the pass with the Gram consumer, an ordinary `from_pretrained` with one
forward pass, the pass's matrix products alone, and its two halves, one without the other: reading the layers, and
computing with layers that are there. Memory is counted above what the imports take; `own` leaves out pages of mapped
files, which the kernel can drop at any time.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2Config
from transformers.core_model_loading import convert_and_load_state_dict_in_model  # noqa: F401 (imports are not counted)
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401

from tests.benchmarks.table import in_child, is_small, race, show, watched
from trace_transfer.data.probe import Reading
from trace_transfer.models.checkpoints import SafetensorsCheckpoint, release
from trace_transfer.models.running import layers_of
from trace_transfer.models.sources import build_meta_model, read_inventory
from trace_transfer.transfer import probing
from trace_transfer.transfer.probing import LayerRows, read_layers
from trace_transfer.transfer.similarity import pack_layer, packed_length

NUM_TEXTS, NUM_TOKENS, BATCH_SIZE = 32, 64, 16
NUM_MINIBATCHES = 8
LAYERS_PER_SHARD = 5
FULL = {"num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "vocab_size": 151936}
SMALL = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1024, "vocab_size": 8000}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True}


def write_checkpoint(directory: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Random bf16 weights in shards of a few layers, with an index, as `save_pretrained` would lay them out."""
    config = Qwen2Config(**sizes, **HEADS, architectures=["Qwen2ForCausalLM"], dtype="bfloat16")
    config.save_pretrained(directory)
    shards: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in read_inventory(config).shapes.items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else None
        shards.setdefault(-1 if layer is None else layer // LAYERS_PER_SHARD, {})[name] = shape
    weight_map = {}
    generator = torch.Generator().manual_seed(seed)
    for number, shapes in shards.items():
        file = f"model-{number + 2:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if name.endswith("norm.weight")
            else torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def draw_ids(vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (NUM_TEXTS, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


def streamed(directory: Path, built: PreTrainedModel | None = None) -> dict[str, float]:
    """Ours: every layer's rows packed into Gram matrices, one weight after another."""
    checkpoint, config = SafetensorsCheckpoint(directory), AutoConfig.from_pretrained(directory)
    places = torch.linspace(1, NUM_TOKENS - 1, NUM_MINIBATCHES).long().repeat_interleave(NUM_TEXTS)
    texts_R = torch.arange(NUM_TEXTS).repeat(NUM_MINIBATCHES)
    ids = tuple(map(tuple, draw_ids(config.vocab_size).tolist()))
    reading = Reading(ids, torch.stack([places, places + 1], dim=1))
    sizes = [NUM_TEXTS] * NUM_MINIBATCHES
    packed_LP = torch.zeros(config.num_hidden_layers, sum(map(packed_length, sizes)))

    def consume(rows: LayerRows) -> None:
        pack_layer(rows.update, sizes, packed_LP[rows.layer])

    start = time.perf_counter()
    with watched() as peak:
        read_layers(
            config, checkpoint, "model.layers", reading, texts_R, consume, name="random", batch_size=BATCH_SIZE,
            built=built,
        )  # fmt: skip
    found = {
        "resident": peak.resident,
        "own": peak.own,
        "read": checkpoint.bytes_read,
        "on_disk": sum(file.stat().st_size for file in checkpoint.files),
    }
    return {"seconds": time.perf_counter() - start, **found}


@torch.no_grad()
def ordinary(directory: Path) -> dict[str, float]:
    """The whole model at once, in the same float32, with the hidden states of all layers."""
    start = time.perf_counter()
    with watched() as peak:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        for ids_bt in draw_ids(model.config.vocab_size).split(BATCH_SIZE):
            model.model(ids_bt, output_hidden_states=True, use_cache=False)
    return {"seconds": time.perf_counter() - start, "resident": peak.resident, "own": peak.own}


def products(directory: Path) -> dict[str, float]:
    """The matrix products of all layers alone, on weights that are there already: the machine's limit."""
    config = json.loads((directory / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = [(width, width), (width, kv), (width, kv), (width, width), (width, inner), (width, inner), (inner, width)]
    weights = [torch.randn(d_out, d_in) for d_in, d_out in shapes]
    inputs = {d_in: torch.randn(BATCH_SIZE * NUM_TOKENS, d_in) for d_in in (width, inner)}
    start = time.perf_counter()
    for _ in range(config["num_hidden_layers"] * NUM_TEXTS // BATCH_SIZE):
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
    return {"seconds": time.perf_counter() - start}


def only_reading(directory: Path) -> dict[str, float]:
    """The layers are read and let go; nothing is computed."""
    checkpoint, model = SafetensorsCheckpoint(directory), build_meta_model(AutoConfig.from_pretrained(directory))
    start = time.perf_counter()
    for index, layer in enumerate(layers_of(model, "model.layers")):
        checkpoint.load(
            model, lambda name, index=index: name.startswith(f"model.layers.{index}."), "cpu", torch.float32
        )
        release(layer)
    return {"seconds": time.perf_counter() - start}


def only_computing(directory: Path) -> dict[str, float]:
    """The pass over a model that an earlier one has left in memory."""
    model = build_meta_model(AutoConfig.from_pretrained(directory), torch.float32)
    embedding = model.get_input_embeddings()
    whole = embedding.weight
    with patch.object(probing, "release"):
        streamed(directory, model)
        embedding.weight = whole  # of which a pass has left the rows that it used
        with patch.object(SafetensorsCheckpoint, "load"):
            return {"seconds": streamed(directory, model)["seconds"]}


WAYS = {
    "streamed": streamed, "ordinary": ordinary, "products": products, "reading": only_reading,
    "computing": only_computing,
}  # fmt: skip


def measured(way: str, directory: str) -> dict[str, float]:
    return WAYS[way](Path(directory))


def main() -> None:
    sizes = SMALL if is_small(__doc__) else FULL
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_checkpoint(directory, sizes)
        ours, whole, bare, read, computed = (in_child("streaming", way, directory) for way in WAYS)
    on_disk = ours["on_disk"]

    def row(name: str, found: dict[str, float]) -> tuple[str, ...]:
        cells = [
            f"{found[key] / 1e6:,.0f} MB ({found[key] / on_disk:.0%})" for key in ("resident", "own") if key in found
        ]
        cells += [""] * (2 - len(cells))
        return (name, *cells, f"{found['seconds']:.1f}", f"{found['seconds'] / bare['seconds']:.2f}")

    show(
        f"Reading {on_disk / 1e9:.2f} GB of bf16 weights on {NUM_TEXTS} texts x {NUM_TOKENS} tokens, in float32",
        [
            row("layer by layer: read_layers, Gram matrices", ours),
            row("ordinary: from_pretrained, forward", whole),
            row("the layers' matrix products alone", bare),
            row("layer by layer, reading alone", read),
            row("layer by layer, computing alone", computed),
        ],
        ("", "peak memory", "own, without files", "seconds", "/ products"),
    )
    print(f"bytes read: {ours['read']:,.0f} of {on_disk:,.0f} ({ours['read'] / on_disk:.1%}); goal: each at most once")
    larger = max(read["seconds"], computed["seconds"])
    print(f"layer by layer: {ours['seconds'] / larger:.2f} x the larger of its halves; goal: 1.05")
    print("memory in parentheses: share of the weights on disk; goal for layer by layer: below a quarter")


if __name__ == "__main__":
    race(main, measured)
