"""A run's files → the numbers of its tables, and the tables: against values worked out from what was written."""

import csv
import io
import itertools
import json
import shutil

import numpy as np
import pytest

from tests.run_files import METHODS, TARGET, TASKS, at_rate, edit, leave, stages_of, story, write_run
from trace_transfer.errors import ArtefactError
from trace_transfer.formats import read_any
from trace_transfer.records import to_json
from trace_transfer.reporting import summary_tables as st
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.intervals import holm, interval, p_value
from trace_transfer.reporting.records import Stated, Summary, Tuning
from trace_transfer.reporting.summarising import summarise
from trace_transfer.tables import NOTHING, to_csv, to_text

SEEDS = (0, 1, 2, 3, 4)
ORDERS = list(itertools.permutations(TASKS))
SWEEPS = {
    "ratio": (("trace-lf", "random"), (0.01, 0.05)),
    "order": (("trace-lf",), (list(ORDERS[0]), list(ORDERS[5]))),
    "train.epochs": (("sequential",), (1, 2)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One whole run; not to be written to."""
    return write_run(tmp_path_factory.mktemp("runs") / "whole", sweeps=SWEEPS, untaught=("trivia",), files=False)


@pytest.fixture(scope="module")
def summary(run):
    return summarise(read_run(run))


@pytest.fixture
def small(tmp_path):
    """A run that a test may damage."""
    return write_run(tmp_path / "small", methods=("sequential", "trace-lf", "random"), seeds=(0, 1, 2), files=False)


def of(summary, method):
    return next(one for one in summary.methods if one.method == method)


def directory_of(run, method, seed, step):
    record = json.loads((run / "run.json").read_text())
    cell = next(c for c in record["cells"] if (c["method"], c["seed"], c.get("axis")) == (method, seed, None))
    return run / cell["steps"][step]


def test_measures_are_those_of_the_scores(summary):
    """Worked out again, one task at a time, from the story that was written."""
    for method in METHODS:
        averages, kept = [], []
        for seed in SEEDS:
            order = ORDERS[seed]
            table = story(method, seed, order)
            averages.append(sum(table[-1]) / 3)
            learned = [set(stage) for _, stage in stages_of(method, order)]
            first = {task: min(n for n, stage in enumerate(learned, 1) if task in stage) for task in TASKS}
            kept.append([
                table[-1][column] - table[first[task]][column]
                for column, task in enumerate(TASKS) if first[task] < len(learned)
            ])  # fmt: skip
        found = of(summary, method)
        assert found.seeds == SEEDS
        assert found.single["average"] == pytest.approx(averages)
        assert interval(averages) == found.measures["average"]
        if method == "joint":
            assert found.measures.keys() == {"average", "learning"}
        else:
            assert found.single["backward_transfer"] == pytest.approx([np.mean(values) for values in kept])


def test_differences_are_paired_by_seed(summary):
    found, reference = of(summary, "trace-lf"), of(summary, "random")
    apart = [a - b for a, b in zip(found.single["average"], reference.single["average"], strict=True)]
    difference = found.differences["average"]
    expected = interval(apart)
    assert (difference.mean, difference.low, difference.high) == (expected.mean, expected.low, expected.high)
    assert difference.p == pytest.approx(p_value(apart))
    compared = [one for one in summary.methods if one.differences]
    assert len(compared) == len(METHODS) - 1 and not reference.differences
    least = min(compared, key=lambda one: one.differences["average"].p).differences["average"]
    assert least.p_adjusted == pytest.approx(len(compared) * least.p)
    finals = [a - b for a, b in zip(found.single_final["law-test"], reference.single_final["law-test"], strict=True)]
    assert found.final_differences["law-test"].mean == pytest.approx(np.mean(finals))


def test_costs_count_shared_steps_in_full(summary):
    """TRACE-LF, TRACE-CS and the random set share one identification of 120 s."""
    for method in ("trace-lf", "trace-cs", "random"):
        assert of(summary, method).costs["identify_seconds"].mean == 120.0
    carried = of(summary, "transfer-lf").costs
    assert (carried["identify_seconds"].mean, carried["map_seconds"].mean) == (30.0, 10.0)
    assert carried["train_seconds"].mean == pytest.approx(60.0 + np.mean(SEEDS))
    assert carried["seconds"].mean == pytest.approx(100.0 + np.mean(SEEDS))
    assert of(summary, "sequential").costs["identify_seconds"].mean == 0.0
    assert of(summary, "sequential").costs["trained"].mean == TARGET.num_elements


def test_curves_begin_where_a_task_was_learned(summary):
    curve = next(one for one in summary.curves if (one.method, one.task) == ("sequential", "maths"))
    expected: dict[int, list[float]] = {}
    for seed in SEEDS:
        table, place = story("sequential", seed, ORDERS[seed]), ORDERS[seed].index("maths") + 1
        for later, row in enumerate(table[place:]):
            expected.setdefault(later, []).append(row[0])
    assert [point.num for point in curve.points] == [len(expected[later]) for later in (0, 1, 2)]
    assert [point.mean for point in curve.points] == pytest.approx([np.mean(expected[later]) for later in (0, 1, 2)])
    assert curve.evaluation == "maths-test"
    joint = next(one for one in summary.curves if (one.method, one.task) == ("joint", "law"))
    assert len(joint.points) == 1


def test_matrices_are_means_of_one_order(summary):
    varied = next(one for one in summary.matrices if one.method == "sequential")
    assert (varied.num, varied.order, varied.stages) == (1, ORDERS[0], ("base", *ORDERS[0]))
    assert np.array(varied.means)[:, :3] == pytest.approx(story("sequential", 0, ORDERS[0]))


def test_sweeps(summary, tmp_path):
    (tmp_path / "summary.json").write_text(to_json(summary), encoding="utf-8")
    assert read_any(tmp_path / "summary.json", Summary) == summary
    ratio, order, _ = summary.sweeps
    assert (ratio.axis, ratio.paper) == ("ratio", "Table A.1 and Figure 5")
    assert [point.label for point in ratio.points] == ["1 %", "5 %"]
    assert [point.label for point in order.points] == ["maths → code → law", "law → code → maths"]
    trace, random = ratio.points[1].methods
    expected = [story("trace-lf", 200 + seed, ORDERS[0])[-1].mean() for seed in SEEDS]
    assert trace.measures["average"].mean == pytest.approx(np.mean(expected))
    assert trace.differences["average"].mean == pytest.approx(
        trace.measures["average"].mean - random.measures["average"].mean
    )
    assert not order.points[0].methods[0].differences  # the reference was not swept


def test_of_losses_less_is_better(tmp_path):
    """The same story, told as losses."""
    losses = write_run(
        tmp_path / "losses", methods=("sequential", "random"), metrics=dict.fromkeys(TASKS, "loss"), files=False,
        scores=lambda method, seed, order: 3.0 - story(method, seed, order),
    )  # fmt: skip
    shares = write_run(tmp_path / "shares", methods=("sequential", "random"), files=False)
    one, other = of(summarise(read_run(losses)), "sequential"), of(summarise(read_run(shares)), "sequential")
    for name in ("backward_transfer", "forgetting", "forward_transfer", "learning"):
        assert one.measures[name].mean == pytest.approx(other.measures[name].mean, abs=1e-9)
    assert one.measures["average"].mean == pytest.approx(other.measures["average"].mean - 3.0)
    assert one.final["law-test"].mean == pytest.approx(3.0 - other.final["law-test"].mean)
    table = st.scores(summarise(read_run(losses)))
    assert table.header[2] == "maths-test, nats per token (less is better)" and table.header[-1] == "average"
    assert [row(table, "Base model")[place].text for place in (2, -1)] == ["2.900", "-2.880"]


def test_two_tasks_that_one_evaluation_measures(small):
    """Its score counts from the first of them, and once in the average."""

    def merge(data):
        data["of_task"]["law"] = "maths-test"

    edit(small / "run.json", merge)
    for file in small.glob("steps/evaluate-*/scores.json"):
        leave(file, merge)
    found = summarise(read_run(small))
    assert [record.task for record in found.evaluations] == ["maths, law", "code", None]
    table = story("sequential", 0, ORDERS[0])
    assert of(found, "sequential").single["average"][0] == pytest.approx((table[-1][0] + table[-1][1]) / 2)
    kept = [table[-1][0] - table[1][0], table[-1][1] - table[2][1]]
    assert of(found, "sequential").single["backward_transfer"][0] == pytest.approx(np.mean(kept))
    later = next(one for one in found.curves if (one.method, one.task) == ("sequential", "law"))
    assert later.evaluation == "maths-test" and later.points[0].num == 3


def test_a_run_file_that_contradicts_itself_or_its_scores(small):
    place = directory_of(small, "sequential", 0, "evaluate")
    leave(place / "scores.json", lambda data: data["stages"].pop())
    with pytest.raises(ArtefactError, match=f"{place.name}/scores.json: of other tasks or evaluations than run.json"):
        read_run(small)
    edit(small / "run.json", lambda data: data["cells"][0].update(method="magic"))
    with pytest.raises(ArtefactError, match="magic, seed 0: its method, tasks or steps are not those"):
        read_run(small)


TRIED = (0.25, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Four methods at four rates, on two seeds of a tuning and five that are reported; two random draws a seed."""
    chosen = {"sequential": 0.5, "transfer-lf": 2.0, "joint": 1.0, "random": 1.0}
    stated = (
        Stated(question="Random?", methods=("transfer-lf", "sequential"), against="random"),
        Stated(question="Same?", methods=("transfer-lf", "joint"), against="sequential", measure="matched_forgetting"),
    )
    directory = write_run(
        tmp_path_factory.mktemp("tuned") / "run", methods=tuple(chosen), files=False, draws=2, comparisons=stated,
        tuning=Tuning(seeds=(100, 101), rates={**dict.fromkeys(chosen, TRIED), "joint": (1.0,)}, chosen=chosen),
    )  # fmt: skip
    return summarise(read_run(directory))


def test_the_mean_of_the_draws_of_a_seed_is_its_value(tuned):
    found = of(tuned, "random")
    assert found.seeds == SEEDS
    expected = [np.mean([story("random", seed + 1000 * draw, ORDERS[seed])[-1].mean() for draw in (0, 1)])
                for seed in range(5)]  # fmt: skip
    assert found.single["average"] == pytest.approx(expected)
    assert {curve.points[0].num for curve in tuned.curves if curve.method == "random"} == {5}


def test_a_tuning_is_summed_up(tuned):
    """Each rate's average is of the tuning's seeds, its place on the front of all that trained it."""
    assert (tuned.tuning.seeds, len(tuned.tuning.front_seeds)) == ((100, 101), 7)
    by_name = {one.method: one for one in tuned.tuning.methods}
    assert {name: one.edge for name, one in by_name.items()} == {
        "sequential": None, "transfer-lf": "highest", "joint": None, "random": None,
    }  # fmt: skip
    point = by_name["sequential"].points[1]
    tables = {seed: at_rate(story("sequential", seed, ORDERS[number % 6]), 0.5)
              for number, seed in enumerate((100, 101, 0, 1, 2, 3, 4))}  # fmt: skip
    assert point.rate == 0.5 and (point.average.num, point.lost.num) == (2, 7)
    assert point.average.mean == pytest.approx(np.mean([tables[seed][-1].mean() for seed in (100, 101)]))
    assert all(one.lost is None for one in by_name["joint"].points)
    assert tuned.caveat == "The learning rate of Transfer-LF, 2, is the highest tried: a higher one may be better."
    assert not tuned.sweeps


def test_stated_comparisons_are_all_that_is_asked(tuned):
    """Holm over these alone; what cannot be told at the same learning is told with its reason."""
    found = tuned.comparisons
    assert [(one.method, one.other, one.measure) for one in found] == [
        ("transfer-lf", "random", "average"), ("sequential", "random", "average"),
        ("transfer-lf", "sequential", "matched_forgetting"),
    ]  # fmt: skip
    adjusted = holm([one.difference.p for one in found])
    assert tuned.stated and [one.difference.p_adjusted for one in found] == pytest.approx(adjusted)
    assert of(tuned, "transfer-lf").differences["average"] == found[0].difference
    same = found[2]
    assert same.difference.verdict == "better" and same.difference.mean < 0 and same.difference.num == 7
    assert "Where both learn as much, Transfer-LF loses less on average than Sequential" in tuned.headline
    assert any(note.startswith("Joint fine-tuning against Sequential fine-tuning at the same learning: Joint") for note
               in tuned.notes)  # fmt: skip


def test_a_tuning_that_is_not_finished(tmp_path):
    """Compared are the seeds that trained all rates of both methods; a method without its whole line is told."""
    chosen = {"sequential": 0.5, "transfer-lf": 1.0, "random": 1.0}
    rates = dict.fromkeys(chosen, (0.5, 1.0, 2.0))
    run = write_run(tmp_path, methods=tuple(chosen), files=False,
                    tuning=Tuning(seeds=(100,), rates=rates, chosen=chosen))  # fmt: skip
    cells = read_run(run).record.cells

    def lose(method, *seeds):
        for cell in cells:
            if (cell.method, cell.value) == (method, 2.0) and cell.seed in seeds:
                shutil.rmtree(run / cell.steps["evaluate"])
        return summarise(read_run(run))

    found = lose("sequential", 1)
    (same,) = [one for one in found.comparisons if one.measure == "matched_forgetting"]
    assert same.difference.num == 5 and len(found.tuning.methods) == 3
    found = lose("transfer-lf", 100, *SEEDS)
    assert "Transfer-LF cannot forget, or not all its rates are trained." in "".join(found.notes)
    assert [len(one.points) for one in found.tuning.methods] == [3, 2, 3] and st.tables(found)
    edit(run / "run.json", lambda data: data["tuning"]["chosen"].pop("random"))
    assert [one.method for one in summarise(read_run(run)).tuning.methods] == ["sequential", "transfer-lf"]


# ---- tables


def row(table, *starts):
    return next(row for row in table.rows if row[: len(starts)] == starts)


def test_scores_are_in_percent(summary):
    table = st.scores(summary)
    assert table.header == (
        "method", "seeds", "maths-test, %", "code-test, %", "law-test, %", "trivia, %", "average, %",
    )  # fmt: skip
    assert [cell.text for cell in row(table, "Base model")[2:]] == ["10.0", "12.0", "14.0", "30.0", "12.0"]
    found = of(summary, "lora")
    assert row(table, "Sequential LoRA")[-1].value == pytest.approx(100 * found.measures["average"].mean)
    assert row(table, "Sequential LoRA")[2].low == pytest.approx(100 * found.final["maths-test"].low)


def test_sweeps_have_the_form_of_the_papers_tables(summary):
    ratio, order, epochs = (st.sweep(summary, one) for one in summary.sweeps)
    assert ratio.header == ("method", "r", *st.scores(summary).header[2:])
    assert [one[:2] for one in ratio.rows] == [
        ("Base model", NOTHING), ("Random set (main comparison)", NOTHING), ("TRACE-LF", "1 %"), ("TRACE-LF", "5 %"),
        ("Random set", "1 %"), ("Random set", "5 %"),
    ]  # fmt: skip
    assert "average over 2 orders" in order.note and epochs.title == "Effect of train.epochs"


def test_every_table_can_be_written(summary):
    every = st.tables(summary)
    assert len({table.name for table in every}) == len(every) == 7 + len(METHODS) + 3 + 1
    for table in every:
        assert {len(one) for one in table.rows} == {len(table.header)}, table.name
        read = list(csv.reader(io.StringIO(to_csv(table))))
        assert len({len(line) for line in read}) == 1 and len(read) == 1 + len(table.rows)
    assert max(map(len, to_text(*every).splitlines())) <= 100
