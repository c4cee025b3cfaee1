"""Stand-ins of the models and data of this example, with which its plans can be looked at anywhere, without a download.

    python -m examples.llama3_to_qwen.make_configs            # writes runs/llama3_to_qwen; then
    trace-transfer run runs/llama3_to_qwen/qwen3-32b.yaml --dry-run

A model is its `config.json`, a tokenizer, and safetensors files with the headers of the real size, whose tensor data
are a hole: 65 GB to a program, a few hundred KB on the disk. Names, shapes, types and numbers of bytes are right, every
weight is zero. Data have the columns, the number of records and about the lengths of the real ones, and random words.
So what is refused, planned and estimated is what the real run would be told; nothing else may be done with them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DEFAULT_OUT = Path("runs/llama3_to_qwen")
SHARD_BYTES = 5_000_000_000
# Architecture numbers as the models' own config.json have them.
CONFIGS: dict[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "attention_bias": False, "hidden_act": "silu", "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-14B": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "use_sliding_window": False, "hidden_act": "silu", "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen3-32B": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600,
        "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False, "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
}  # fmt: skip
# Records of the training data (GSM8K-RFT U13B as counted here from the paper's 7.5 K questions and 110 K answers), and
# about how many words question and answer have.
NUM_RECORDS = {"maths": 110_000, "medicine": 10_178, "code": 20_022}
LENGTHS = {"maths": (45, 75), "medicine": (110, 4), "code": (25, 50)}
# The benchmarks that measure the tasks, as in the suite `paper`, and columns of their data: LegalBench's is left out.
EVALUATIONS: tuple[dict[str, Any], ...] = (
    {"name": "gsm8k", "kind": "harness", "task": "gsm8k_cot", "shots": 8, "metric": "exact_match",
     "filter": "strict-match", "data": "data/gsm8k.jsonl"},
    {"name": "humaneval", "kind": "humaneval", "metric": "pass@1", "data": "data/humaneval.jsonl"},
    {"name": "medqa", "kind": "harness", "task": "medqa_4options", "shots": 0, "metric": "acc",
     "data": "data/medqa.jsonl"},
)  # fmt: skip
WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "with", "as", "his", "they", "at",
    "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "we",
    "there", "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up", "out",
    "them", "then", "she", "many", "some", "so",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where everything is written")
    parser.add_argument("--records", type=int, help="at most so many records of each task; by default the real number")
    given = parser.parse_args()
    for file in write_all(given.out, given.records):
        print(file)


def write_all(out: Path, most_records: int | None = None) -> list[Path]:
    """Write models, data and run files; returns the run files."""
    out.mkdir(parents=True, exist_ok=True)
    write_data(out / "data", most_records)
    models = {name: out / "models" / name.rpartition("/")[2] for name in CONFIGS}
    for name, directory in models.items():
        write_model(directory, CONFIGS[name])
    files = []
    for original in sorted(HERE.glob("*.yaml")):
        content = stand_in(yaml.safe_load(original.read_text("utf-8")), models)
        files.append(out / original.name)
        files[-1].write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return files


def stand_in(content: Mapping[str, Any], models: Mapping[str, Path]) -> dict[str, Any]:
    """A run file with the stand-ins in place of what would be downloaded."""
    changed = dict(content)
    for key in ("source", "target"):
        changed[key] = str(Path("models") / models[content[key]].name)
    changed["out"] = f"out/{content['name']}"
    changed["tasks"] = [{**task, "data": f"data/{task['name']}.jsonl"} for task in content["tasks"]]
    del changed["suite"]
    changed["evaluations"] = [dict(one) for one in EVALUATIONS]
    return changed


def write_model(directory: Path, config: Mapping[str, Any]) -> None:
    """A directory with config, tokenizer and weights that are a hole; what is there already stays as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (directory / "tokenizer.json").is_file():
        write_tokenizer(directory)
    if not list(directory.glob("*.safetensors")):
        write_hollow_weights(directory)


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer trained on the stand-in data: a token is about a word, as in the real ones."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    draw = random.Random(0)
    texts = [text for task in NUM_RECORDS for record in records(task, 50, draw) for text in flat(record)]
    trained.train_from_iterator(texts, vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    wrapped.save_pretrained(directory)


def write_hollow_weights(directory: Path) -> None:
    """Safetensors files with the right headers, whose data are a hole in the file."""
    from trace_transfer.models.sources import ModelSource, load_config, numel, read_inventory

    shapes = read_inventory(load_config(ModelSource.parse(directory))).shapes
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + 2 * numel(shape) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * numel(shape)
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file.name)
        header, end = {}, 0
        for name, shape in shard.items():
            start, end = end, end + 2 * numel(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            os.truncate(stream.fileno(), 8 + len(text) + end)
    index = {"metadata": {"total_size": 2 * sum(map(numel, shapes.values()))}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def write_data(directory: Path, most_records: int | None) -> None:
    """Training data and those of the evaluations."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for task, count in NUM_RECORDS.items():
        write_lines(directory / f"{task}.jsonl", records(task, min(count, most_records or count), draw))
    for name, row in (("gsm8k", _gsm8k), ("humaneval", _humaneval), ("medqa", _medqa)):
        write_lines(directory / f"{name}.jsonl", (row(number, draw) for number in range(8)))


def _gsm8k(_: int, draw: random.Random) -> dict[str, Any]:
    return {"question": words(draw, 45), "answer": f"{words(draw, 50)}\n#### {draw.randint(1, 999)}"}


def _humaneval(number: int, draw: random.Random) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}", "prompt": f'def f(x):\n    """{words(draw, 30)}"""\n', "entry_point": "f",
        "canonical_solution": "    return x\n", "test": "def check(f):\n    assert f(1) == 1\n",
    }  # fmt: skip


def _medqa(number: int, draw: random.Random) -> dict[str, Any]:
    endings = {f"ending{i}": words(draw, 4) for i in range(4)}
    return {"id": str(number), "sent1": words(draw, 110), **endings, "label": draw.randrange(4)}


def write_lines(file: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def records(task: str, count: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Records in the columns of a task's real data."""
    asked, answered = LENGTHS[task]
    for _ in range(count):
        question, answer = words(draw, asked), words(draw, answered)
        if task == "maths":
            yield {"query": question, "response": f"{answer}\n#### {draw.randint(1, 999)}"}
        elif task == "medicine":
            options = {letter: words(draw, 4) for letter in "ABCD"}
            letter = draw.choice("ABCD")
            yield {"question": question, "options": options, "answer_idx": letter, "answer": options[letter]}
        else:
            yield {"instruction": question, "input": "", "output": f"def f():\n    return {answer.split()}"}


def words(draw: random.Random, mean: int) -> str:
    """A text of about so many words."""
    return " ".join(draw.choices(WORDS, k=max(1, round(draw.gauss(mean, mean / 3)))))


def flat(record: Mapping[str, Any]) -> Iterator[str]:
    """All texts of a record."""
    for value_ in record.values():
        yield from flat(value_) if isinstance(value_, dict) else (str(value_),)


if __name__ == "__main__":
    main()
