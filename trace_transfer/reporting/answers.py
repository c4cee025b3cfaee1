"""The questions that a run was made for, answered in sentences that follow from its numbers alone.

What a difference says is the summary's verdict on it. "No difference that these 5 seeds can show" is no proof that
there is none, so the interval stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trace_transfer.reporting import numbers
from trace_transfer.reporting.blocks import Line, strong
from trace_transfer.reporting.records import Comparison, Interval, MethodSummary, Summary, Verdict
from trace_transfer.reporting.verdicts import TWINS, finding, time_verdict

SEQUENTIAL = "sequential"
SAVINGS = "Finding core sets takes"  # how the summary's notes on times begin


@dataclass(frozen=True)
class Answer:
    """`short` is the answer in a sentence, `lines` the numbers that it follows from; times vary from run to run."""

    question: str
    short: str
    lines: tuple[Line, ...] = ()
    varies: bool = False


def answers(summary: Summary) -> tuple[Answer, ...]:
    """All questions that this run's methods can answer."""
    by_question: dict[str, list[Comparison]] = {}
    for comparison in summary.comparisons:
        by_question.setdefault(comparison.question, []).append(comparison)
    compared = [_compared(summary, question, found) for question, found in by_question.items()]
    if by_question and all(verdict(one.difference) == "unknown" for one in summary.comparisons):
        most = max(one.difference.num for one in summary.comparisons)
        compared = [
            Answer(
                "What do the differences between methods say?",
                f"Nothing yet: {_no_interval(most)}, so none can be told from chance. The tables below show them; "
                "give three seeds or more.",
            )
        ]
    found = (_forgets(summary), *compared, _saves(summary))
    return tuple(answer for answer in found if answer is not None)


def notes(summary: Summary) -> tuple[str, ...]:
    """The summary's notes but those that repeat the answers."""
    told = [*(comparison.question for comparison in summary.comparisons), SAVINGS]
    told += [f"{one.name} " for one in summary.methods if one.method == SEQUENTIAL]  # whether it forgets
    return tuple(note for note in summary.notes if not note.startswith(tuple(told)))


def verdict(difference: Interval) -> Verdict:
    """As the summary says it; that of a report is always made anew, so that it has one."""
    assert difference.verdict is not None
    return difference.verdict


def words(found: Verdict, num: int) -> str:
    """`better`, `worse`, `no difference that these 5 seeds can show`."""
    if found == "unknown":
        return f"{_no_interval(num)}, so nothing can be said"
    seeds = numbers.several(num, "seed")
    if found == "equal":
        return f"the same in all {seeds}"
    if found == "chance":
        return "a difference that may be chance among all that was asked"
    return f"no difference that these {seeds} can show" if found == "undecided" else found


def _no_interval(num: int) -> str:
    return f"{numbers.several(num, 'seed')} {'gives' if num == 1 else 'give'} no interval"


def _compared(summary: Summary, question: str, comparisons: Sequence[Comparison]) -> Answer:
    twice = len({one.method for one in comparisons}) < len(comparisons)
    pairs = [
        (_pair(summary, one) if twice else _name(summary, one.method), verdict(one.difference), one.difference.num)
        for one in comparisons
    ]
    return Answer(question, _together(pairs), tuple(_told(summary, one) for one in comparisons))


def _pair(summary: Summary, comparison: Comparison) -> str:
    return f"{_name(summary, comparison.method)} against {_name(summary, comparison.other)}"


def _together(pairs: Sequence[tuple[str, Verdict, int]]) -> str:
    """One sentence for several methods: all alike, or which are what."""
    num = min(num for _, _, num in pairs)
    groups: dict[Verdict, dict[str, None]] = {}
    for name, found, _ in pairs:
        groups.setdefault(found, {})[name] = None
    if len(groups) == 1:
        (only,) = groups
        text = words(only, num)
        names = numbers.listed(list(groups[only]))
        if only in ("better", "worse"):
            return f"{'Yes' if only == 'better' else 'No'}: {text} for {names}."
        return f"{text[0].upper()}{text[1:]}: {names}."
    order: tuple[Verdict, ...] = ("better", "worse", "chance", "undecided", "equal", "unknown")
    phrases = [f"{words(kind, num)} for {numbers.listed(list(groups[kind]))}" for kind in order if kind in groups]
    return f"Not all alike: {'; '.join(phrases)}."


