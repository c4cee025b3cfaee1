"""How the authors' scripts read an answer, on texts for which it can be said by reading those scripts."""

import pytest

from trace_transfer.evaluation.authors_answers import INVALID, gsm8k_number, gsm8k_target, medqa_letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 2 + 3 is 5. The answer is 5.\n\nQ: 7?", "5"),
        ("The answer is $1,234.50 or 9. The answer is 8", "1234.50"),
        ("It is 4, no, 12.", "12"),
        ("THE ANSWER IS -3!", "-3"),
        ("12. The answer is unknown.", INVALID),
        ("none", INVALID),
        ("", INVALID),
    ],
)
def test_gsm8k(text, number):
    assert gsm8k_number(text) == number


def test_gsm8k_target():
    assert gsm8k_target({"answer": "8 * 9\n#### 1,072"}) == "1072"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B. Tea", "B"),
        ("Well.\nc: X-ray", "C"),
        ("A 45-year-old should rest.", "A"),
        ("The answer is D: knife", "D"),
        ("I would say B", "B"),
        ("because", "B"),
        ("Never", INVALID),
        ("", INVALID),
    ],
)
def test_medqa(text, letter):
    assert medqa_letter(text) == letter
