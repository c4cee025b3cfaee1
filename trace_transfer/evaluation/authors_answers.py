"""How the authors of TRACE read an answer (KEAML-JLU/TRACE, eval/, July 2026), written anew; the harness' filters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INVALID = "[invalid]"
TRIGGER = "the answer is"
_NUMBER = re.compile(r"-?\d+\.?\d*")
# In the order in which they are tried on a line; each needs some text behind the letter.
_OPTIONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])\.\s*.",
        r"^([A-D]):\s*.",
        r"^([A-D])\s+.",
        r"Option\s*([A-D])[：:]\s*.",
        r"Answer\s*is\s*([A-D])[：:]\s*.",
        r"([A-D])\s*option[：:]\s*.",
        r"^([A-D])\s*[.：:]\s*.",
    )
)


def gsm8k_number(text: str) -> str:
    """The first number after the first "the answer is", up to the next; without one, the last number of the text."""
    before, *behind = text.lower().split(TRIGGER)
    numbers = _NUMBER.findall((behind[0] if behind else before).replace(",", ""))
    return (numbers[0] if behind else numbers[-1]).removesuffix(".") if numbers else INVALID


def gsm8k_target(doc: Mapping[str, Any]) -> str:
    """What stands behind #### in the data."""
    found = re.search(r"#### (-?[0-9.,]+)", doc["answer"])
    return found[1].strip().replace(",", "") if found else INVALID


def medqa_letter(text: str) -> str:
    """A to D: of the first line that names an option, else the first such letter by itself, else the first letter."""
    lines = [line.strip() for line in text.strip().split("\n")]
    for line in lines:
        for pattern in _OPTIONS:
            if found := pattern.search(line):
                return found[1].upper()
    if found := re.search(r"\b([A-D])\b", text):
        return found[1]
    first = lines[0].upper()
    return first[0] if first[:1] in tuple("ABCD") else INVALID


def gsm8k_filter(resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
    """`gsm8k_number` of every response."""
    return [[gsm8k_number(text) for text in texts] for texts in resps]


def medqa_filter(resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
    """`medqa_letter` of every response."""
    return [[medqa_letter(text) for text in texts] for texts in resps]


def medqa_prompt(doc: Mapping[str, Any]) -> str:
    """The question as their data have it (the heading of the options is theirs), in the prompt of their script."""
    options = "\n".join(f"{letter}. {doc[f'ending{place}']}" for place, letter in enumerate("ABCD"))
    return (
        "OUTPUT FORMAT:\n"
        "1) The first line: Output the answer, which is the provided option "
        "(e.g., 'A. xxx', 'B. yyy', 'C. zzz', 'D. www'); \n"
        "2) The second line and beyond (optional): Start with “Explanation:” to give a brief analysis.\n\n"
        "Now please answer the following question:\n\n"
        "Question: Based on the following clinical case, determine the cause and choose the most likely diagnosis.\n"
        f"{doc['sent1'].strip()}\n选项：\n{options}\n\nAnswer:"
    )
