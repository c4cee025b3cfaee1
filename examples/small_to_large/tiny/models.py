"""Trains the four models of the study: a small and a large one of two families that share neither shape nor tokenizer.

    python -m examples.small_to_large.tiny.models --out examples/small_to_large/tiny/models

| name | family | layers × width | parameters | tokenizer |
|---|---|---|---|---|
| llama-small, llama-large | LLaMA, tied head | 6 × 48, 12 × 96 | 0.18 M, 1.3 M | 512 byte pairs |
| qwen3-small, qwen3-large | Qwen3 (norms of queries and keys), free head | 5 × 56, 10 × 104 | 0.19 M, 1.2 M | bytes |

Same seed, versions and processor give the same weights. One thread, half an hour for all four.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from examples.small_to_large.tiny.corpus import corpus

HERE = Path(__file__).parent
CONTEXT, BATCH, RATE, WARM_UP = 128, 32, 3e-3, 50  # tokens, rows, the highest learning rate, steps until it is reached
STEPS = {"small": 1_500, "large": 1_000}
SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {  # family, vocabulary, what differs from the shape below
    "llama-small": ("llama", 512, {"num_hidden_layers": 6, "hidden_size": 48, "intermediate_size": 128}),
    "llama-large": ("llama", 512, {"num_hidden_layers": 12, "hidden_size": 96, "intermediate_size": 256}),
    "qwen3-small": ("qwen3", 258, {"num_hidden_layers": 5, "hidden_size": 56, "intermediate_size": 160}),
    "qwen3-large": ("qwen3", 258, {"num_hidden_layers": 10, "hidden_size": 104, "intermediate_size": 288}),
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def tokenizer_of(vocabulary: int, texts: list[str]) -> Any:
    """Byte pairs learned from the texts; with 258 entries these are the bytes, a beginning and an end."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=["<s>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def config_of(family: str, vocabulary: int, shape: dict[str, Any]) -> Any:
    """Of the model; four heads everywhere."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        family, vocab_size=vocabulary, head_dim=shape["hidden_size"] // 4, max_position_embeddings=512, bos_token_id=0,
        eos_token_id=1, pad_token_id=1, tie_word_embeddings=family == "llama", **HEADS, **shape,
    )  # fmt: skip


def train(name: str, documents: list[str], directory: Path) -> None:
    """Train one of SHAPES on the documents and write it with its tokenizer; prints the mean loss of the last steps."""
    import torch
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    torch.manual_seed(0)
    family, vocabulary, shape = SHAPES[name]
    tokenizer = tokenizer_of(vocabulary, documents)
    ids = [i for document in documents for i in [0, *tokenizer(document)["input_ids"], 1]]
    rows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    model = AutoModelForCausalLM.from_config(config_of(family, vocabulary, shape))
    steps = STEPS[name.partition("-")[2]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    order = torch.randperm(len(rows)).repeat(steps * BATCH // len(rows) + 1)
    losses = []
    with click.progressbar(range(steps), label=name) as shown:
        for step in shown:
            batch = rows[order[step * BATCH : (step + 1) * BATCH]]
            loss = model(batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    mean = sum(losses[-50:]) / len(losses[-50:])
    click.echo(f"{name}: {model.num_parameters():,} parameters, {steps} steps, {mean:.3f} nats a token")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)  # comes last and says that the rest is there


def train_missing(names: tuple[str, ...], out: Path) -> None:
    """Train those of the models that are not there yet."""
    import torch

    torch.set_num_threads(1)  # the same sums in the same order on every machine
    missing = [name for name in names if not (out / name / "tokenizer.json").is_file()]
    documents = corpus() if missing else []
    for name in missing:
        train(name, documents, out / name)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(SHAPES)))
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "models", show_default=False)
def main(names: tuple[str, ...], out: Path) -> None:
    """Train those of the four models that are not there yet, or of those that are named."""
    train_missing(names or tuple(SHAPES), out)


if __name__ == "__main__":
    main()
