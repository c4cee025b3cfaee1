"""What a run's numbers say, in plain words: a headline, answers to what its methods can answer, and notes.

Works on a summary alone. `judged` decides what a difference says; all sentences and tables read it. Where nothing was
found, the interval beside the answer says how large a difference it still allows: that is no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trace_transfer.reporting import numbers
from trace_transfer.reporting.continual import Found
from trace_transfer.reporting.finished_run import grouped
from trace_transfer.reporting.intervals import MIN_VALUES, holm, smallest_found
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
BEST = (NATIVE[0], CARRIED[0])  # of each kind the one that the paper proposes
# Method → the same scores, of core sets that are identified on the target itself.
TWINS = {name: f"trace-{name.split('-')[1]}" for name in CARRIED}
WORDS: dict[Verdict | None, str] = {
    "better": "better",
    "worse": "worse",
    "chance": "may be chance",
    "undecided": "no difference found",
    "equal": "the same",
    "unknown": "too few seeds",
}

Ask = Callable[[str, str, str], Found]  # method, other, measure
Pairs = tuple[tuple[str, str], ...]  # method and other; those that a run lacks are left out


def _against(other: str, methods: tuple[str, ...]) -> Pairs:
    return tuple((method, other) for method in methods)


QUESTIONS: tuple[tuple[str, str, Pairs], ...] = (  # question, measure, pairs
    ("Does training the core sets alone lose less than training everything?", FORGETS, _against(SEQUENTIAL, MASKED)),
    ("Does it lose less where both learn as much?", MATCHED, _against(SEQUENTIAL, MASKED)),
    ("Do core sets learn as much as training everything?", LEARNS, _against(SEQUENTIAL, MASKED)),
    ("Do core sets end higher than training everything?", "average", _against(SEQUENTIAL, MASKED)),
    ("Do core sets end higher than adapters?", "average", _against("lora", MASKED)),
    ("Do core sets end higher than training all tasks at once?", "average", _against("joint", BEST)),
    ("Do core sets end higher than replaying earlier tasks?", "average", _against("dmt", BEST)),
    ("Is a core set better than a random set?", "average", _against("random", MASKED)),
    ("Is a core set better than a random set of its own kind?", "average",
             (("trace-lf", "random-tensors"), ("trace-lf-rows", "random-rows"), ("trace-snr-rows", "random-rows"),
              ("trace-snr-parameters", "random-parameters"))),
    ("Does it matter which rows or parameters of a tensor are trained?", "average",
             (("trace-snr-rows", "random-within-rows"), ("trace-snr-parameters", "random-within-parameters"))),
    ("Is a core set better than norms, or head and norms, and random tensors?", "average",
             (*_against("norms-random", MASKED), *_against("head-norms-random", MASKED))),
    ("Does each task need a core set of its own?", "average", (("trace-lf", "one-set"),)),
    ("Does it matter in which layers the tensors are?", "average", (("trace-lf", "role-profile"),)),
    ("Is a core set better than whole layers?", "average", (*_against("first", BEST), *_against("last", BEST))),
    ("Is matching layers by CKA better than a map in proportion to depth?", "average",
             _against("depth-map", CARRIED[:1])),
    ("Is matching layers by CKA better than a shuffled map?", "average", _against("shuffled-map", CARRIED[:1])),
    ("Does a carried core set match one that was identified on the target?", "average", tuple(TWINS.items())),
    ("Is carrying scores better than carrying the set?", "average",
             (("transfer-lf", "transfer-lf-core"), ("transfer-cs", "transfer-cs-core"))),
)  # fmt: skip


def judged(difference: Interval, p_adjusted: float | None = None, *, higher_is_better: bool = True) -> Interval:
    """A difference with its adjusted p and its verdict; the one place that decides it.

    `better` and `worse` ask for an interval without 0 *and*, where other things were asked beside it, an adjusted p
    below 0.05; `chance` has the first alone. `undecided`: 0 is in the interval; `equal`: it is all of it (two maps that
    choose the same layers train the same); `unknown`: too few seeds for an interval."""
    low, high = difference.low, difference.high
    verdict: Verdict = "better" if (difference.mean > 0) == higher_is_better else "worse"
    if low is None or high is None:
        verdict = "unknown"
    elif low == high == 0:
        verdict = "equal"
    elif low <= 0 <= high:
        verdict = "undecided"
    elif p_adjusted is not None and p_adjusted >= ALPHA:
        verdict = "chance"
    return difference.model_copy(update={"p_adjusted": p_adjusted, "verdict": verdict})


def compare(summary: Summary, ask: Ask, stated: Sequence[Stated] = ()) -> Summary:
    """Ask what the run file states, else each question that the run has methods for; p is adjusted over all (Holm).

    The difference of two methods may also stand in the table of differences from the reference, where it is adjusted
    over the methods. It has one verdict: by the p of what was stated beforehand, else by the larger p, in both places.
    """
    questions = [(one.question, one.measure, _against(one.against, one.methods)) for one in stated] or QUESTIONS
    asked: list[Comparison] = []
    notes = []
    for question, measure, pairs in questions:
        for name, other in pairs:
            found = ask(name, other, measure)
            if found.difference is not None:
                asked.append(Comparison(question=question, method=name, other=other, measure=measure,
                                        difference=found.difference, level=found.level))  # fmt: skip
            elif found.reason:
                notes.append(f"{_pair(summary, name, other)} at the same learning: {found.reason}.")
    tested = [one for one in asked if one.difference.p is not None]
    # Two methods and a measure → p.
    known = {
        (frozenset((one.method, summary.reference)), name): found.p_adjusted
        for one in summary.methods
        for name, found in one.differences.items()
        if found.p_adjusted is not None
    }
    for one, p in zip(tested, holm([one.difference.p or 0.0 for one in tested]), strict=True):
        key = (frozenset((one.method, one.other)), one.measure)
        known[key] = p if stated else max(p, known.get(key, 0.0))
    better = {one.name: one.higher_is_better for one in summary.measures} | {MATCHED: False}

    def again(found: Interval, name: str, other: str, measure: str) -> Interval:
        return judged(found, known.get((frozenset((name, other)), measure)), higher_is_better=better[measure])

    comparisons = []
    for one in asked:
        difference = again(one.difference, one.method, one.other, one.measure)
        smallest = _smallest(difference, len(tested))
        comparisons.append(one.model_copy(update={"difference": difference, "smallest_found": smallest}))
    methods = []
    for method in summary.methods:
        own = {name: again(one, method.method, summary.reference, name) for name, one in method.differences.items()}
        measures = {name: judged(one) if name == FORGETS else one for name, one in method.measures.items()}
        methods.append(method.model_copy(update={"differences": own, "measures": measures}))
    return summary.model_copy(
        update={"comparisons": tuple(comparisons), "methods": tuple(methods), "stated": bool(stated),
                "notes": tuple(notes)}
    )  # fmt: skip


def title_of(summary: Summary, measure: str) -> str:
    return ({one.name: one.title for one in summary.measures} | {MATCHED: "Lost at the same learning"})[measure]


def _pair(summary: Summary, name: str, other: str) -> str:
    return f"{summary.title(name)} against {summary.title(other)}"


def _smallest(difference: Interval, num_tested: int) -> float | None:
    if difference.low is None or difference.high is None or difference.low == difference.high:
        return None
    return smallest_found((difference.high - difference.low) / 2, difference.num, ALPHA / num_tested)


def told(summary: Summary, ask: Ask) -> Summary:
    """A summary that was compared, with its headline, the one caveat that counts most, answers and notes."""
    methods = {one.method: one for one in summary.methods}
    enough = max(len(one.seeds) for one in summary.methods) >= MIN_VALUES
    # What the headline is about: carried core sets, where there are any, and training everything.
    ours = next((methods[name] for name in (*CARRIED, *MASKED) if name in methods), None)
    full = methods.get(SEQUENTIAL)
    kept = _asked(summary, ask, ours, FORGETS) if ours else None
    answers = [*(_forgets(summary, full), *_compared(summary)) * enough, _saves(methods)]
    edges = [_on_edge(summary, one) for one in (summary.tuning.methods if summary.tuning else ()) if one.edge]
    return summary.model_copy(
        update={
            "headline": _headline(summary, ask, ours, full, kept) if ours and full and kept else "",
            "cost": _cost(ours, full) if ours and full else "",
            "caveat": _caveat(summary, ours, kept, enough=enough),
            "answers": tuple(one for one in answers if one is not None),
            "notes": (*_on_numbers(summary), *edges, *summary.notes),
        }
    )


def sentences(summary: Summary) -> list[str]:
    answers = [f"{one.question} {one.text}" for one in summary.answers]
    return [*filter(None, (summary.headline, summary.cost, summary.caveat)), *answers, *summary.notes]


def _asked(summary: Summary, ask: Ask, ours: MethodSummary, measure: str) -> Interval | None:
    """A method against training everything, as it was compared; where that was not stated, by its own interval."""
    for one in summary.comparisons:
        if (one.method, one.other, one.measure) == (ours.method, SEQUENTIAL, measure):
            return one.difference
    own = ask(ours.method, SEQUENTIAL, measure).difference
    return own and judged(own, higher_is_better=measure != MATCHED)


def _headline(summary: Summary, ask: Ask, ours: MethodSummary, full: MethodSummary, kept: Interval) -> str:
    """Whether a core set forgets less than training everything, learns less, and how much of the model it trains."""
    shares = summary.measures_are_shares
    more = {"better": "less than", "worse": "more than", "equal": "as much as"}.get(kept.verdict or "")
    text = f"Whether {ours.name} forgets less than {full.name} is open{_in_words(kept)}"
    if more:
        text = f"{ours.name} forgets {more} {full.name}"
    text += f": backward transfer {numbers.amount(kept, shares)}."
    if same := _asked(summary, ask, ours, MATCHED):
        how = "as much as" if same.mean == 0 else f"{'more' if same.mean > 0 else 'less'} on average than"
        told = f"{numbers.amount(same, shares)}{_in_words(same)}"
        text += f" Where both learn as much, {ours.name} loses {how} {full.name}: {told}."
    if learned := _asked(summary, ask, ours, LEARNS):
        text += f" Difference in learning: {numbers.amount(learned, shares)}{_in_words(learned)}."
    if "trained" in ours.costs and "trained" in full.costs:
        text += f" It trains {ours.costs['trained'].mean / full.costs['trained'].mean:.2%} of the parameters."
    return text


def _in_words(difference: Interval) -> str:
    """Its verdict; that there is none where seeds are too few, the caveat says."""
    return "" if difference.verdict == "unknown" else f", {WORDS[difference.verdict]}"


def _caveat(summary: Summary, ours: MethodSummary | None, kept: Interval | None, *, enough: bool) -> str:
    """What a reader of the headline alone must know."""
    if not enough:
        most = max(len(one.seeds) for one in summary.methods)
        told = f"{numbers.several(most, 'seed')} {'gives' if most == 1 else 'give'} no interval"
        return f"{told}, so nothing here can be told from chance; give three seeds or more."
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
    return (
        f"{numbers.several(kept.num, 'seed')} find a difference of "
        f"{numbers.amount(smallest, summary.measures_are_shares)} in backward transfer with a probability of 80 %; a "
        "smaller one may stay unseen."
    )


def _cost(ours: MethodSummary, full: MethodSummary) -> str:
    found, whole, other = map(numbers.seconds, (_finding(ours), ours.costs["seconds"], full.costs["seconds"]))
    return (
        f"From task data to the last model it takes {whole}, {found} of them to find its core sets; {full.name} takes "
        f"{other}."
    )


def _forgets(summary: Summary, full: MethodSummary | None) -> Answer | None:
    """Without forgetting there is nothing to prevent. Told by backward transfer: forgetting's maximum, over noisy
    scores, is above 0 also where nothing is lost."""
    lost = full.measures.get(FORGETS) if full else None
    if lost is None:
        return None
    compared = {"worse": "Yes: {}worse than", "better": "No: {}better than", "equal": "No: {}exactly as"}
    text = "Not measurably: these tasks cannot show whether a method prevents it"
    if lost.verdict in compared:
        solved = compared[lost.verdict].format("after the last task, earlier ones are solved ")
        text = f"{solved} right after they were learned"
    amount = numbers.amount(lost, summary.measures_are_shares)
    return Answer(question="Does sequential fine-tuning forget here?", text=f"{text} (backward transfer {amount}).")


def _compared(summary: Summary) -> Iterator[Answer]:
    """The answer to each question in a sentence: all alike, or which are what."""
    for question in dict.fromkeys(one.question for one in summary.comparisons):
        found = [one for one in summary.comparisons if one.question == question]
        pairs = {(one.method, one.other) for one in found}
        with_other = len(pairs) > len({method for method, _ in pairs})
        groups = grouped(
            (one.difference.verdict, _pair(summary, one.method, one.other) if with_other else summary.title(one.method))
            for one in found
        )
        phrases = [f"{WORDS[kind]} for {numbers.listed(groups[kind])}" for kind in WORDS if kind in groups]
        unseen = [one.smallest_found for one in found if one.difference.verdict == "undecided" and one.smallest_found]
        if unseen:
            amount = numbers.amount(max(unseen), summary.measures_are_shares)
            phrases[-1] += f" (differences of {amount} would have been found)"
        text = f"Not all alike: {'; '.join(phrases)}."
        if len(phrases) == 1:
            yes = {"better": "Yes: ", "worse": "No: "}.get(next(iter(groups)) or "", "")
            text = yes + (phrases[0] if yes else phrases[0][0].upper() + phrases[0][1:]) + "."
        yield Answer(question=question, text=text)


def _finding(method: MethodSummary) -> Interval:
    """Seconds from task data to core sets on the target: identification, and match and carrying where there are."""
    return numbers.single(method.costs["identify_seconds"].mean + method.costs["map_seconds"].mean)


def _saves(methods: dict[str, MethodSummary]) -> Answer | None:
    """What finding core sets takes on the source and on the target; times vary from run to run."""
    parts = []
    for name, twin in TWINS.items():
        if name in methods and twin in methods:
            here, there = _finding(methods[name]), _finding(methods[twin])
            more = here.mean / max(there.mean, 1e-9) - 1
            parts.append(
                f"{methods[name].name} {numbers.seconds(here)}, match and carrying included, {methods[twin].name} "
                f"{numbers.seconds(there)} ({abs(more):.0%} {'less' if more <= 0 else 'more'})"
            )
    if not parts:
        return None
    question = "What does carrying save over finding core sets on the target?"
    return Answer(question=question, text=f"Finding them takes, on average: {'; '.join(parts)}.", varies=True)


def _on_numbers(summary: Summary) -> Iterator[str]:
    num_seeds = len({seed for one in summary.methods for seed in one.seeds})
    lacking = [f"{one.name} ({numbers.several(len(one.seeds), 'seed')})" for one in summary.methods
               if len(one.seeds) < num_seeds]  # fmt: skip
    if lacking:
        yield f"Not all methods have all {num_seeds} seeds: {', '.join(lacking)}; pairs are of the shared ones."
    if len({(record.share, record.metric if not record.share else "") for record in summary.taught}) > 1:
        metrics = ", ".join(dict.fromkeys(record.metric for record in summary.taught))
        yield f"The measures mix metrics of different kinds ({metrics}): read them for each evaluation instead."
    if any(not record.higher_is_better for record in summary.taught):
        yield "In the measures the sign of losses is flipped, so that more is better."
    if MIN_VALUES <= num_seeds < FEW_SEEDS:
        yield f"{num_seeds} seeds only: intervals of so few are wide; {FEW_SEEDS} or more say much more."
    if num_seeds >= MIN_VALUES:
        yield (
            "Intervals are Student's 95 % intervals over seeds: what another seed (order of the tasks, order of the "
            "examples, random sets) would change. They do not hold what other test examples would change."
        )


def _on_edge(summary: Summary, tuned: TunedMethod) -> str:
    further = {"lowest": "lower", "highest": "higher", None: ""}[tuned.edge]
    whose = f"The learning rate of {summary.title(tuned.method)}, {tuned.chosen:g},"
    return f"{whose} is the {tuned.edge} tried: a {further} one may be better."
