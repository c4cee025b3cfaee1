"""What is said of a run's numbers: only what their intervals bear."""

import re

import numpy as np
import pytest

from tests.run_files import TASKS, edit, stages_of, story, write_run
from trace_transfer.reporting.answers import answers
from trace_transfer.reporting.records import Interval, Summary
from trace_transfer.reporting.summarising import summarise
from trace_transfer.reporting.summary_tables import details, questions
from trace_transfer.reporting.verdicts import amount, answer, judged, verdict


def interval(mean, low=None, high=None, p_adjusted=None):
    return judged(Interval(mean=mean, low=low, high=high, num=5), p_adjusted)


@pytest.mark.parametrize(
    ("ends", "p", "expected"),
    [
        ((0.02, 0.2), None, "better"),
        ((0.02, 0.2), 0.049, "better"),
        ((0.02, 0.2), 0.05, "chance"),
        ((-0.2, -0.02), 0.01, "worse"),
        ((-0.2, -0.02), 0.3, "chance"),
        ((-0.02, 0.2), 0.3, "undecided"),
        ((0.0, 0.2), None, "undecided"),
        ((0.0, 0.0), 1.0, "equal"),
        ((None, None), None, "unknown"),
    ],
)
def test_one_verdict(ends, p, expected):
    low, high = ends
    mean = 0.1 if low is None else (low + high) / 2
    found = interval(mean, low, high, p)
    assert found.verdict == verdict(found) == expected
    turned = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert verdict(found, higher_is_better=False) == turned


def test_a_difference_is_found_only_outside_of_zero():
    assert answer(interval(0.05, 0.01, 0.09), "A", "B", "average", True) == (
        "A is better than B on average: +5.0 points [+1.0, +9.0]."
    )
    assert answer(interval(-0.05, -0.09, -0.01), "A", "B", "learning", True).startswith("A is worse than B in learning")
    assert answer(interval(0.01, -0.02, 0.04), "A", "B", "average", True) == (
        "No difference between A and B was found on average: +1.0 points [-2.0, +4.0]; the interval still allows A to "
        "be up to 4.0 points better or 2.0 points worse."
    )
    assert "5 seeds give no interval, so nothing follows" in answer(interval(0.05), "A", "B", "average", True)


def test_chance_among_many_questions_is_told():
    told = answer(interval(0.05, 0.01, 0.09, 0.3), "A", "B", "average", True)
    assert told.startswith("A may be better than B on average: +5.0") and told.endswith(
        "p is 0.3 (Holm): it may be chance."
    )
    assert answer(interval(0.05, 0.01, 0.09, 0.01), "A", "B", "average", True).startswith("A is better")


def test_losses_are_not_in_points():
    assert amount(interval(0.0514, 0.0111, 0.0925), False) == "+0.051 [+0.011, +0.092]"


def summary_of(tmp_path, scores=None, **changes):
    changes = {"methods": ("sequential", "trace-lf", "transfer-lf", "depth-map", "random"), "files": False, **changes}
    return summarise(write_run(tmp_path / "run", scores=scores, **changes))


def test_the_story_is_told(tmp_path):
    summary = summary_of(tmp_path)
    notes = "\n".join(summary.notes)
    assert "Sequential fine-tuning forgets: backward transfer -24" in notes
    assert "On average higher than Random set: TRACE-LF (+9" in notes
    assert "TRACE-LF is better than Sequential fine-tuning in backward transfer: +2" in notes
    assert "No difference between Transfer-LF and Depth map was found on average" in notes
    assert "120 s on the target (TRACE-LF) and 40 s on the source" in notes and "67% less" in notes
    asked = {(one.method, one.other) for one in summary.comparisons}
    assert ("transfer-lf", "trace-lf") in asked and ("trace-lf", "lora") not in asked
    assert all(one.difference.p_adjusted >= one.difference.p for one in summary.comparisons)
    by_name = {one.method: one for one in summary.methods}
    for one in summary.comparisons:
        pairs = zip(by_name[one.method].single[one.measure], by_name[one.other].single[one.measure], strict=True)
        assert one.difference.mean == pytest.approx(np.mean([a - b for a, b in pairs]))


