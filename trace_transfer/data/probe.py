"""The probe set, and which rows of it two models with different tokenizers can be compared on.

Reads: a text or JSONL file, two tokenizers. Gives: token ids and row spans for both models (`RowPlan`).

A row must mean the same on both sides, so rows are found by character offsets: a `boundary` row is a token whose end
is a token end in both tokenizers, so that both states have read exactly the same prefix of the text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trace_transfer.errors import ProbeError, listing
from trace_transfer.text_formats import MalformedTextError, json_lines, read_text

SHIPPED_PROBE = Path(__file__).with_name("probe.jsonl")
MIN_TEXTS = 4
Span = tuple[int, int]


@dataclass(frozen=True)
class ProbeSet:
    """Short texts without duplicates."""

    name: str
    texts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.texts, ensure_ascii=False).encode()).hexdigest()


def load_probe(path: Path | str | None = None) -> ProbeSet:
    """Read a probe set; None is the one that ships with the package.

    A `.jsonl` (or `.json`) file has an object with a `text` on each line. Any other file is plain text: paragraphs
    divided by blank lines or, where there is no blank line, one text a line. A ProbeError if it is not so."""
    file = SHIPPED_PROBE if path is None else Path(path)
    texts = _split(file, read_text(file, ProbeError, hint="; a probe set is a text or JSONL file"))
    return ProbeSet("shipped" if path is None else str(path), tuple(dict.fromkeys(texts)))


def _split(file: Path, text: str) -> list[str]:
    if file.suffix not in (".jsonl", ".json"):
        parts = re.split(r"\n[ \t\r]*\n", text) if re.search(r"\S[ \t\r]*\n[ \t\r]*\n", text) else text.splitlines()
        return [part.strip() for part in parts if part.strip()]
    texts, problems = [], []
    for number, record in json_lines(text):
        value = record.get("text") if isinstance(record, dict) else None
        if isinstance(value, str):
            texts.append(value.strip())
        else:
            wrong = record.problem if isinstance(record, MalformedTextError) else "no string under 'text'"
            problems.append(f"line {number}: {wrong}")
    if problems:
        raise ProbeError(f'{file}: {len(problems)} lines are not objects like {{"text": "…"}}:\n' + listing(problems))
    return [one for one in texts if one]


@dataclass(frozen=True)
class Reading:
    """What one model reads: token ids of each text, and the token span of each row."""

    ids: tuple[tuple[int, ...], ...]  # special tokens included
    spans_R2: Tensor  # int64 [R, 2], first token and the one after the last; a row is the mean over its span


@dataclass(frozen=True)
class RowPlan:
    """Corresponding rows of two models, minibatch after minibatch; a text has at most one row in a minibatch."""

    kind: str
    texts_R: Tensor  # int64 [R], the text of each row
    sizes: tuple[int, ...]  # number of rows of each minibatch; they sum to R
    source: Reading
    target: Reading


NO_ROWS = RowPlan("none", torch.empty(0), (), *[Reading((), torch.empty(0, 2))] * 2)  # of models that are not read


class _Encoded(NamedTuple):
    """A text as read by one tokenizer: ids, and (start, end) characters of each token, None for special tokens."""

    ids: tuple[int, ...]
    offsets: tuple[Span | None, ...]

    def overlapping(self, start: int, end: int) -> Span | None:
        """Tokens that overlap characters [start, end), or None where the text was cut before their end."""
        spans = [(i, span) for i, span in enumerate(self.offsets) if span and span[0] < end and span[1] > start]
        return (spans[0][0], spans[-1][0] + 1) if spans and spans[-1][1][1] >= end else None

    @property
    def ends(self) -> dict[int, int]:
        """Character end → token. Tokens that split one character share an end: the last has read all of it.

        The first token is left out: it attends to nothing but itself, and may carry the massive activations of a sink.
        """
        return {span[1]: token for token, span in enumerate(self.offsets) if span is not None and token > 0}


def plan_rows(
    probe: ProbeSet, source_tokenizer: Any, target_tokenizer: Any, *, kind: str = "boundary", num_minibatches: int = 8,
    max_length: int = 128, seed: int = 0,
) -> RowPlan:  # fmt: skip
    """Choose the rows on which two models are compared.

    Of each text `num_minibatches` places are drawn; minibatch m takes the m-th of every text, in reading order, so that
    no two rows of a minibatch come from one text. A text with fewer places misses the last minibatches.

    Args:
        kind: `boundary` (token ends common to both), `word` (mean over a word's tokens), `example` (mean of a text).
        max_length: tokens after which a text is cut, in either model.

    A ProbeError if fewer than four rows are left.
    """
    source = [_encode(source_tokenizer, text, max_length) for text in probe.texts]
    target = [_encode(target_tokenizer, text, max_length) for text in probe.texts]
    generator = torch.Generator().manual_seed(seed)
    minibatches: list[list[tuple[int, Span, Span]]] = [[] for _ in range(num_minibatches)]
    for index, (text, a, b) in enumerate(zip(probe.texts, source, target, strict=True)):
        places = list(_rows(kind, text, a, b))
        order = torch.randperm(len(places), generator=generator)[:num_minibatches].sort().values.tolist()
        for m, place in enumerate(order):
            minibatches[m].append((index, *places[place]))
    kept = [rows for rows in minibatches if len(rows) >= MIN_TEXTS]
    if not kept:
        most = max(map(len, minibatches))
        raise ProbeError(
            f"probe set {probe.name}: {most} of {len(probe.texts)} texts have a usable '{kind}' row, at least "
            f"{MIN_TEXTS} are needed; give more or longer texts, or another --rows"
        )
    rows = [row for minibatch in kept for row in minibatch]
    return RowPlan(
        kind,
        torch.tensor([text for text, _, _ in rows]),
        tuple(map(len, kept)),
        Reading(tuple(e.ids for e in source), torch.tensor([span for _, span, _ in rows])),
        Reading(tuple(e.ids for e in target), torch.tensor([span for _, _, span in rows])),
    )


def _encode(tokenizer: Any, text: str, max_length: int) -> _Encoded:
    """The text up to `max_length` tokens. A character that the cut splits counts as not read at all."""
    pieces = tokenizer(
        text, truncation=True, max_length=max_length, return_overflowing_tokens=True, return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )  # fmt: skip
    offsets, *rest = (
        [None if special or end <= start else (start, end) for (start, end), special in zip(*piece, strict=True)]
        for piece in zip(pieces["offset_mapping"], pieces["special_tokens_mask"], strict=True)
    )
    cut = min((span[0] for piece in rest[:1] for span in piece if span is not None), default=len(text))
    kept = tuple(None if span is None or span[1] > cut else span for span in offsets)
    return _Encoded(tuple(pieces["input_ids"][0]), kept)


def _rows(kind: str, text: str, a: _Encoded, b: _Encoded) -> Iterator[tuple[Span, Span]]:
    """Places of a text at which two models can be compared: tokens of either."""
    if kind == "boundary":
        ends_a, ends_b = a.ends, b.ends
        for end in sorted(ends_a.keys() & ends_b.keys()):
            yield (ends_a[end], ends_a[end] + 1), (ends_b[end], ends_b[end] + 1)
    elif kind == "word":
        for word in re.finditer(r"\S+", text):
            one, other = a.overlapping(*word.span()), b.overlapping(*word.span())
            if one is not None and other is not None and one[0] > 0 and other[0] > 0:
                yield one, other
    else:
        whole, others = ([i for i, span in enumerate(encoded.offsets) if span is not None] for encoded in (a, b))
        if whole and others:
            yield (whole[0], whole[-1] + 1), (others[0], others[-1] + 1)
