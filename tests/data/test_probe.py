"""The probe set's file, and rows that mean the same in two models."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.tiny_models import TEXTS, build_tokenizer
from trace_transfer.data.probe import MIN_TEXTS, ProbeSet, RowPlan, load_probe, plan_rows
from trace_transfer.errors import ProbeError

PROSE, CODE = build_tokenizer("prose"), build_tokenizer("code")  # one puts a special token before, one behind
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
QUICK = settings(max_examples=40)

# Letters that merge, characters of one to four bytes, whitespace of all kinds, marks that combine.
ALPHABET = st.sampled_from(list("theand Zw 0123 .,(){}=\n\té漢字ü🦊e\u0301\u00a0"))
ROW_KINDS = ("boundary", "word", "example")
SOME_TEXTS = st.lists(st.text(ALPHABET, min_size=12, max_size=60), min_size=6, max_size=10, unique=True)


def plan(texts, kind="boundary", **options) -> RowPlan:
    try:
        return plan_rows(ProbeSet("test", tuple(texts)), PROSE, CODE, kind=kind, **options)
    except ProbeError:
        assume(False)


def offsets(tokenizer, text):
    return tokenizer(text, return_offsets_mapping=True)["offset_mapping"]


def sides(made: RowPlan):
    return ((PROSE, made.source), (CODE, made.target))


def bytes_read(tokenizer, ids) -> bytes:
    """The exact bytes of some tokens; a token may end in the middle of a character."""
    tokens = [token for token in tokenizer.convert_ids_to_tokens(list(ids)) if token != "<s>"]
    return bytes(BYTES[character] for token in tokens for character in token)


@settings(QUICK, max_examples=100)
@given(SOME_TEXTS, st.integers(8, 24), st.integers(0, 3))
def test_boundary_rows_have_read_the_same_bytes(texts, max_length, seed):
    """The heart of it: whatever the texts are, both states of a row have seen exactly the same prefix."""
    made = plan(texts, "boundary", num_minibatches=30, max_length=max_length, seed=seed)
    for row, text in enumerate(made.texts_R.tolist()):
        read = []
        for tokenizer, reading in sides(made):
            first, last = reading.spans_R2[row].tolist()
            assert last == first + 1
            assert first > 0
            read.append(bytes_read(tokenizer, reading.ids[text][:last]))
        assert read[0] == read[1]
        assert texts[text].encode().startswith(read[0])
        read[0].decode()  # whole characters


@QUICK
@given(SOME_TEXTS)
def test_word_rows_cover_the_same_word(texts):
    made = plan(texts, "word")
    for row, text in enumerate(made.texts_R.tolist()):
        words = []
        for tokenizer, reading in sides(made):
            first, last = reading.spans_R2[row].tolist()
            found = offsets(tokenizer, texts[text])[first:last]
            words.append(texts[text][min(a for a, _ in found) : max(b for _, b in found)])
        # A token may hold the blank before its word, or the end of one and the start of the next.
        common = [word for word in re.findall(r"\S+", texts[text]) if all(word in one for one in words)]
        assert common


@QUICK
@given(SOME_TEXTS)
def test_example_rows_cover_the_text(texts):
    made = plan(texts, "example", num_minibatches=1)
    assert len(set(made.texts_R.tolist())) == len(made.texts_R)
    for row, text in enumerate(made.texts_R.tolist()):
        for tokenizer, reading in sides(made):
            first, last = reading.spans_R2[row].tolist()
            assert bytes_read(tokenizer, reading.ids[text][first:last]) == texts[text].encode()


@QUICK
@given(SOME_TEXTS, st.sampled_from(ROW_KINDS), st.integers(1, 9), st.integers(0, 3))
def test_a_plan_holds_together(texts, kind, num_minibatches, seed):
    made = plan(texts, kind, num_minibatches=num_minibatches, seed=seed)
    assert sum(made.sizes) == len(made.texts_R) == len(made.source.spans_R2) == len(made.target.spans_R2)
    assert 1 <= len(made.sizes) <= num_minibatches
    assert min(made.sizes) >= MIN_TEXTS
    assert list(made.sizes) == sorted(made.sizes, reverse=True)
    for one in made.texts_R.split(made.sizes):  # rows of one text depend on each other
        assert len(set(one.tolist())) == len(one)
    for tokenizer, reading in sides(made):
        for text, (first, last) in zip(made.texts_R.tolist(), reading.spans_R2.tolist(), strict=True):
            assert 0 <= first < last <= len(reading.ids[text])
            assert tokenizer.bos_token_id not in reading.ids[text][first:last]
    again = plan(texts, kind, num_minibatches=num_minibatches, seed=seed)
    assert torch.equal(again.source.spans_R2, made.source.spans_R2)


def test_the_first_token_is_never_used_even_if_it_is_not_special():
    """It attends to nothing but itself, and massive activations sit there."""
    for kind in ("boundary", "word"):
        made = plan_rows(ProbeSet("test", tuple(TEXTS)), CODE, CODE, kind=kind, num_minibatches=1000)
        assert int(made.source.spans_R2[:, 0].min()) >= 1


def test_one_tokenizer_twice_gives_every_token():
    made = plan_rows(ProbeSet("test", tuple(TEXTS)), PROSE, PROSE, num_minibatches=1000, max_length=500)
    assert torch.equal(made.source.spans_R2, made.target.spans_R2)
    # All but the special token; of several tokens that share the bytes of one character only the last.
    ends = [len({end for _, end in offsets(PROSE, text)} - {0}) for text in TEXTS]
    num_minibatches = sorted(ends)[-MIN_TEXTS]  # as many as four texts can fill
    assert len(made.sizes) == num_minibatches
    assert Counter(made.texts_R.tolist()) == {text: min(count, num_minibatches) for text, count in enumerate(ends)}


# ---- files


def write(tmp_path, content, name="probe.txt"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


def test_the_shipped_probe_set():
    probe = load_probe()
    assert (probe.name, len(probe.texts), len(set(probe.texts))) == ("shipped", 480, 480)
    assert min(len(PROSE.tokenize(text)) for text in probe.texts) > 8


def test_the_hash_is_that_of_the_texts(tmp_path):
    lines = load_probe(write(tmp_path, "a\nb\nc\nd\nb\nb\n"))
    assert lines.texts == ("a", "b", "c", "d")
    assert lines.sha256 == load_probe(write(tmp_path, "a\n\nb\n\nc\n\nd", "other.txt")).sha256
    assert lines.sha256 != load_probe(write(tmp_path, "a\nb\nd\nc\n", "third.txt")).sha256


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"caf\xe9\nb\nc\nd\n", "p.txt", r"not UTF-8 text \(byte 3\)"),
        ('{"text": "a"}\n{"txt": "b"}\n3\n{"text": 4}\nnope\n', "p.jsonl", "4 lines are not objects like"),
    ],
)
def test_what_is_refused(tmp_path, content, name, message):
    with pytest.raises(ProbeError, match=message):
        load_probe(write(tmp_path, content, name))
