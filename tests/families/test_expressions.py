from types import SimpleNamespace

import pytest

from trace_transfer.errors import RulesError
from trace_transfer.families.expressions import ConfigLookup, first_that_resolves, parse_expression

CONFIG = SimpleNamespace(
    model_type="toy",
    hidden_size=64,
    num_attention_heads=4,
    head_dim=None,
    tie=True,
    untied=False,
    name="x",
    text_config=SimpleNamespace(head_dim=32, rope={"factor": 8}),
)
LOOKUP = ConfigLookup(CONFIG, {"q": 48})


def value(text: str) -> int:
    return parse_expression(text).evaluate(LOOKUP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tie + (1 - untied) * 5", 6),
        ("hidden_size // num_attention_heads", 16),
        ("q + 2*16", 80),
        ("-(q - 50) * 3", 6),
        ("text_config.head_dim", 32),
        ("text_config.rope.factor * 2", 16),
    ],
)
def test_values(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize("text", ["a / b", "a ** b", "f(1)", "True", "a.__class__", "a +", "(" * 150])
def test_refused(text):
    with pytest.raises(RulesError, match="not an arithmetic expression; allowed are"):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zzz.yyy", r"'zzz.yyy' is not set in the config of toy$"),
        ("name", r"'name' is 'x' in the config, not an integer"),
        ("1 // 0", r"'1 // 0' divides by zero"),
    ],
)
def test_not_resolved(text, message):
    with pytest.raises(RulesError, match=message):
        value(text)


def test_first_choice_that_resolves_is_taken():
    choices = [parse_expression("head_dim"), parse_expression("hidden_size // num_attention_heads")]
    assert first_that_resolves(choices, LOOKUP) == 16
    with pytest.raises(RulesError, match=r"'head_dim' is not set in the config of toy.*; 'nope' is not set"):
        first_that_resolves([parse_expression("head_dim"), parse_expression("nope")], LOOKUP)
