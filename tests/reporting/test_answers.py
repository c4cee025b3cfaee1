"""The sentences of a report follow from intervals: they change when the numbers do."""

from __future__ import annotations

import pytest

from trace_transfer.reporting.answers import answers, notes, words
from trace_transfer.reporting.blocks import plain
from trace_transfer.reporting.records import Comparison, EvaluationRecord, Interval, Measure, MethodSummary, Summary
from trace_transfer.reporting.verdicts import finding, judged, time_verdict

QUESTION = "Is a core set better than a random set?"
NAMES = {"sequential": "Sequential", "trace-lf": "TRACE-LF", "transfer-lf": "Transfer-LF", "random": "Random set"}


SCORE = EvaluationRecord(name="maths", metric="bleu", higher_is_better=True, num_examples=9, task="maths")


def interval(
    mean: float,
    low: float | None,
    high: float | None,
    num: int = 5,
    p: float | None = None,
    adjusted: float | None = None,
) -> Interval:
    return judged(Interval(mean=mean, low=low, high=high, num=num, p=p), adjusted)


def method(name: str, **more: object) -> MethodSummary:
    given = {"seeds": (0, 1, 2, 3, 4), "measures": {}, "final": {}, **more}
    return MethodSummary(method=name, title=NAMES.get(name, name), **given)


def summary(comparisons: tuple[Comparison, ...] = (), **methods: dict) -> Summary:
    measures = tuple(
        Measure(name=name, title=title, formula="…", source="…", higher_is_better=better)
        for name, title, better in (
            ("average", "Average", True),
            ("backward_transfer", "Backward transfer", True),
            ("forgetting", "Forgetting", False),
        )
    )
    found = tuple(method(name.replace("_", "-"), **more) for name, more in methods.items())
    return Summary(
        name="made", reference="random", evaluations=(SCORE,), base={}, measures=measures, methods=found, curves=(),
        matrices=(), sweeps=(), comparisons=comparisons, notes=(),
    )  # fmt: skip


def comparison(found: Interval, name: str = "transfer-lf", question: str = QUESTION) -> Comparison:
    return Comparison(
        question=question, method=name, other="random", measure="average", difference=found, answer="not shown"
    )


def test_the_words_of_each_verdict() -> None:
    assert words("better", 5) == "better"
    assert words("worse", 5) == "worse"
    assert words("undecided", 3) == "no difference that these 3 seeds can show"
    assert words("unknown", 1) == "1 seed gives no interval, so nothing can be said"


@pytest.mark.parametrize(
    ("found", "short", "line"),
    [
        (interval(0.031, 0.01, 0.052), "Yes: better for Transfer-LF.", "better, average +0.031 [+0.010, +0.052]"),
        (interval(-0.031, -0.052, -0.01), "No: worse for Transfer-LF.", "worse, average -0.031 [-0.052, -0.010]"),
        (
            interval(0.031, -0.01, 0.072),
            "No difference that these 5 seeds can show: Transfer-LF.",
            "no difference that these 5 seeds can show, average +0.031 [-0.010, +0.072]; up to 0.072 better or 0.010 "
            "worse would fit",
        ),
        (
            interval(0.0, 0.0, 0.0, 3),
            "The same in all 3 seeds: Transfer-LF.",
            "the same in all 3 seeds, average",
        ),
    ],
)
def test_an_answer_changes_with_its_numbers(found: Interval, short: str, line: str) -> None:
    (answer,) = answers(summary((comparison(found),), transfer_lf={}, random={}))
    assert (answer.question, answer.short, answer.varies) == (QUESTION, short, False)
    assert [plain(one) for one in answer.lines] == [f"Transfer-LF against Random set: {line}"]


def test_without_intervals_nothing_is_said_of_any_difference() -> None:
    (answer,) = answers(summary((comparison(interval(0.031, None, None, 2)),), transfer_lf={}, random={}))
    assert answer.question == "What do the differences between methods say?"
    assert answer.short.startswith("Nothing yet: 2 seeds give no interval,") and answer.lines == ()


def test_shares_are_told_in_percentage_points() -> None:
    made = summary((comparison(interval(0.031, 0.01, 0.052)),), transfer_lf={}, random={})
    (answer,) = answers(made.model_copy(update={"evaluations": (SCORE.model_copy(update={"metric": "acc"}),)}))
    assert plain(answer.lines[0]).endswith("better, average +3.1 [+1.0, +5.2] points")


