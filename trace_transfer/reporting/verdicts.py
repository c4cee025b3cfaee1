"""What a run's numbers say, in plain words: the questions that its methods can answer, and notes on how far they go.

Works on a summary alone. `verdict` decides what a difference says; the notes, the tables and the report read it. Where
nothing was found the sentence says how large a difference the interval still allows: that is no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trace_transfer.reporting.intervals import holm
from trace_transfer.reporting.records import Comparison, Interval, MethodSummary, Summary, Verdict

Paired = Callable[[Mapping[int, float], Mapping[int, float]], Interval | None]

ALPHA = 0.05
FORGETS = "backward_transfer"
MASKED = ("trace-lf", "trace-cs", "transfer-lf", "transfer-cs", "transfer-lf-core", "transfer-cs-core")
CARRIED = MASKED[2:]
# Method → the same scores, of core sets that are identified on the target itself.
TWINS = {name: f"trace-{name.split('-')[1]}" for name in CARRIED}


@dataclass(frozen=True)
class Question:
    """`pairs` are (method, other) by name; those that a run lacks are left out."""

    text: str
    measure: str
    pairs: tuple[tuple[str, str], ...]


def _against(other: str, methods: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((method, other) for method in methods)


QUESTIONS = (
    Question("Does training the core sets alone lose less than training everything?", "backward_transfer",
             _against("sequential", MASKED)),
    Question("Do core sets learn as much as training everything?", "learning", _against("sequential", MASKED)),
    Question("Do core sets end higher than training everything?", "average", _against("sequential", MASKED)),
    Question("Do core sets end higher than adapters?", "average", _against("lora", MASKED)),
    Question("Do core sets end higher than training all tasks at once?", "average",
             _against("joint", MASKED[:1] + CARRIED[:1])),
    Question("Do core sets end higher than replaying earlier tasks?", "average",
             _against("dmt", MASKED[:1] + CARRIED[:1])),
    Question("Is a core set better than a random set?", "average", _against("random", MASKED)),
    Question("Is a core set better than whole layers?", "average",
             (*_against("first", MASKED[:1] + CARRIED[:1]), *_against("last", MASKED[:1] + CARRIED[:1]))),
    Question("Is matching layers by CKA better than a map in proportion to depth?", "average",
             _against("depth-map", CARRIED[:1])),
    Question("Is matching layers by CKA better than a shuffled map?", "average",
             _against("shuffled-map", CARRIED[:1])),
    Question("Does a carried core set match one that was identified on the target?", "average",
             tuple(TWINS.items())),
    Question("Is carrying scores better than carrying the set?", "average",
             (("transfer-lf", "transfer-lf-core"), ("transfer-cs", "transfer-cs-core"))),
)  # fmt: skip


def verdict(difference: Interval, *, higher_is_better: bool = True) -> Verdict:
    """What a difference says; the one place that decides it.

    `better` and `worse` ask for an interval without 0 *and*, where other things were asked beside it, an adjusted p
    below 0.05; `chance` has the first alone. `undecided`: 0 is in the interval; `equal`: it is all of it (two maps that
    choose the same layers train the same); `unknown`: too few seeds for an interval.
    """
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "unknown"
    if low == high == 0:
        return "equal"
    if low <= 0 <= high:
        return "undecided"
    if difference.p_adjusted is not None and difference.p_adjusted >= ALPHA:
        return "chance"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def judged(difference: Interval, p_adjusted: float | None = None, *, higher_is_better: bool = True) -> Interval:
    """A difference with its adjusted p and its verdict."""
    found = difference.model_copy(update={"p_adjusted": p_adjusted})
    return found.model_copy(update={"verdict": verdict(found, higher_is_better=higher_is_better)})


def compare(summary: Summary, paired: Paired) -> Summary:
    """Ask every question that the run has methods for; p values are adjusted (Holm) over all of them together.

    The difference of two methods may also stand in the table of differences from the reference, where it is adjusted
    over the methods. It has one verdict: by the larger p, in both places.

    Args:
        paired: seed → value of two methods → the interval of their difference, None without a seed in common.
    """
    methods = {one.method: one for one in summary.methods}
    asked: list[tuple[Question, str, str, Interval]] = []
    for question in QUESTIONS:
        for name, other in question.pairs:
            values = [_by_seed(methods.get(one), question.measure) for one in (name, other)]
            difference = paired(*values) if all(values) else None
            if difference is not None:
                asked.append((question, name, other, difference))
    tested = [one for one in asked if one[3].p is not None]
    known = _adjusted_differences(summary)
    for (question, name, other, _), p in zip(
        tested, holm([difference.p for *_, difference in tested if difference.p is not None]), strict=True
    ):
        key = (frozenset((name, other)), question.measure)
        known[key] = max(p, known.get(key, 0.0))
    titles = {one.name: one.title.lower() for one in summary.measures}
    comparisons = []
    for question, name, other, before in asked:
        difference = judged(before, known.get((frozenset((name, other)), question.measure)))
        comparisons.append(
            Comparison(
                question=question.text, method=name, other=other, measure=question.measure, difference=difference,
                answer=answer(difference, methods[name].name, methods[other].name, titles[question.measure],
                              summary.measures_are_shares),
            )
        )  # fmt: skip
    found = tuple(_rejudged(one, summary, known) for one in summary.methods)
    return summary.model_copy(update={"comparisons": tuple(comparisons), "methods": found})


Adjusted = dict[tuple[frozenset[str], str], float]  # two methods and a measure → p


def _adjusted_differences(summary: Summary) -> Adjusted:
    return {
        (frozenset((one.method, summary.reference)), name): found.p_adjusted
        for one in summary.methods
        for name, found in one.differences.items()
        if found.p_adjusted is not None
    }


def _rejudged(method: MethodSummary, summary: Summary, known: Adjusted) -> MethodSummary:
    """Differences from the reference by the p that the questions know; and whether the method forgets."""
    better = {one.name: one.higher_is_better for one in summary.measures}
    pair = frozenset((method.method, summary.reference))
    differences = {
        name: judged(found, known.get((pair, name)), higher_is_better=better[name])
        for name, found in method.differences.items()
    }
    measures = {name: judged(one) if name == FORGETS else one for name, one in method.measures.items()}
    return method.model_copy(update={"differences": differences, "measures": measures})


def _by_seed(method: MethodSummary | None, measure: str) -> dict[int, float]:
    """Measures that a method has only for some seeds cannot be told by seed, and there are none such."""
    if method is None or measure not in method.single:
        return {}
    return dict(zip(method.seeds, method.single[measure], strict=True))


def answer(difference: Interval, name: str, other: str, measure: str, shares: bool) -> str:
    """One sentence on a difference that was judged; more is better in what is compared."""
    value, of = amount(difference, shares), f"in {measure}" if measure != "average" else "on average"
    if difference.low is None or difference.high is None:
        return f"{name} minus {other} {of}: {value}; {_no_interval(difference.num)}, so nothing follows."
    if difference.verdict in ("better", "worse"):
        return f"{name} is {difference.verdict} than {other} {of}: {value}."
    if difference.verdict == "equal":
        return f"{name} and {other} are the same in all {_few(difference.num)} {of}."
    if difference.verdict == "chance":
        word = "better" if difference.mean > 0 else "worse"
        return (
            f"{name} may be {word} than {other} {of}: {value}; its own interval says so, but among all that was asked "
            f"p is {difference.p_adjusted:.2g} (Holm): it may be chance."
        )
    return (
        f"No difference between {name} and {other} was found {of}: {value}; the interval still allows {name} to be up "
        f"to {_size(max(difference.high, 0.0), shares)} better or {_size(max(-difference.low, 0.0), shares)} worse."
    )


def amount(value: Interval, shares: bool) -> str:
    """`+3.1 points [+1.0, +5.2]`, of shares in percentage points."""
    scale, digits, unit = (100.0, 1, " points") if shares else (1.0, 3, "")
    text = f"{value.mean * scale:+.{digits}f}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low * scale:+.{digits}f}, {value.high * scale:+.{digits}f}]"


def _size(value: float, shares: bool) -> str:
    return f"{value * 100:.1f} points" if shares else f"{value:.3f}"


def _few(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _no_interval(number: int) -> str:
    return f"{_few(number)} {'gives' if number == 1 else 'give'} no interval"


def notes_of(summary: Summary) -> tuple[str, ...]:
    """Notes for the report, the most important first."""
    notes = [*_on_forgetting(summary), *_on_reference(summary)]
    by_question: dict[str, list[str]] = {}
    for one in summary.comparisons:
        if one.difference.verdict != "unknown":  # without intervals nothing follows, which `_on_numbers` says once
            by_question.setdefault(one.question, []).append(one.answer)
    notes += [f"{question} {' '.join(answers)}" for question, answers in by_question.items()]
    return (*notes, *_on_savings(summary), *_on_numbers(summary))


def _on_forgetting(summary: Summary) -> list[str]:
    """Without forgetting there is nothing to prevent. Told by backward transfer: forgetting's maximum, over noisy
    scores, is above 0 also where nothing is lost."""
    plain = next((one for one in summary.methods if one.method == "sequential"), None)
    if plain is None or FORGETS not in plain.measures:
        return []
    lost = plain.measures[FORGETS]
    value = f"backward transfer {amount(lost, summary.measures_are_shares)}"
    if lost.verdict == "unknown":
        return [f"{plain.name}: {value}; {_no_interval(lost.num)}, so nothing follows."]
    if lost.verdict == "worse":
        return [f"{plain.name} forgets: {value}. There is something for the other methods to prevent."]
    return [
        f"{plain.name} does not measurably forget here ({value}): these tasks cannot show whether a method prevents it."
    ]


def _on_reference(summary: Summary) -> list[str]:
    """Who differs from the reference, on average."""
    methods = {one.method: one for one in summary.methods}
    reference = methods[summary.reference].name
    known = {one.name: one.differences["average"] for one in summary.methods if "average" in one.differences}
    if not known:
        return []
    if all(one.verdict == "unknown" for one in known.values()):
        most = max(one.num for one in known.values())
        return [f"{_no_interval(most)}: no difference from {reference} can be told from chance."]
    notes = []
    for word, told in (("higher", "better"), ("lower", "worse")):
        apart = {name: one for name, one in known.items() if one.verdict == told}
        if apart:
            notes.append(f"On average {word} than {reference}: {_all(apart, summary)}.")
    unsure = {name: one for name, one in known.items() if one.verdict == "chance"}
    if unsure:
        notes.append(
            f"Different from {reference} by their own intervals, but not with all that was asked at once (Holm, p of "
            f"{ALPHA} or more), so it may be chance: {_all(unsure, summary)}."
        )
    return notes or [f"No method differs from {reference} on average by more than its interval."]


def _all(differences: Mapping[str, Interval], summary: Summary) -> str:
    return ", ".join(f"{name} ({amount(one, summary.measures_are_shares)})" for name, one in differences.items())


def finding(method: MethodSummary) -> Interval | None:
    """Seconds from task data to core sets on the target: identification, and match and carrying where there are."""
    identify, mapped = method.costs.get("identify_seconds"), method.costs.get("map_seconds")
    if identify is None:
        return None
    if mapped is None or not mapped.mean:
        return identify
    low = high = None
    if not (identify.low is None or identify.high is None or mapped.low is None or mapped.high is None):
        # The sums of the ends enclose the interval of the sum: nothing is claimed too much.
        low, high = identify.low + mapped.low, identify.high + mapped.high
    return Interval(mean=identify.mean + mapped.mean, low=low, high=high, num=identify.num)


def time_verdict(ours: Interval, theirs: Interval) -> Verdict:
    """Of two times that are not paired: `better` is less, by intervals that do not touch."""
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return "unknown"
    return "better" if ours.high < theirs.low else "worse" if ours.low > theirs.high else "undecided"


def _on_savings(summary: Summary) -> list[str]:
    """What finding core sets costs on the source and on the target."""
    methods, notes = {one.method: one for one in summary.methods}, []
    for name in CARRIED:
        carried, own = methods.get(name), methods.get(TWINS[name])
        if carried is None or own is None:
            continue
        here, there = finding(carried), finding(own)
        if here is None or there is None or there.mean <= 0:
            continue
        told = time_verdict(here, there)
        share = f"{abs(1 - here.mean / there.mean):.0%} {'less' if here.mean <= there.mean else 'more'}"
        if told == "undecided":
            share = f"no difference that these {_few(min(here.num, there.num))} can show"
        elif told == "unknown":
            share += f", but {_no_interval(min(here.num, there.num))}"
        notes.append(
            f"Finding core sets takes {there.mean:,.0f} s on the target ({own.name}) and {here.mean:,.0f} s on the "
            f"source, matching and carrying included ({carried.name}): {share}."
        )
    return notes


def _on_numbers(summary: Summary) -> list[str]:
    notes = []
    seeds = {one.method: set(one.seeds) for one in summary.methods}
    every = set().union(*seeds.values())
    lacking = [f"{name} ({_few(len(own))})" for name, own in seeds.items() if own != every]
    if lacking:
        notes.append(
            f"Not all methods have all {len(every)} seeds: {', '.join(lacking)}; pairs are of the shared ones."
        )
    taught = [record for record in summary.evaluations if record.task is not None]
    if len({(record.share, record.metric if not record.share else "") for record in taught}) > 1:
        metrics = ", ".join(dict.fromkeys(record.metric for record in taught))
        notes.append(f"The measures mix metrics of different kinds ({metrics}): read them for each evaluation instead.")
    if any(not record.higher_is_better for record in taught):
        notes.append("In the measures the sign of losses is flipped, so that more is better.")
    if len(every) >= 3:
        notes.append(
            "Intervals are Student's 95 % intervals over seeds: what another seed (order of the tasks, order of the "
            "examples, random sets) would change. They do not hold what other test examples would change."
        )
    else:
        notes.append("Fewer than three seeds: there are no intervals, and differences may be chance.")
    return notes
