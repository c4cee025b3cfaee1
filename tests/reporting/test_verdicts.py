"""What is said of a run's numbers: only what their intervals bear."""

import re

import numpy as np
import pytest

from tests.run_files import TASKS, stages_of, write_run
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.records import Interval
from trace_transfer.reporting.summarising import summarise
from trace_transfer.reporting.summary_tables import details, questions
from trace_transfer.reporting.verdicts import judged, sentences

DEPTH = "Is matching layers by CKA better than a map in proportion to depth?"


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
    found = Interval(mean=0.1 if low is None else (low + high) / 2, low=low, high=high, num=5)
    assert judged(found, p).verdict == expected
    turned = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert judged(found, p, higher_is_better=False).verdict == turned


def summary_of(tmp_path, scores=None, **changes):
    changes = {"methods": ("sequential", "trace-lf", "transfer-lf", "depth-map", "random"), "files": False, **changes}
    return summarise(read_run(write_run(tmp_path / "run", scores=scores, **changes)))


def test_the_story_is_told(tmp_path):
    summary = summary_of(tmp_path)
    answers = {one.question: one.text for one in summary.answers}
    assert summary.headline.startswith(
        "Transfer-LF forgets less than Sequential fine-tuning: backward transfer +21.9 points ["
    )
    assert "Difference in learning: -6.2 points [" in summary.headline
    assert summary.headline.endswith("It trains 9.99% of the parameters.")
    assert "1.70 [1.67, 1.73] min, 40.0 s of them to find its core sets" in summary.cost
    assert re.match(r"Yes: .*\(backward transfer -24\.8 points", answers["Does sequential fine-tuning forget here?"])
    assert answers["Is a core set better than a random set?"] == "Yes: better for TRACE-LF and Transfer-LF."
    (depth,) = (one for one in summary.comparisons if one.question == DEPTH)
    least = f"{100 * depth.smallest_found:.1f}"
    assert (
        answers[DEPTH] == f"No difference found for Transfer-LF (differences of {least} points would have been found)."
    )
    assert 100 * depth.smallest_found > 100 * (depth.difference.high - depth.difference.low) / 2
    assert "one learning rate that was not chosen" in summary.caveat
    (saved,) = (one for one in summary.answers if one.varies)
    assert "Transfer-LF 40.0 s, match and carrying included, TRACE-LF 2.00 min (67% less)" in saved.text
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
    (told,) = (one for one in summary.answers if one.question == asked.question)
    assert "TRACE-LF" in told.text.partition("may be chance")[2] and "better" not in told.text
    for table in (questions(summary), details(summary)):
        shown = [cells[-1] for cells in table.rows if cells[:2] in ((asked.question, "TRACE-LF − Random set"),
                                                                    ("TRACE-LF", "Average"))]  # fmt: skip
        assert shown == ["may be chance"]


def test_without_intervals_nothing_is_said_of_any_difference(tmp_path):
    summary = summary_of(tmp_path, seeds=(0, 1))
    said = "".join(sentences(summary))
    assert summary.caveat.startswith("2 seeds give no interval") and said.count("interval") == 1
    assert "is open: " in summary.headline
    assert not any(word in said for word in ("better", "worse", "too few"))
