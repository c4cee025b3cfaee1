"""The authors' JSON lists: read, written, and read again."""

import json

import pytest

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.importing import FORMS, LF_TERMS, core_tensors, read_authors_list, write_authors_list
from trace_transfer.core_sets.selection import select
from trace_transfer.core_sets.trainer_settings import CoreSet
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
L2_ROWS = [{"parameter": "q", "delta": 0.5, "rank": 1}, {"parameter": "up", "delta": 0, "rank": 2}]
TERMS = {key: LF_ROWS[0][key] for key in LF_TERMS}


def write(tmp_path, data):
    file = tmp_path / "list.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return file


def text_of(parameters, method="lf"):
    identity = {
        "id": "tiny", "family": "llama", "model_type": "llama", "num_layers": 1, "num_parameters": 5,
        "num_elements": 306, "names_sha256": "0" * 64,
    }  # fmt: skip
    core = CoreFile(task="math", model=identity, method={"name": method, "ratio": 0.4}, parameters=parameters)
    return write_authors_list(CoreSet.of({"math.core.json": core}, SHAPES))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (LF_ROWS[::-1], ("lf", [("up", 0.75, TERMS), ("norm", 0.5, {k: LF_ROWS[1][k] for k in LF_TERMS})])),
        # What they call specificity is the mean cosine.
        (CS_ROWS, ("cs", [("q", 1.25, {"mean_cosine": -0.25}), ("down", 0.875, {"mean_cosine": 0.125})])),
        (L2_ROWS, ("l2", [("q", 0.5, {"l2_delta": 0.5}), ("up", 0.0, {"l2_delta": 0.0})])),
    ],
)
def test_the_three_forms(tmp_path, rows, expected):
    assert read_authors_list(write(tmp_path, rows)) == expected


def test_what_is_listed_is_core_and_can_be_selected_from(tmp_path):
    _, entries = read_authors_list(write(tmp_path, LF_ROWS))
    found = core_tensors(entries, SHAPES)
    assert [(p.name, p.score, p.core) for p in found] == [
        ("up", 0.75, True), ("norm", 0.5, True), ("embed", None, False), ("q", None, False), ("down", None, False),
    ]  # fmt: skip
    assert found[0].terms == TERMS and found[0].shape == (12, 6)
    rows = [{"parameter": name, "rank": i + 1, "specificity_score": i / 10} for i, name in enumerate(SHAPES)]
    found = core_tensors(read_authors_list(write(tmp_path, rows))[1], SHAPES)
    assert [p.name for p in select(found, 0.4) if p.core] == ["embed", "q"]
    with pytest.raises(ArtefactError, match=r"(?s)another model.*- up: no such.*- norm: no such"):
        core_tensors(entries, {"q": (6, 6), "down": (6, 12)})


@pytest.mark.parametrize(("method", "rows"), zip(FORMS, (LF_ROWS, CS_ROWS, L2_ROWS), strict=True))
def test_what_is_written_is_theirs_to_the_letter(tmp_path, method, rows):
    _, entries = read_authors_list(write(tmp_path, rows))
    text = text_of(core_tensors(entries, SHAPES), method)
    assert json.loads(text) == rows
    if method == "lf":
        assert text == json.dumps(LF_ROWS, indent=4) + "\n"


def test_what_cannot_be_written():
    scored = [CoreTensor(name="up", shape=SHAPES["up"], score=0.5, core=True, terms={"l2_delta": 1, "fisher_info": 1})]
    with pytest.raises(ArtefactError, match=r"core file of math.*:\n  - up: no l2_norm_score, fisher_norm_score"):
        text_of(scored)
    with pytest.raises(ArtefactError, match="method 'fisher': the authors' list has forms for lf, cs, l2 only"):
        text_of(scored, "fisher")


def test_a_bad_list_is_one_clear_message(tmp_path):
    file = write(tmp_path, [LF_ROWS[0], {"parameter": "norm", "rank": 2}])
    with pytest.raises(ArtefactError, match=rf"^{file}: 5 problems:\n  - 1.combined_score: Field required"):
        read_authors_list(file)
    with pytest.raises(ArtefactError, match="one of combined_score, specificity_score, delta; found parameter, rank"):
        read_authors_list(write(tmp_path, [{"parameter": "q", "rank": 1}]))