def test_a_difference_has_one_verdict_in_every_place(tmp_path):
    """TRACE-LF against the random set is a row of the differences from the reference and the answer to a question: of
    many questions, so that it may be chance there. The notes, the tables and the page must all say that."""

    def small(method, seed, order):
        rng = np.random.default_rng([seed, len(method)])
        gain = 0.004 * (method == "trace-lf")
        return 0.5 + gain + 0.006 * rng.normal(size=(1 + len(stages_of(method, order)), len(TASKS)))

    summary = summary_of(tmp_path, small, methods=("sequential", "trace-lf", "transfer-lf", "depth-map", "random"))
    (asked,) = (one for one in summary.comparisons if (one.method, one.other) == ("trace-lf", "random"))
    row = next(one for one in summary.methods if one.method == "trace-lf").differences["average"]
    # Found among four methods, not among all questions.
    assert 4 * asked.difference.p < 0.05 <= asked.difference.p_adjusted
    assert row == asked.difference and row.verdict == "chance"
    notes = "\n".join(summary.notes)
    assert "On average higher" not in notes and "may be chance: TRACE-LF (+" in notes
    (told,) = (one for one in answers(summary) if one.question == asked.question)
    assert "TRACE-LF" in told.short.partition("may be chance")[2] and "better" not in told.short
    for table in (questions(summary), details(summary)):
        shown = [cells[-1] for cells in table.rows if cells[:2] in ((asked.question, "TRACE-LF − Random set"),
                                                                    ("TRACE-LF", "Average"))]  # fmt: skip
        assert shown == ["may be chance"]


def test_a_summary_of_an_earlier_version_opens_without_verdicts(tmp_path):
    summary = summary_of(tmp_path)
    text = re.sub(r',?"verdict":"[a-z]+"', "", summary.model_dump_json())
    old = Summary.model_validate_json(text)
    assert {cells[-1] for cells in details(old).rows} == {"–"}
    assert {cells[-1] for cells in details(summary).rows} >= {"better", "no difference found"}


def test_little_is_said_of_noise(tmp_path):
    """All methods are the same but for noise. What is said to be found must be rare: 5 % of the runs are to say that a
    method is different from the reference, 2.5 % that something is forgotten; two of twelve are not yet surprising."""
    claimed, forgot, alone = 0, 0, 0
    for draw in range(12):

        def noise(method, seed, order, draw=draw):
            rng = np.random.default_rng([draw, seed, len(method)])
            return 0.5 + 0.01 * rng.normal(size=(1 + len(stages_of(method, order)), len(TASKS)))

        summary = summary_of(tmp_path / str(draw), noise, methods=("sequential", "trace-lf", "random"))
        notes = "\n".join(summary.notes)
        claimed += "On average" in notes
        forgot += "forgets:" in notes
        differences = [one.differences["average"] for one in summary.methods if one.differences]
        by_chance = [one for one in differences if one.verdict == "chance"]
        alone += bool(by_chance)
        assert ("but not with all that was asked at once" in notes) == bool(by_chance)
        none = "No method differs from Random set on average by more than its interval." in notes
        assert none == all(one.verdict == "undecided" for one in differences)
    assert claimed <= 2 and forgot <= 2
    assert alone  # else nothing of this was seen


def test_mixed_metrics_are_told(tmp_path):
    mixed = summary_of(tmp_path, metrics={"law": "loss"})
    assert not mixed.measures_are_shares
    assert any("mix metrics of different kinds (exact_match, loss)" in note for note in mixed.notes)


def test_a_base_that_is_scored_twice_differently_is_told(tmp_path):
    def shaky(method, seed, order):
        table = story(method, seed, order)
        table[0, 1] += 0.001 * seed
        return table

    notes = "\n".join(summary_of(tmp_path, shaky, seeds=(0, 1, 2)).notes)
    assert "code-test differs between cells by up to 0.002" in notes and "maths-test differs" not in notes


def test_missing_seeds_are_told(tmp_path):
    run = write_run(tmp_path / "run", methods=("sequential", "trace-lf", "random"), files=False)
    edit(run / "run.json", lambda data: data["cells"].pop(1))  # seed 0 of trace-lf
    summary = summarise(run)
    assert any("Not all methods have all 5 seeds: trace-lf (4 seeds)" in note for note in summary.notes)
    trace = next(one for one in summary.methods if one.method == "trace-lf")
    assert trace.seeds == (1, 2, 3, 4) and trace.differences["average"].num == 4
