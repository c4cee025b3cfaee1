"""What a run's numbers say, in plain words: a headline, answers to what its methods can answer, and notes.

Works on a summary alone. `verdict` decides what a difference says; all sentences and tables read it. Where nothing was
found, the interval beside the answer says how large a difference it still allows: that is no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trace_transfer.reporting import numbers
from trace_transfer.reporting.intervals import MIN_VALUES, deviation_of, holm, smallest_found
from trace_transfer.reporting.records import (
    MATCHED,
    Answer,
    Comparison,
    Interval,
    MethodSummary,
    Stated,
    Summary,
    TunedMethod,
    Verdict,
)

ALPHA, FEW_SEEDS = 0.05, 5
SEQUENTIAL, FORGETS, LEARNS = "sequential", "backward_transfer", "learning"
CARRIED = ("transfer-lf", "transfer-cs", "transfer-lf-core", "transfer-cs-core")
NATIVE = ("trace-lf", "trace-cs", "trace-lf-rows", "trace-snr", "trace-snr-rows", "trace-snr-parameters")
MASKED = (*NATIVE, *CARRIED)
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
class Found:
    """One method minus another, paired by seed; None where one of them, or a seed in common, is not there.

    Attributes:
        level: what both learn, of `MATCHED`; `reason` why two methods that are there cannot be compared in it.
    """

    difference: Interval | None
    level: float | None = None
    reason: str = ""


Ask = Callable[[str, str, str], Found]  # method, other, measure


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
    Question("Does it lose less where both learn as much?", MATCHED, _against(SEQUENTIAL, MASKED)),
    Question("Do core sets learn as much as training everything?", LEARNS, _against(SEQUENTIAL, MASKED)),
    Question("Do core sets end higher than training everything?", "average", _against(SEQUENTIAL, MASKED)),
    Question("Do core sets end higher than adapters?", "average", _against("lora", MASKED)),
    Question("Do core sets end higher than training all tasks at once?", "average",
             _against("joint", MASKED[:1] + CARRIED[:1])),
    Question("Do core sets end higher than replaying earlier tasks?", "average",
             _against("dmt", MASKED[:1] + CARRIED[:1])),
    Question("Is a core set better than a random set?", "average", _against("random", MASKED)),
    Question("Is a core set better than a random set of its own kind?", "average",
             (("trace-lf", "random-tensors"), ("trace-lf-rows", "random-rows"), ("trace-snr-rows", "random-rows"),
              ("trace-snr-parameters", "random-parameters"))),
    Question("Does it matter which rows or parameters of a tensor are trained?", "average",
             (("trace-snr-rows", "random-within-rows"), ("trace-snr-parameters", "random-within-parameters"))),
    Question("Is a core set better than norms, or head and norms, and random tensors?", "average",
             (*_against("norms-random", MASKED), *_against("head-norms-random", MASKED))),
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


def compare(summary: Summary, ask: Ask, stated: Sequence[Stated] = ()) -> Summary:
    """Ask what the run file states, else every question that the run has methods for; p values are adjusted (Holm) over
    all of them together.

    The difference of two methods may also stand in the table of differences from the reference, where it is adjusted
    over the methods. It has one verdict: by the p of what was stated beforehand, else by the larger p, in both places.
    """
    questions = [Question(one.question, one.measure, _against(one.against, one.methods)) for one in stated]
    asked: list[tuple[Question, str, str, Interval, float | None]] = []
    notes = []
    for question in questions or QUESTIONS:
        for name, other in question.pairs:
            found = ask(name, other, question.measure)
            if found.difference is not None:
                asked.append((question, name, other, found.difference, found.level))
            elif found.reason:
                notes.append(f"{_pair(summary, name, other)} at the same learning: {found.reason}.")
    tested = [(question, name, other, one.p) for question, name, other, one, _ in asked if one.p is not None]
    known = _adjusted_differences(summary)
    for (question, name, other, _), p in zip(tested, holm([one for *_, one in tested]), strict=True):
        key = (frozenset((name, other)), question.measure)
        known[key] = p if stated else max(p, known.get(key, 0.0))
    better = {one.name: one.higher_is_better for one in summary.measures} | {MATCHED: False}
    comparisons = []
    for question, name, other, before, level in asked:
        p_adjusted = known.get((frozenset((name, other)), question.measure))
        difference = judged(before, p_adjusted, higher_is_better=better[question.measure])
        comparisons.append(
            Comparison(
                question=question.text, method=name, other=other, measure=question.measure, difference=difference,
                answer=f"{_pair(summary, name, other)}, {title_of(summary, question.measure).lower()}: "
                f"{numbers.amount(difference, summary.measures_are_shares)}, {WORDS[said(difference)]}",
                smallest_found=_smallest(difference, len(tested)), level=level,
            )
        )  # fmt: skip
    methods = tuple(_rejudged(one, summary, known) for one in summary.methods)
    return summary.model_copy(
        update={"comparisons": tuple(comparisons), "methods": methods, "stated": bool(stated), "notes": tuple(notes)}
    )


def said(difference: Interval) -> Verdict:
    """The verdict that it was given."""
    return difference.verdict or verdict(difference)


def title_of(summary: Summary, measure: str) -> str:
    """A measure in words."""
    titles = {one.name: one.title for one in summary.measures} | {MATCHED: "Lost at the same learning"}
    return titles[measure]


def _pair(summary: Summary, name: str, other: str) -> str:
    titles = {one.method: one.name for one in summary.methods}
    return f"{titles[name]} against {titles[other]}"


def _smallest(difference: Interval, num_tested: int) -> float | None:
    if difference.low is None or difference.high is None or difference.low == difference.high:
        return None
    deviation = deviation_of((difference.high - difference.low) / 2, difference.num)
    return smallest_found(deviation, difference.num, ALPHA / num_tested)


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


def told(summary: Summary, ask: Ask) -> Summary:
    """A summary that was compared, with its headline, the one caveat that counts most, answers and notes."""
    enough = max(len(one.seeds) for one in summary.methods) >= MIN_VALUES
    answers = (*((_forgets(summary), *_compared(summary)) if enough else ()), _saves(summary))
    edges = [_on_edge(summary, one) for one in (summary.tuning.methods if summary.tuning else ()) if one.edge]
    ours = _headlined(summary)
    kept = _asked(summary, ask, ours.method, FORGETS) if ours else None
    return summary.model_copy(
        update={
            "headline": _headline(summary, ask, kept),
            "cost": _cost(summary),
            "caveat": _caveat(summary, kept, enough=enough),
            "answers": tuple(one for one in answers if one is not None),
            "notes": (*_on_reference(summary), *_on_numbers(summary), *edges, *summary.notes),
        }
    )


def sentences(summary: Summary) -> list[str]:
    """All that a summary says, for a list; an earlier version has all of it in its notes."""
    answers = [f"{one.question} {one.text}" for one in summary.answers]
    return [*filter(None, (summary.headline, summary.cost, summary.caveat)), *answers, *summary.notes]


def _asked(summary: Summary, ask: Ask, name: str, measure: str) -> Interval | None:
    """A method against training everything, as it was compared; where that was not stated, by its own interval."""
    for one in summary.comparisons:
        if (one.method, one.other, one.measure) == (name, SEQUENTIAL, measure):
            return one.difference
    own = ask(name, SEQUENTIAL, measure).difference
    return own and judged(own, higher_is_better=measure != MATCHED)


def _headline(summary: Summary, ask: Ask, kept: Interval | None) -> str:
    """Whether a core set forgets less than training everything, learns less, and how much of the model it trains."""
    shares = summary.measures_are_shares
    ours, full = _headlined(summary), next((one for one in summary.methods if one.method == SEQUENTIAL), None)
    if ours is None or full is None or kept is None:
        return ""
    more = {"better": "less than", "worse": "more than", "equal": "as much as"}.get(said(kept))
    if more:
        text = f"{ours.name} forgets {more} {full.name}"
    else:
        text = f"Whether {ours.name} forgets less than {full.name} is open{_in_words(kept)}"
    text += f": backward transfer {numbers.amount(kept, shares)}."
    for measure, what in ((MATCHED, "what is lost at the same learning"), (LEARNS, "learning")):
        if one := _asked(summary, ask, ours.method, measure):
            text += f" Difference in {what}: {numbers.amount(one, shares)}{_in_words(one)}."
    if "trained" in ours.costs and "trained" in full.costs:
        text += f" It trains {ours.costs['trained'].mean / full.costs['trained'].mean:.2%} of the parameters."
    return text


def _in_words(difference: Interval) -> str:
    """Its verdict; that there is none where seeds are too few, the caveat says."""
    return "" if said(difference) == "unknown" else f", {WORDS[said(difference)]}"


def _caveat(summary: Summary, kept: Interval | None, *, enough: bool) -> str:
    """What a reader of the headline alone must know."""
    if not enough:
        most = max(len(one.seeds) for one in summary.methods)
        return f"{_no_interval(most)}, so nothing here can be told from chance; give three seeds or more."
    ours = _headlined(summary)
    if summary.tuning is None:
        return (
            "A method that learns faster forgets more, and here each method has one learning rate that was not chosen "
            "by results; tuning: in the run file gives each its best."
        )
    for one in summary.tuning.methods:
        if one.edge and ours and one.method in (ours.method, SEQUENTIAL):
            return _on_edge(summary, one)
    if kept is None or (smallest := _smallest(kept, 1)) is None:
        return ""
    amount = numbers.amount(numbers.one(smallest), summary.measures_are_shares).removeprefix("+")
    return (
        f"{numbers.several(kept.num, 'seed')} find a difference of {amount} in backward transfer with a probability of "
        "80 %; a smaller one may stay unseen."
    )


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
    }.get(said(lost), "Not measurably: these tasks cannot show whether a method prevents it")
    amount = numbers.amount(lost, summary.measures_are_shares)
    return Answer(question="Does sequential fine-tuning forget here?", text=f"{text} (backward transfer {amount}).")


def _compared(summary: Summary) -> list[Answer]:
    """The answer to each question in a sentence."""
    by_question: dict[str, list[Comparison]] = {}
    for one in summary.comparisons:
        by_question.setdefault(one.question, []).append(one)
    return [Answer(question=question, text=_together(summary, found)) for question, found in by_question.items()]


def _together(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """All alike, or which are what."""
    names = {one.method: one.name for one in summary.methods}
    pairs = {(one.method, one.other) for one in comparisons}
    with_other = len(pairs) > len({method for method, _ in pairs})
    groups: dict[Verdict, list[str]] = {}
    for one in comparisons:
        name = names[one.method] + (f" against {names[one.other]}" if with_other else "")
        groups.setdefault(said(one.difference), []).append(name)
    phrases = [f"{WORDS[kind]} for {numbers.listed(groups[kind])}" for kind in WORDS if kind in groups]
    unseen = [one.smallest_found for one in comparisons if said(one.difference) == "undecided" and one.smallest_found]
    if unseen:
        amount = numbers.amount(numbers.one(max(unseen)), summary.measures_are_shares).removeprefix("+")
        phrases[-1] += f" (differences of {amount} would have been found)"
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
        doubt = {"undecided": "no difference found"}
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
    if not known or all(said(found) == "unknown" for _, found in known):
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
            for name, found in known if said(found) == kind
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
        return notes
    if len(every) < FEW_SEEDS:
        notes.append(f"{len(every)} seeds only: intervals of so few are wide; {FEW_SEEDS} or more say much more.")
    notes.append(
        "Intervals are Student's 95 % intervals over seeds: what another seed (order of the tasks, order of the "
        "examples, random sets) would change. They do not hold what other test examples would change."
    )
    return notes


def _on_edge(summary: Summary, tuned: TunedMethod) -> str:
    name = next(one.name for one in summary.methods if one.method == tuned.method)
    further = {"lowest": "lower", "highest": "higher", None: ""}[tuned.edge]
    return f"The learning rate of {name}, {tuned.chosen:g}, is the {tuned.edge} tried: a {further} one may be better."
