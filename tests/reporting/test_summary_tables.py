"""The tables of a run: what stands in them is what the summary says, in the paper's form."""

import csv
import io

import pytest

from tests.run_files import METHODS, TASKS, story, write_run
from trace_transfer.reporting import summary_tables as st
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.summarising import summarise
from trace_transfer.tables import NOTHING, to_csv, to_text

SWEEPS = {
    "ratio": (("trace-lf", "trace-cs"), (0.01, 0.05)),
    "order": (("trace-lf",), (["maths", "code", "law"], ["law", "code", "maths"])),
    "train.epochs": (("sequential",), (1, 2)),
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(
        read_run(write_run(tmp_path_factory.mktemp("runs"), sweeps=SWEEPS, untaught=("trivia",), files=False))
    )


def row(table, *starts):
    return next(row for row in table.rows if row[: len(starts)] == starts)


def test_scores_are_in_percent(summary):
    table = st.scores(summary)
    assert table.header == (
        "method", "seeds", "maths-test, %", "code-test, %", "law-test, %", "trivia, %", "average, %",
    )  # fmt: skip
    assert [one[0] for one in table.rows] == ["Base model", *(title for title, *_ in METHODS.values())]
    assert [cell.text for cell in row(table, "Base model")[2:]] == ["10.0", "12.0", "14.0", "30.0", "12.0"]
    found = next(one for one in summary.methods if one.method == "lora")
    assert row(table, "Sequential LoRA")[-1].value == pytest.approx(100 * found.measures["average"].mean)
    assert row(table, "Sequential LoRA")[2].low == pytest.approx(100 * found.final["maths-test"].low)
    assert "without trivia" in table.note


def test_measures_that_a_method_lacks_are_left_out(summary):
    table = st.measures(summary)
    assert [cell == NOTHING for cell in row(table, "Joint fine-tuning")] == [False, False, True, True, True, False]
    assert "Lopez-Paz and Ranzato, 2017, eq. 3" in table.note


def test_differences_have_signs_and_no_row_for_the_reference(summary):
    table = st.differences(summary)
    assert table.title == "Difference from Random set"
    assert "Random set" not in [one[0] for one in table.rows]
    assert row(table, "TRACE-LF")[1].text.startswith("+9")
    detail = st.details(summary)
    full = row(detail, "TRACE-LF", "Average")
    found = next(one for one in summary.methods if one.method == "trace-lf").differences["average"]
    expected = [100 * one for one in (found.mean, found.low, found.high)]
    assert [full[3].value, full[3].low, full[3].high] == pytest.approx(expected)
    assert full[5] == f"{found.p_adjusted:.4f}"


def test_times_and_sizes(summary):
    times = st.times(summary)
    assert times.header[2:5] == ("identify, min", "map, s", "train, min")
    assert [row(times, "Transfer-LF")[c].text for c in (2, 3)] == ["0.500", "10.0"]
    assert row(times, "Transfer-LF")[1] == "source" and row(times, "DMT")[1] == NOTHING
    sizes = st.sizes(summary)
    assert row(sizes, "Sequential LoRA")[2] == NOTHING
    assert sizes.header[1:4] == ("trained parameters", "peak memory, identify, GB", "peak memory, train, GB")


def test_sweeps_have_the_form_of_the_papers_tables(summary):
    ratio, order, epochs = (st.sweep(summary, one) for one in summary.sweeps)
    assert ratio.header == ("method", "r", *st.scores(summary).header[2:])
    assert [one[:2] for one in ratio.rows] == [
        ("Base model", NOTHING), ("Random set (main comparison)", NOTHING), ("TRACE-LF", "1 %"), ("TRACE-LF", "5 %"),
        ("TRACE-CS", "1 %"), ("TRACE-CS", "5 %"),
    ]  # fmt: skip
    assert "Table A.1" in ratio.note
    assert "average over 2 orders" in order.note and "Table 2" in order.note
    assert epochs.title == "Effect of train.epochs" and epochs.note == ""


def test_matrices_and_curves(summary):
    matrix = next(one for one in st.matrices(summary) if one.name == "matrix_sequential")
    assert [one[0] for one in matrix.rows] == ["base", *TASKS]
    expected = story("sequential", 0, TASKS)
    assert [[cell.value for cell in one[1:4]] for one in matrix.rows] == [pytest.approx(100 * r) for r in expected]
    assert "Mean of 1 model with the order maths → code → law" in matrix.note
    curve = row(st.curves(summary), "Joint fine-tuning", "maths, %")
    assert curve[3:] == (NOTHING, NOTHING)


def test_losses_keep_their_unit(tmp_path):
    losses = write_run(
        tmp_path, methods=("sequential", "random"), metrics=dict.fromkeys(TASKS, "loss"), files=False,
        scores=lambda method, seed, order: 3.0 - story(method, seed, order),
    )  # fmt: skip
    summary = summarise(read_run(losses))
    table = st.scores(summary)
    assert table.header[2] == "maths-test, nats per token (less is better)" and table.header[-1] == "average"
    assert row(table, "Base model")[2].text == "2.900"
    assert row(table, "Base model")[-1].text == "-2.880"
    assert st.measures(summary).header[1:3] == ("average", "backward transfer")


def test_every_table_can_be_written(summary):
    every = st.tables(summary)
    assert len({table.name for table in every}) == len(every) == 7 + len(METHODS) + 3 + 1
    for table in every:
        assert {len(one) for one in table.rows} == {len(table.header)}, table.name
        read = list(csv.reader(io.StringIO(to_csv(table))))
        assert len({len(line) for line in read}) == 1 and len(read) == 1 + len(table.rows)
    assert max(map(len, to_text(every).splitlines())) <= 100
    shown = to_text(st.short_tables(summary))
    assert "Sequential fine-tuning" in shown and "Memory and files" in shown