def test_methods_that_differ_are_told_apart() -> None:
    found = (
        comparison(interval(0.1, 0.05, 0.15), "transfer-lf"),
        comparison(interval(-0.1, -0.15, -0.05), "trace-lf"),
        comparison(interval(0.0, -0.05, 0.05), "sequential"),
    )
    (answer,) = answers(summary(found, transfer_lf={}, trace_lf={}, sequential={}, random={}))
    assert answer.short == (
        "Not all alike: better for Transfer-LF; worse for TRACE-LF; no difference that these 5 seeds can show for "
        "Sequential."
    )


def test_a_finding_that_does_not_survive_the_other_questions_says_so() -> None:
    doubtful = interval(0.1, 0.01, 0.19, p=0.04, adjusted=0.3)
    (answer,) = answers(summary((comparison(doubtful),), transfer_lf={}, random={}))
    assert answer.short == "A difference that may be chance among all that was asked: Transfer-LF."
    assert plain(answer.lines[0]).endswith(
        "may be chance among all that was asked, average +0.100 [+0.010, +0.190]; p 0.040, adjusted for all questions "
        "0.300"
    )
    sure = interval(0.1, 0.05, 0.15, p=0.0001, adjusted=0.004)
    (answer,) = answers(summary((comparison(sure),), transfer_lf={}, random={}))
    assert "p < 0.001, adjusted for all questions 0.004" in plain(answer.lines[0])
    assert "chance" not in plain(answer.lines[0])


@pytest.mark.parametrize(
    ("moved", "begins"),
    [
        (interval(-0.2, -0.3, -0.1), "Yes: after the last task, earlier ones are solved worse"),
        (interval(0.2, 0.1, 0.3), "No: after the last task, earlier ones are solved better"),
        (interval(-0.1, -0.3, 0.1), "There is no forgetting that these 5 seeds can show"),
        (interval(0.0, 0.0, 0.0), "No: after the last task, earlier ones are solved exactly as"),
        (interval(-0.1, None, None, 2), "2 seeds give no interval, so nothing can be said."),
    ],
)
def test_whether_sequential_fine_tuning_forgets_is_told_by_backward_transfer(moved: Interval, begins: str) -> None:
    """Not by forgetting, which takes a maximum and is above 0 of noise alone."""
    measures = {"backward_transfer": moved, "forgetting": interval(0.3, 0.2, 0.4)}
    (answer,) = answers(summary(sequential={"measures": measures}))
    assert answer.short.startswith(begins)
    assert plain(answer.lines[1]) == "forgetting of Sequential: 0.300 [0.200, 0.400]"


def costs(seconds: float, spread: float = 1.0, **more: Interval) -> dict:
    return {"costs": {"identify_seconds": interval(seconds, seconds - spread, seconds + spread), **more}}


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(40.0, "less time"), (300.0, "more time"), (118.0, "no difference in time that these runs can show")],
)
def test_what_carrying_saves_follows_from_intervals_that_do_not_touch(ours: float, expected: str) -> None:
    mapped = {"map_seconds": interval(10, 9, 11)}
    found = summary(transfer_lf=costs(ours - 10, 4, **mapped), trace_lf=costs(120.0))
    (answer,) = answers(found)
    assert answer.varies
    assert answer.short == f"To find core sets, beside finding them on the target: {expected} for Transfer-LF."


def test_finding_adds_the_match_and_claims_no_narrower_interval_than_it_has() -> None:
    made = method("transfer-lf", **costs(30.0, 2.0, map_seconds=interval(10, 9, 11)))
    assert finding(made) == Interval(mean=40.0, low=37.0, high=43.0, num=5)
    assert time_verdict(interval(1, 0.5, 1.5), interval(2, 1.5, 2.5)) == "undecided"
    assert time_verdict(interval(1, None, None, 1), interval(2, 1.5, 2.5)) == "unknown"


def test_notes_that_repeat_answers_and_notes_on_times_are_left_out() -> None:
    made = summary((comparison(interval(0.1, 0.05, 0.15)),), sequential={}, transfer_lf={}, random={})
    repeated = (f"{QUESTION} Transfer-LF is better …", "Finding core sets takes 12 s …", "Sequential forgets: …")
    made = made.model_copy(update={"notes": (*repeated, "Intervals are Student's.")})
    assert notes(made) == ("Intervals are Student's.",)
