"""Small data of every kind of evaluation, and the tiny models that they are scored on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from trace_transfer.evaluation.backends import ModelInMemory
from trace_transfer.evaluation.evaluating import prepare_suite
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.models.sources import ModelSource

QUESTIONS = [
    {"question": "What is four?", "answer": "It is 2 and 2: 4"},
    {"question": "What is half of 10, and why is it not 6?", "answer": "5"},
    {"question": "Name a prime.", "answer": "7"},
    {"question": "How many clips were sold in April and May altogether?", "answer": "She sold 72."},
    {"question": "Who?", "answer": "nobody on the platform waved"},
]
CHOICES = [
    {"q": "Rain is", "options": ["wet", "dry as dust", "a number"], "right": 0},
    {"q": "The sum of 2 and 2 is, as everybody knows,", "options": ["4", "five or six"], "right": "A"},
    {"q": "A contract is", "options": ["a promise", "a fox", "a train", "rice"], "right": "a promise"},
    {"q": "The court", "options": ["sang.", "held that nobody owed anybody anything."], "right": 1},
]
GSM8K = [
    {"question": "She has 2 clips and buys 3. How many has she?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    {"question": "A robe takes 2 bolts and half that of white. How many bolts?", "answer": "2 + 1 = 3\n#### 3"},
    {"question": "Ten less four?", "answer": "10 - 4 = 6\n#### 6"},
    {"question": "What is a thousand times 1?", "answer": "#### 1,000"},
]
ENDINGS = ("Rest", "Tea", "X-ray", "Knife")
MEDQA = [
    {"sent1": f"Patient {i} coughs.", **dict(zip(("ending0", "ending1", "ending2", "ending3"), ENDINGS, strict=True)),
     "label": i}
    for i in range(4)
]  # fmt: skip
FIELDS = {"prompt": "question", "completion": "answer"}
CHOICE_FIELDS = {"prompt": "q", "choices": "options", "answer": "right"}


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return file


def write_suite(directory: Path) -> Path:
    """One evaluation of each of our own kinds, with its data; returns the suite's file."""
    write_records(directory / "questions.jsonl", QUESTIONS)
    write_records(directory / "choices.jsonl", CHOICES)
    file = directory / "mine.yaml"
    file.write_text("""
evaluations:
  - {name: nats, kind: loss, data: questions.jsonl, fields: {prompt: question, completion: answer}}
  - name: said
    kind: exact-match
    data: questions.jsonl
    fields: {prompt: question, completion: answer}
    max_new_tokens: 6
  - {name: chosen, kind: multiple-choice, data: choices.jsonl, fields: {prompt: q, choices: options, answer: right}}
""")
    return file


def loaded(directory: Path) -> tuple[Any, Any]:
    """A model with its weights, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(directory).eval(), load_tokenizer(ModelSource.parse(directory))


def suite_of(directory: Path, records: Iterable[Mapping[str, Any]], **item: Any) -> Suite:
    """A suite of one evaluation of these records."""
    write_records(directory / "data.jsonl", records)
    return Suite.of([{"name": "one", "data": "data.jsonl", **item}], directory, "test")


def run(model: Any, tokenizer: Any, suite: Suite, **settings: Any) -> Any:
    """The outcome of the one evaluation of a suite."""
    chosen = EvaluateSettings.of(**settings)
    (prepared,) = prepare_suite(suite, chosen, tokenizer, model.config)
    return prepared.run(ModelInMemory(model, tokenizer, chosen), lambda: None)
