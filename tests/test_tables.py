"""Tables and their numbers."""

import csv
import io

import pytest

from trace_transfer.tables import NOTHING, Number, Table, to_csv

TABLE = Table(
    "scores", "Scores", ("method", "maths, %"),
    (("A | B", Number(45.24, 43.31, 47.08)), ("C", Number(12.0)), ("D", NOTHING)), "A note.",
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(45.24, 43.31, 47.08), "45.2 [43.3, 47.1]"),
        (Number(1.26, -0.04, 2.5, signed=True), "+1.3 [0.0, +2.5]"),
        (Number(-0.04), "0.0"),
        (Number(2.34567, digits=3), "2.346"),
        (Number(1234.5678, digits=3, significant=True), "1,235"),
        (Number(0.012345, digits=3, significant=True), "0.0123"),
    ],
)
def test_numbers(number, text):
    assert number.text == text


def test_csv_is_for_machines():
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == ["method", "maths, %", "maths, %: low", "maths, %: high"]
    assert rows[1:] == [["A | B", "45.24", "43.31", "47.08"], ["C", "12", "", ""], ["D", "", "", ""]]
