"""The authors' JSON lists: read, written, and read again."""

import json

import pytest

from trace_transfer.core_sets.authors_list import (
    FORMS,
    LF_TERMS,
    core_tensors,
    read_authors_list,
    write_authors_list,
)
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.core_set import CoreSet
from trace_transfer.core_sets.selection import select
from trace_transfer.errors import ArtefactError

SHAPES = {"embed": (20, 6), "q": (6, 6), "up": (12, 6), "down": (6, 12), "norm": (6,)}
LF_ROWS = [
    {"parameter": "up", "combined_score": 0.75, "l2_delta": 0.004, "fisher_info": 2e-09, "l2_norm_score": 0.5,
     "fisher_norm_score": 1.0, "rank": 1},
    {"parameter": "norm", "combined_score": 0.5, "l2_delta": 0.005, "fisher_info": 1e-12, "l2_norm_score": 1.0,
     "fisher_norm_score": 0.0, "rank": 2},
]  # fmt: skip
CS_ROWS = [
    {"parameter": "q", "rank": 1, "specificity_score": -0.25},
    {"parameter": "down", "rank": 2, "specificity_score": 0.125},
]


def write(tmp_path, data):
    file = tmp_path / "list.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return file


def core_file(parameters, method="lf", ratio=0.4):
    identity = {
        "id": "tiny", "family": "llama", "model_type": "llama", "num_layers": 1, "num_parameters": 5,
        "num_elements": 306, "names_sha256": "0" * 64,
    }  # fmt: skip
    return CoreFile(task="math", model=identity, method={"name": method, "ratio": ratio}, parameters=parameters)


def text_of(core):
    return write_authors_list(CoreSet.of({"math.core.json": core}, SHAPES))


def scored(scores, terms=LF_TERMS):
    return [
        CoreTensor(
            name=name,
            shape=SHAPES[name],
            score=score,
            terms=None if score is None else {term: score / (i + 3) for i, term in enumerate(terms)},
        )
        for name, score in zip(SHAPES, scores, strict=True)
    ]


def test_reads_lf(tmp_path):
    method, entries = read_authors_list(write(tmp_path, LF_ROWS[::-1]))
    assert method == "lf"
    assert [(e.name, e.score) for e in entries] == [("up", 0.75), ("norm", 0.5)]
    assert entries[0].terms == {
        "l2_delta": 0.004, "fisher_info": 2e-09, "l2_norm_score": 0.5, "fisher_norm_score": 1.0
    }  # fmt: skip


def test_what_they_call_specificity_is_the_mean_cosine(tmp_path):
    method, entries = read_authors_list(write(tmp_path, CS_ROWS))
    assert method == "cs"
    assert entries == [("q", 1.25, {"mean_cosine": -0.25}), ("down", 0.875, {"mean_cosine": 0.125})]


def test_reads_what_their_script_writes_when_fisher_failed(tmp_path):
    rows = [{"parameter": "q", "delta": 0.5, "rank": 1}, {"parameter": "up", "delta": 0, "rank": 2}]
    assert read_authors_list(write(tmp_path, rows)) == (
        "l2",
        [("q", 0.5, {"l2_delta": 0.5}), ("up", 0.0, {"l2_delta": 0.0})],
    )


def test_a_selected_list_is_core_and_the_rest_has_no_score(tmp_path):
    _, entries = read_authors_list(write(tmp_path, LF_ROWS))
    found = core_tensors(entries, SHAPES)
    assert [(p.name, p.shape, p.score, p.core) for p in found] == [
        ("up", (12, 6), 0.75, True),
        ("norm", (6,), 0.5, True),
        ("embed", (20, 6), None, False),
        ("q", (6, 6), None, False),
        ("down", (6, 12), None, False),
    ]
    assert found[0].terms == entries[0].terms
    core_file(found)


def test_a_full_list_is_yet_to_be_selected_from(tmp_path):
    rows = [{"parameter": name, "rank": i + 1, "specificity_score": i / 10} for i, name in enumerate(SHAPES)]
    found = core_tensors(read_authors_list(write(tmp_path, rows))[1], SHAPES)
    assert [p.name for p in found] == list(SHAPES)
    assert not any(p.core for p in found)
    assert [p.name for p in select(found, 0.4) if p.core] == ["embed", "q"]


def test_a_list_of_another_model_is_refused_with_every_name(tmp_path):
    entries = read_authors_list(write(tmp_path, LF_ROWS))[1]
    with pytest.raises(ArtefactError, match=r"(?s)another model.*- up: no such.*- norm: no such"):
        core_tensors(entries, {"q": (6, 6), "down": (6, 12)})