def _told(summary: Summary, comparison: Comparison) -> Line:
    """`Transfer-LF against Random set: better, +3.1 points [+1.0, +5.2]; p 0.004, adjusted 0.03`."""
    found = comparison.difference
    pair = _pair(summary, comparison)
    measure = _measure(summary, comparison.measure)
    if verdict(found) == "equal":
        return (f"{pair}: ", strong(words("equal", found.num)), f", {measure}")
    if found.p is not None and found.p_adjusted is not None:
        p = f"; p {numbers.p_value(found.p)}, adjusted for all questions {numbers.p_value(found.p_adjusted)}"
    else:
        p = ""
    amount = numbers.amount(found, summary.measures_are_shares)
    if verdict(found) == "undecided" and found.low is not None and found.high is not None:
        better, worse = (numbers.value(max(end, 0.0), summary.measures_are_shares) for end in (found.high, -found.low))
        p = f"; up to {better} better or {worse} worse would fit{p}"
    return (f"{pair}: ", strong(words(verdict(found), found.num)), f", {measure} {amount}{p}")


def _measure(summary: Summary, name: str) -> str:
    return next((one.title for one in summary.measures if one.name == name), name).lower()


def _forgets(summary: Summary) -> Answer | None:
    """Told by backward transfer: forgetting takes the best of several noisy scores, so that noise alone raises it."""
    plain = _method(summary, SEQUENTIAL)
    moved = plain.measures.get("backward_transfer") if plain else None
    if plain is None or moved is None:
        return None
    kind = verdict(moved)
    short = {
        "worse": "Yes: after the last task, earlier ones are solved worse than right after they were learned.",
        "better": "No: after the last task, earlier ones are solved better than right after they were learned.",
        "undecided": f"There is no forgetting that these {numbers.several(moved.num, 'seed')} can show, so that nobody "
        "can show here that a method prevents it.",
        "equal": "No: after the last task, earlier ones are solved exactly as right after they were learned.",
        "unknown": f"{words('unknown', moved.num)}.",
        "chance": f"{words('chance', moved.num).capitalize()}.",
    }[kind]
    lines: list[Line] = []
    for name in ("backward_transfer", "forgetting", "learning"):
        if name in plain.measures:
            write = numbers.lost if name == "forgetting" else numbers.amount
            amount = write(plain.measures[name], summary.measures_are_shares)
            lines.append(f"{_measure(summary, name)} of {plain.name}: {amount}")
    return Answer("Does sequential fine-tuning forget here?", short, tuple(lines))


TIMES = {"better": "less time", "worse": "more time", "undecided": "no difference in time that these runs can show"}


def _saves(summary: Summary) -> Answer | None:
    """What carrying costs beside identifying on the target; times differ from run to run."""
    lines: list[Line] = []
    kinds: dict[str, list[str]] = {}
    for name, twin in TWINS.items():
        ours, theirs = _method(summary, name), _method(summary, twin)
        if ours is None or theirs is None:
            continue
        found, own = finding(ours), finding(theirs)
        if found is None or own is None:
            continue
        told = time_verdict(found, own)
        kind = TIMES.get(told) or words(told, min(found.num, own.num))
        kinds.setdefault(kind, []).append(ours.name)
        lines.append(
            (f"finding core sets: {ours.name} {numbers.seconds(found)} (match and carrying included), "
             f"{theirs.name} {numbers.seconds(own)}: ", strong(kind))
        )  # fmt: skip
        lines += _memory(ours, theirs)
    full = _method(summary, SEQUENTIAL)
    for name in TWINS:
        ours = _method(summary, name)
        if ours and full and "trained" in ours.costs and "trained" in full.costs:
            mine, all_of_it = ours.costs["trained"].mean, full.costs["trained"].mean
            lines.append(
                f"trained: {ours.name} {numbers.count(mine)} elements, {full.name} {numbers.count(all_of_it)}: "
                f"{mine / all_of_it:.2%}"
            )
    if not kinds:
        return None
    parts = [f"{kind} for {numbers.listed(names)}" for kind, names in kinds.items()]
    short = f"To find core sets, beside finding them on the target: {'; '.join(parts)}."
    return Answer("What does carrying save?", short, tuple(lines), varies=True)


def _memory(ours: MethodSummary, theirs: MethodSummary) -> list[Line]:
    pair = [one.costs.get("identify_peak_bytes") for one in (ours, theirs)]
    if pair[0] is None or pair[1] is None:
        return []
    return [f"peak memory of identifying: {ours.name} {numbers.size(pair[0])}, {theirs.name} {numbers.size(pair[1])}"]


def _method(summary: Summary, name: str) -> MethodSummary | None:
    return next((one for one in summary.methods if one.method == name), None)


def _name(summary: Summary, method: str) -> str:
    found = _method(summary, method)
    return found.name if found else method
