"""Kinds of records × chat templates: what is supervised, what generation goes on from, and where it stops.

`records_by_template.txt` is the table: of each family the tokens and texts at which an answer stops, of each kind of
record the texts that are trained, ⟦supervised⟧ parts marked, or why it is refused and what `mismatch: compose` makes of
it.
The prompt of generation is all that stands before the last supervised part. `⏎` is a line break.
"""

import json
from itertools import groupby
from pathlib import Path

import pytest

from tests.data.chat_templates import FAMILIES
from trace_transfer.data.encoding import encode_prompts, encode_task
from trace_transfer.data.examples import IGNORED
from trace_transfer.data.records import read_records
from trace_transfer.data.tasks_file import TaskError, TaskSpec

TABLE = Path(__file__).with_name("records_by_template.txt")


def user(text, **more):
    return {"role": "user", "content": text, **more}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
THOUGHT = "<think>\nhm\n</think>\n\n2"
KINDS = {
    "one turn": {"messages": [user("Hi"), answer("Ho")]},
    "system": {"system": "Brief.", "messages": [user("Hi"), answer("Ho")]},
    "two turns": {"messages": [user("Hi"), answer("Ho"), user("Two?"), answer("2")]},
    "masked": {"messages": [user("Hi"), answer("Ho", weight=0), user("Two?"), answer("2", weight=1)]},
    "thought": {"messages": [user("Two?"), answer(THOUGHT)]},
    "two thoughts": {"messages": [user("Hi"), answer("<think>\nhey\n</think>\n\nHo"), user("Two?"), answer(THOUGHT)]},
    "reasoning": {"messages": [user("Two?"), answer("2", reasoning_content="hm")]},
    "call": {"tools": TOOLS, "messages": [user("1?"), answer(None, tool_calls=CALL)]},
    "tool": {
        "tools": TOOLS,
        "messages": [
            user("1?"),
            answer(None, tool_calls=CALL, train=False),
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
            answer("It is 2"),
        ],
    },
    "spaces": {"prompt": "Hi", "completion": "  Ho\n"},
    "date": {"prompt": "When?", "completion": "2026-02-03"},
    "name": {"messages": [user("Hi", name="Ann"), answer("Ho")]},
}


def marked(example, tokenizer) -> str:
    """An example as text, ⟦what is learned⟧ between brackets, read token by token."""
    runs = groupby(zip(example.input_ids, example.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    texts = [(learned, tokenizer.decode([token for token, _ in run])) for learned, run in runs]
    return "".join(f"⟦{text}⟧" if learned else text for learned, text in texts).replace("\n", "⏎")


def lines_of(family: str, kind: str, directory: Path) -> list[str]:
    """What the table says of a cell, and a check that each prompt of generation is what training shows."""
    tokenizer = FAMILIES[family].tokenizer()
    (directory / "a.jsonl").write_text(json.dumps(KINDS[kind]))
    lines = []
    for mismatch in ("refuse", "compose"):
        spec = TaskSpec(name="t", data="a.jsonl", mismatch=mismatch)
        records = read_records(spec, directory)
        label = kind if mismatch == "refuse" else f"{kind}, composed"
        try:
            data = encode_task(spec, records, tokenizer)
        except TaskError as error:
            why = str(error).split("t:0: ")[1].replace("\n    ", "⏎").split(" (mismatch")[0]
            if not lines or not lines[0].endswith(why.partition(": ")[2]):
                lines.append(f"{label}: REFUSED {why}")
            continue
        lines += [f"{label}: {marked(example, tokenizer)}" for example in data.examples]
        last = data.examples[-1]
        prompts = encode_prompts(spec, records.records, tokenizer)
        start = max(place for place, label in enumerate(last.labels) if label != IGNORED and last.labels[place - 1] < 0)
        assert prompts.ids[0] == last.input_ids[:start]
        end = max(place for place, label in enumerate(last.labels) if label != IGNORED)
        stopped = last.labels[end] in prompts.stop_ids
        assert stopped or tokenizer.decode(last.input_ids[start : end + 1]).endswith(prompts.stop_texts)
        assert not set(last.labels[start:end]) & prompts.stop_ids
        break
    return lines


def stops_of(family: str, directory: Path) -> str:
    tokenizer = FAMILIES[family].tokenizer()
    (directory / "a.jsonl").write_text(json.dumps(KINDS["date"]))
    spec = TaskSpec(name="t", data="a.jsonl")
    found = encode_prompts(spec, read_records(spec, directory).records, tokenizer)
    tokens = [tokenizer.decode([token]) for token in sorted(found.stop_ids)]
    return f"== {family} stops at " + " ".join([*tokens, *(f"the text {text}" for text in found.stop_texts)])


def table() -> dict[str, list[str]]:
    """Family → its lines."""
    found = {}
    for block in TABLE.read_text("utf-8").strip().split("\n\n"):
        first, *rest = block.split("\n")
        stops, _, as_another = first.partition(", and writes as ")
        found[first.split()[1]] = [stops, *(found[as_another][1:] if as_another else rest)]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_table(family, tmp_path):
    found = [stops_of(family, tmp_path)]
    for kind in KINDS:
        found += lines_of(family, kind, tmp_path)
    assert found == table()[family]
