"""What a run's numbers say, in plain words: a headline, answers to what its methods can answer, and notes.

Works on a summary alone. `verdict` decides what a difference says; all sentences and tables read it. Where nothing was
found, the interval beside the answer says how large a difference it still allows: that is no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trace_transfer.reporting import numbers
from trace_transfer.reporting.intervals import MIN_VALUES, holm
from trace_transfer.reporting.records import Answer, Comparison, Interval, MethodSummary, Summary, Verdict

Paired = Callable[[Mapping[int, float], Mapping[int, float]], Interval | None]

ALPHA, FEW_SEEDS = 0.05, 5
SEQUENTIAL, FORGETS, LEARNS = "sequential", "backward_transfer", "learning"
MASKED = ("trace-lf", "trace-cs", "transfer-lf", "transfer-cs", "transfer-lf-core", "transfer-cs-core")
CARRIED = MASKED[2:]
# Method → the same scores, of core sets that are identified on the target itself.
TWINS = {name: f"trace-{name.split('-')[1]}" for name in CARRIED}


WORDS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "chance": "may be chance",
    "undecided": "no difference found",
    "equal": "the same",
    "unknown": "too few seeds",
}


@dataclass(frozen=True)
class Question:
    """`pairs` are (method, other) by name; those that a run lacks are left out."""

    text: str
    measure: str
    pairs: tuple[tuple[str, str], ...]


def _against(other: str, methods: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((method, other) for method in methods)


QUESTIONS = (
    Question("Does training the core sets alone lose less than training everything?", FORGETS,
             _against(SEQUENTIAL, MASKED)),
    Question("Do core sets learn as much as training everything?", LEARNS, _against(SEQUENTIAL, MASKED)),
    Question("Do core sets end higher than training everything?", "average", _against(SEQUENTIAL, MASKED)),
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
    shares = summary.measures_are_shares
    comparisons = []
    for question, name, other, before in asked:
        difference = judged(before, known.get((frozenset((name, other)), question.measure)))
        told = (
            f"{methods[name].name} against {methods[other].name}, {titles[question.measure]}: "
            f"{numbers.amount(difference, shares)}, {WORDS[verdict(difference)]}"
        )
        comparisons.append(
            Comparison(
                question=question.text, method=name, other=other, measure=question.measure, difference=difference,
                answer=told,
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


def told(summary: Summary) -> Summary:
    """A summary that was compared, with its headline, answers and notes."""
    answers = (_forgets(summary), *_compared(summary), _saves(summary))
    return summary.model_copy(
        update={
            "headline": _headline(summary),
            "cost": _cost(summary),
            "answers": tuple(one for one in answers if one is not None),
            "notes": (*_on_reference(summary), *_on_numbers(summary)),
        }
    )


def sentences(summary: Summary) -> list[str]:
    """All that a summary says, for a list; an earlier version has all of it in its notes."""
    answers = [f"{one.question} {one.text}" for one in summary.answers]
    return [*filter(None, (summary.headline, summary.cost)), *answers, *summary.notes]


def _headline(summary: Summary) -> str:
    """Whether a core set forgets less than training everything, learns less, and how much of the model it trains."""
    asked = {(one.method, one.other, one.measure): one.difference for one in summary.comparisons}
    methods, shares = {one.method: one for one in summary.methods}, summary.measures_are_shares
    ours, full = _headlined(summary), methods.get(SEQUENTIAL)
    kept = asked.get((ours.method, SEQUENTIAL, FORGETS)) if ours else None
    if ours is None or full is None or kept is None:
        return ""
    more = {"better": "less than", "worse": "more than", "equal": "as much as"}.get(verdict(kept))
    if more:
        text = f"{ours.name} forgets {more} {full.name}"
    else:
        text = f"Whether {ours.name} forgets less than {full.name} is open, {WORDS[verdict(kept)]}"
    text += f": backward transfer {numbers.amount(kept, shares)}."
    if learned := asked.get((ours.method, SEQUENTIAL, LEARNS)):
        text += f" Difference in learning: {numbers.amount(learned, shares)}, {WORDS[verdict(learned)]}."
    if "trained" in ours.costs and "trained" in full.costs:
        text += f" It trains {ours.costs['trained'].mean / full.costs['trained'].mean:.2%} of the parameters."
    return text


def _headlined(summary: Summary) -> MethodSummary | None:
    """The core sets that the headline is about: carried ones, where there are any."""
    return next((one for name in (*CARRIED, *MASKED) for one in summary.methods if one.method == name), None)


def _cost(summary: Summary) -> str:
    """The time of the method that the headline is about, and of training everything."""
    ours = _headlined(summary)
    full = next((one for one in summary.methods if one.method == SEQUENTIAL), None)
    if ours is None or full is None or "seconds" not in ours.costs or "seconds" not in full.costs:
        return ""
    text = f"From task data to the last model it takes {numbers.seconds(ours.costs['seconds'])}"
    if found := finding(ours):
        text += f", {numbers.seconds(found)} of them to find its core sets"
    return f"{text}; {full.name} takes {numbers.seconds(full.costs['seconds'])}."


def _forgets(summary: Summary) -> Answer | None:
    """Without forgetting there is nothing to prevent. Told by backward transfer: forgetting's maximum, over noisy
    scores, is above 0 also where nothing is lost."""
    plain = next((one for one in summary.methods if one.method == SEQUENTIAL), None)
    lost = plain.measures.get(FORGETS) if plain else None
    if plain is None or lost is None:
        return None
    text = {
        "worse": "Yes: after the last task, earlier ones are solved worse than right after they were learned",
        "better": "No: after the last task, earlier ones are solved better than right after they were learned",
        "equal": "No: after the last task, earlier ones are solved exactly as right after they were learned",
        "unknown": f"Nothing follows: {_no_interval(lost.num)}",
    }.get(verdict(lost), "Not measurably: these tasks cannot show whether a method prevents it")
    amount = numbers.amount(lost, summary.measures_are_shares)
    return Answer(question="Does sequential fine-tuning forget here?", text=f"{text} (backward transfer {amount}).")


def _compared(summary: Summary) -> list[Answer]:
    """The answer to each question in a sentence."""
    by_question: dict[str, list[Comparison]] = {}
    for one in summary.comparisons:
        by_question.setdefault(one.question, []).append(one)
    if by_question and all(verdict(one.difference) == "unknown" for one in summary.comparisons):
        most = max(one.difference.num for one in summary.comparisons)
        text = f"Nothing yet: {_no_interval(most)}, so none can be told from chance; give three seeds or more."
        return [Answer(question="What do the differences between methods say?", text=text)]
    return [Answer(question=question, text=_together(summary, found)) for question, found in by_question.items()]


def _together(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """All alike, or which are what."""
    names = {one.method: one.name for one in summary.methods}
    pairs = {(one.method, one.other) for one in comparisons}
    with_other = len(pairs) > len({method for method, _ in pairs})
    groups: dict[Verdict, list[str]] = {}
    for one in comparisons:
        name = names[one.method] + (f" against {names[one.other]}" if with_other else "")
        groups.setdefault(verdict(one.difference), []).append(name)
    phrases = [f"{WORDS[kind]} for {numbers.listed(groups[kind])}" for kind in WORDS if kind in groups]
    if len(phrases) > 1:
        return f"Not all alike: {'; '.join(phrases)}."
    yes = {"better": "Yes: ", "worse": "No: "}.get(next(iter(groups)), "")
    return yes + (phrases[0] if yes else phrases[0][0].upper() + phrases[0][1:]) + "."


def _no_interval(number: int) -> str:
    return f"{numbers.several(number, 'seed')} {'gives' if number == 1 else 'give'} no interval"


def finding(method: MethodSummary) -> Interval | None:
    """Seconds from task data to core sets on the target: identification, and match and carrying where there are."""
    identify, mapped = method.costs.get("identify_seconds"), method.costs.get("map_seconds")
    if identify is None or mapped is None or not mapped.mean:
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


def _saves(summary: Summary) -> Answer | None:
    """What finding core sets takes on the source and on the target; times vary from run to run."""
    methods, parts = {one.method: one for one in summary.methods}, []
    for name, twin in TWINS.items():
        carried, own = methods.get(name), methods.get(twin)
        here, there = finding(carried) if carried else None, finding(own) if own else None
        if carried is None or own is None or here is None or there is None or there.mean <= 0:
            continue
        kind = time_verdict(here, there)
        share = f"{abs(1 - here.mean / there.mean):.0%} {'less' if here.mean <= there.mean else 'more'}"
        doubt = {"unknown": f"{share}, but {WORDS[kind]} to be sure", "undecided": "no difference found"}
        parts.append(
            f"{carried.name} {numbers.seconds(here)}, match and carrying included, "
            f"{own.name} {numbers.seconds(there)} ({doubt.get(kind, share)})"
        )
    if not parts:
        return None
    question = "What does carrying save over finding core sets on the target?"
    return Answer(question=question, text=f"Finding them takes: {'; '.join(parts)}.", varies=True)


def _on_reference(summary: Summary) -> list[str]:
    """Who differs from the reference, on average."""
    methods = {one.method: one for one in summary.methods}
    reference = methods[summary.reference].name
    known = [(one.name, one.differences["average"]) for one in summary.methods if "average" in one.differences]
    if not known or all(verdict(found) == "unknown" for _, found in known):
        return []
    told = {
        "better": f"On average higher than {reference}",
        "worse": f"On average lower than {reference}",
        "chance": f"Different from {reference} by their own intervals, but perhaps by chance among all that was asked "
        f"(Holm, p of {ALPHA} or more)",
    }  # fmt: skip
    notes = []
    for kind, words in told.items():
        apart = [
            f"{name} ({numbers.amount(found, summary.measures_are_shares)})"
            for name, found in known if verdict(found) == kind
        ]  # fmt: skip
        if apart:
            notes.append(f"{words}: {', '.join(apart)}.")
    return notes or [f"No method differs from {reference} on average by more than its interval."]


def _on_numbers(summary: Summary) -> list[str]:
    notes = []
    seeds = {one.name: set(one.seeds) for one in summary.methods}
    every = set().union(*seeds.values())
    lacking = [f"{name} ({numbers.several(len(own), 'seed')})" for name, own in seeds.items() if own != every]
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
    if len(every) < MIN_VALUES:
        notes.append("Fewer than three seeds: there are no intervals, and differences may be chance.")
        return notes
    if len(every) < FEW_SEEDS:
        notes.append(f"{len(every)} seeds only: intervals of so few are wide; {FEW_SEEDS} or more say much more.")
    notes.append(
        "Intervals are Student's 95 % intervals over seeds: what another seed (order of the tasks, order of the "
        "examples, random sets) would change. They do not hold what other test examples would change."
    )
    return notes