@pytest.mark.parametrize("method", FORMS)
def test_what_is_written_is_read_again(tmp_path, method):
    terms = {"lf": LF_TERMS, "cs": ("mean_cosine",), "l2": ()}[method]
    parameters = select(scored([0.5, 0.1, 0.9, 0.3, 0.7], terms), 0.4)
    if method == "cs":
        parameters = [p.model_copy(update={"terms": {"mean_cosine": 1 - p.score}}) for p in parameters]
    found, entries = read_authors_list(write(tmp_path, text_of(core_file(parameters, method))))
    assert found == method
    again = core_tensors(entries, SHAPES)
    assert [(p.name, p.score) for p in again if p.core] == [("up", 0.9), ("norm", 0.7)]
    if method != "l2":
        assert [p.terms for p in again if p.core] == [p.terms for p in parameters if p.core]


def test_the_written_list_is_theirs_to_the_letter():
    parameters = [
        CoreTensor(name=row["parameter"], shape=SHAPES[row["parameter"]], score=row["combined_score"], core=True,
                      terms={term: row[term] for term in LF_TERMS})
        for row in LF_ROWS
    ]  # fmt: skip
    text = text_of(core_file(parameters))
    assert text == json.dumps(LF_ROWS, indent=4) + "\n"
    assert [list(row) for row in json.loads(text)] == [list(row) for row in LF_ROWS]
    by_cosine = [
        CoreTensor(name=row["parameter"], shape=SHAPES[row["parameter"]], score=1 - row["specificity_score"], core=True)
        for row in CS_ROWS
    ]
    assert text_of(core_file(by_cosine, "cs")) == json.dumps(CS_ROWS, indent=4) + "\n"


def test_scores_without_terms_cannot_be_written():
    parameters = select(scored([0.5, 0.1, 0.9, 0.3, 0.7], ["l2_delta", "l2_norm_score"]), 0.4)
    with pytest.raises(ArtefactError, match=r"(?s)core file of math.*- up: no fisher_info, fisher_norm_score\n.*norm"):
        text_of(core_file(parameters))
    with pytest.raises(ArtefactError, match="method 'fisher': the authors' list has forms for lf, cs, l2 only"):
        text_of(core_file(parameters, "fisher"))


def test_parts_of_tensors_cannot_be_written():
    part = CoreTensor(name="q", shape=(6, 6), rows=((0, 3),), score=0.5, core=True)
    other = CoreTensor(name="q", shape=(6, 6), rows=((3, 6),), score=0.4, core=True)
    with pytest.raises(ArtefactError, match=r"whole tensors, not parts:\n  - q$"):
        text_of(core_file([part, other]))


def changed(index, **fields):
    rows = [dict(row) for row in LF_ROWS]
    rows[index].update(fields)
    return rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "1: not valid JSON: Expecting property name"),
        ({"format": "trace-transfer/core"}, "expected a JSON list of tensors, found a mapping"),
        ([], "the list is empty"),
        ([LF_ROWS[0], "norm", 3], r"(?s)entry 2: not an object, but 'norm'.*entry 3"),
        ([{"parameter": "q", "rank": 1}], "expected one of combined_score or specificity_score or delta"),
        ([{}], "has no fields"),
        ([{**LF_ROWS[0], "delta": 1.0}], "expected one of"),
        ([{"parameter": "q", "sim_code_vs_math": 0.1, "math_specificity_score": 0.1}], "give a task's own list"),
        ([LF_ROWS[0], {"parameter": "norm", "rank": 2}], "entry 2: no combined_score\n  - entry 2: no l2_delta"),
        ([*LF_ROWS, {**CS_ROWS[0], "rank": 3}], "entry 3: no combined_score"),
        (changed(1, parameter="up"), "parameter up is listed 2 times"),
        (changed(1, rank=1), "rank 1 is listed 2 times"),
        (changed(0, rank="first"), "rank is 'first'"),
        (changed(0, parameter=["up"]), r"parameter is \['up'\]"),
        (changed(1, fisher_info=True, l2_delta=None), r"(?s)l2_delta is None.*fisher_info is True"),
        (changed(1, combined_score=0.8), "up has the better rank, but norm the better combined_score"),
        ([{**CS_ROWS[0], "rank": 3}, CS_ROWS[1]], "down has the better rank, but q .* expected rising scores"),
    ],
)
def test_bad_lists_are_one_clear_message(tmp_path, data, message):
    file = write(tmp_path, data)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_authors_list(file)
    assert str(file) in str(caught.value)
