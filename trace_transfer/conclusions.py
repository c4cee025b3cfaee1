"""What a run's numbers say, in plain words: the questions that its methods can answer, and notes on how far they go.

Works on a summary alone. A difference counts as found only where 0 is outside of its interval; where it is not, the
sentence says how large a difference the interval still allows, since not finding one is no proof that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trace_transfer.artefacts.summary import Comparison, Interval, MethodSummary, Summary
from trace_transfer.maths.intervals import holm

Paired = Callable[[Mapping[int, float], Mapping[int, float]], Interval | None]

ALPHA = 0.05
MASKED = ("trace-lf", "trace-cs", "transfer-lf", "transfer-cs", "transfer-lf-core", "transfer-cs-core")
CARRIED = MASKED[2:]


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
    Question("Is a core set better than a random set?", "average", _against("random", MASKED)),
    Question("Is a core set better than whole layers?", "average",
             (*_against("first", MASKED[:1] + CARRIED[:1]), *_against("last", MASKED[:1] + CARRIED[:1]))),
    Question("Is matching layers by CKA better than a map in proportion to depth?", "average",
             _against("depth-map", CARRIED[:1])),
    Question("Is matching layers by CKA better than a shuffled map?", "average",
             _against("shuffled-map", CARRIED[:1])),
    Question("Does a carried core set match one that was identified on the target?", "average",
             tuple((method, f"trace-{method.split('-')[1]}") for method in CARRIED)),
    Question("Is carrying scores better than carrying the set?", "average",
             (("transfer-lf", "transfer-lf-core"), ("transfer-cs", "transfer-cs-core"))),
)  # fmt: skip


def compare(summary: Summary, paired: Paired) -> tuple[Comparison, ...]:
    """Ask every question that the run has methods for; p values are adjusted (Holm) over all of them together.

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
    tested = {number: difference.p for number, (*_, difference) in enumerate(asked) if difference.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    titles = {one.name: one.title.lower() for one in summary.measures}
    comparisons = []
    for number, (question, name, other, before) in enumerate(asked):
        difference = before.model_copy(update={"p_adjusted": adjusted.get(number)})
        comparisons.append(
            Comparison(
                question=question.text, method=name, other=other, measure=question.measure, difference=difference,
                answer=answer(difference, methods[name].name, methods[other].name, titles[question.measure],
                              summary.measures_are_shares),
            )
        )  # fmt: skip
    return tuple(comparisons)


def _by_seed(method: MethodSummary | None, measure: str) -> dict[int, float]:
    """Measures that a method has only for some seeds cannot be told by seed, and there are none such."""
    if method is None or measure not in method.single:
        return {}
    return dict(zip(method.seeds, method.single[measure], strict=True))


def answer(difference: Interval, name: str, other: str, measure: str, shares: bool) -> str:
    """One sentence; more is better in what is compared."""
    value, of = amount(difference, shares), f"in {measure}" if measure != "average" else "on average"
    if difference.low is None or difference.high is None:
        return f"{name} minus {other} {of}: {value}; {_no_interval(difference.num)}, so nothing follows."
    word = "better" if difference.mean > 0 else "worse"
    if found(difference):
        return f"{name} is {word} than {other} {of}: {value}."
    if difference.excludes_zero:
        return (
            f"{name} may be {word} than {other} {of}: {value}; its own interval says so, but among all that was asked "
            f"p is {difference.p_adjusted:.2g} (Holm): it may be chance."
        )
    return (
        f"No difference between {name} and {other} was found {of}: {value}; the interval still allows {name} to be up "
        f"to {_size(max(difference.high, 0.0), shares)} better or {_size(max(-difference.low, 0.0), shares)} worse."
    )


def found(difference: Interval) -> bool:
    """Whether 0 is outside of the interval, also when all that was asked beside it is taken into account."""
    return difference.excludes_zero and (difference.p_adjusted is None or difference.p_adjusted < ALPHA)


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
        if one.difference.low is not None:  # without intervals nothing follows, which `_on_numbers` says once
            by_question.setdefault(one.question, []).append(one.answer)
    notes += [f"{question} {' '.join(answers)}" for question, answers in by_question.items()]
    return (*notes, *_on_savings(summary), *_on_numbers(summary))


def _on_forgetting(summary: Summary) -> list[str]:
    """Without forgetting there is nothing to prevent. Told by backward transfer: forgetting's maximum, over noisy
    scores, is above 0 also where nothing is lost."""
    plain = next((one for one in summary.methods if one.method == "sequential"), None)
    if plain is None or "backward_transfer" not in plain.measures:
        return []
    lost = plain.measures["backward_transfer"]
    value = f"backward transfer {amount(lost, summary.measures_are_shares)}"
    if lost.high is None:
        return [f"{plain.name}: {value}; {_no_interval(lost.num)}, so nothing follows."]
    if lost.high < 0:
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
    if all(one.low is None for one in known.values()):
        most = max(one.num for one in known.values())
        return [f"{_no_interval(most)}: no difference from {reference} can be told from chance."]
    notes = []
    for word, sign in (("higher", 1), ("lower", -1)):
        apart = {name: one for name, one in known.items() if found(one) and one.mean * sign > 0}
        if apart:
            notes.append(f"On average {word} than {reference}: {_all(apart, summary)}.")
    unsure = {name: one for name, one in known.items() if one.excludes_zero and not found(one)}
    if unsure:
        notes.append(
            f"Different from {reference} by their own intervals, but not with {len(known)} methods compared at once "
            f"(Holm, p of {ALPHA} or more): {_all(unsure, summary)}."
        )
    return notes or [f"No method differs from {reference} on average by more than its interval."]


def _all(differences: Mapping[str, Interval], summary: Summary) -> str:
    return ", ".join(f"{name} ({amount(one, summary.measures_are_shares)})" for name, one in differences.items())


def _on_savings(summary: Summary) -> list[str]:
    """What finding core sets costs on the source and on the target."""
    methods, notes = {one.method: one for one in summary.methods}, []
    for name in CARRIED:
        carried, own = methods.get(name), methods.get(f"trace-{name.split('-')[1]}")
        if carried is None or own is None or "identify_seconds" not in carried.costs:
            continue
        there = own.costs["identify_seconds"].mean
        here = carried.costs["identify_seconds"].mean + carried.costs["map_seconds"].mean
        if there > 0:
            saved = 1 - here / there
            notes.append(
                f"Finding core sets takes {there:,.0f} s on the target ({own.name}) and {here:,.0f} s on the source, "
                f"matching and carrying included ({carried.name}): {abs(saved):.0%} {'less' if saved >= 0 else 'more'}."
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
