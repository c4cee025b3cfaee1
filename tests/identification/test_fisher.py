"""Fisher information against the one-example loop in float64, for every family and every way of running it."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from tests.identification.texts import draw_examples, layer_path
from tests.reference.fisher_loop import fisher_by_loop
from tests.tiny_models import FAMILIES, REPRESENTATIVES, build_config, build_model
from trace_transfer.errors import NumericalError
from trace_transfer.families.anatomy import Split
from trace_transfer.identification import fisher_forms
from trace_transfer.identification.fisher import TRIAL_TOKENS, fisher_information

EXAMPLES = draw_examples(7)
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in REPRESENTATIVES]
OF_EXPERTS = r"\.(experts|router|gate)\.|sinks"
OTHERS = {"opt": "embed_positions", "cohere": "[qk]_norm", "apertus": r"\.act_fn\."}  # no forms for these
TOLERANCE = 1e-6  # norms of transformers compute in float32, also in float64 models


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """The texts here are short: their Gram matrices have several blocks all the same."""
    monkeypatch.setattr(fisher_forms, "BLOCK", 5)


@pytest.fixture(scope="module")
def built():
    """`built(family)`: a tiny model in float64; `built(family, loop=True)`: its Fisher information by the loop."""
    models, loops = {}, {}

    def get(family, loop=False):
        if family not in models:
            models[family] = build_model(build_config(family)).double()
            if any(".experts." in name for name, _ in models[family].named_parameters()):
                models[family].set_experts_implementation("eager")  # the others have no float64
        if loop and family not in loops:
            loops[family] = fisher_by_loop(models[family], [[example] for example in EXAMPLES])
        return loops[family] if loop else models[family]

    return get


def assert_same(values, expected, tolerance=TOLERANCE):
    assert list(values) == list(expected)
    wrong = {
        name: (value, expected[name])
        for name, value in values.items()
        if not math.isclose(value, expected[name], rel_tol=tolerance, abs_tol=1e-20)  # a bias on keys moves nothing
    }
    assert wrong == {}


def sums(squares):
    return {name: float(square.sum()) for name, square in squares.items()}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("family", [*REPRESENTATIVES, *SLOW])
def test_exact_for_every_family(built, family, streamed):
    found = fisher_information(
        built(family), EXAMPLES, layer_path=layer_path(family), streamed=streamed, tokens_at_once=70
    )
    assert_same(found.values, sums(built(family, loop=True)))
    assert all(re.search(OTHERS.get(family, OF_EXPERTS), name) for name in found.fallback)
    assert found.num == len(EXAMPLES) and all(value > 0 for value in found.values.values())


@pytest.mark.parametrize(("family", "batch_of", "streamed"), [("llama", 2, False), ("gemma3_text", 3, True)])
def test_per_batch_squares_the_batch_gradient(built, family, streamed, batch_of):
    groups = [EXAMPLES[start : start + batch_of] for start in range(0, len(EXAMPLES), batch_of)]
    found = fisher_information(
        built(family), EXAMPLES, layer_path=layer_path(family), batch_of=batch_of, streamed=streamed
    )
    assert found.num == len(groups)
    assert found.fallback == ()
    assert_same(found.values, sums(fisher_by_loop(built(family), groups)))


def splits_of(model):
    """Every tensor cut by every dimension that is a whole number of units, in turn."""
    for dim, size in ((0, 1), (0, 4), (1, 1), (1, 4)):
        yield {
            name: Split(dim, size)
            for name, parameter in model.named_parameters()
            if dim < parameter.dim() and parameter.shape[dim] % size == 0
        }


@pytest.mark.parametrize(("family", "streamed"), [("qwen2", False), ("gpt2", True), ("phi3", False)])
def test_units_are_the_squares_of_their_rows_or_columns(built, family, streamed):
    model, squares = built(family), built(family, loop=True)
    for splits in splits_of(model):
        found = fisher_information(
            model, EXAMPLES, layer_path=layer_path(family), splits=splits, streamed=streamed, tokens_at_once=100
        )
        assert list(found.units) == list(splits)
        assert found.fallback == ()
        for name, split in splits.items():
            by_index = squares[name].movedim(split.dim, 0).flatten(1) if squares[name].dim() > 1 else squares[name]
            expected = by_index.reshape(-1, split.size * by_index[0].numel()).sum(dim=1)
            tolerance = TOLERANCE * float(expected.max())
            torch.testing.assert_close(found.units[name], expected, rtol=TOLERANCE, atol=tolerance)
            assert float(found.units[name].sum()) == pytest.approx(found.values[name], rel=1e-12)
        assert_same(found.values, sums(squares))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(EXAMPLES))), st.integers(1, 300), st.booleans())
def test_nothing_depends_on_how_examples_meet(built, order, tokens_at_once, streamed):
    examples = [EXAMPLES[index] for index in order]
    found = fisher_information(
        built("qwen2"), examples, layer_path="model.layers", tokens_at_once=tokens_at_once, streamed=streamed
    )
    assert found.fallback == ()
    assert_same(found.values, sums(built("qwen2", loop=True)))


class Odd(torch.nn.Module):
    """Something else around a layer, or without one."""

    def __init__(self, how, inner=None, **parameters):
        super().__init__()
        self.how, self.inner = how, inner
        for name, values in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(values, dtype=torch.float64)))

    def forward(self, x):
        return self.how(self, x)


CASES = {  # what becomes of a layer, and which tensors are then left to the loop
    "no form": (lambda up: Odd(lambda odd, x: odd.inner(x) * odd.gate.sum().tanh(), up, gate=[0.3, 0.7]), ".gate"),
    "called twice": (lambda up: Odd(lambda odd, x: odd.inner(x) + odd.inner(x * 0.5), up), ".inner.weight"),
    # Once for short texts, twice for long ones: what the trial on two short texts cannot see.
    "misjudged": (
        lambda up: Odd(lambda odd, x: torch.cat([odd.inner(part) for part in x.split(TRIAL_TOKENS, dim=1)], dim=1), up),
        ".inner.weight",
    ),
}


@pytest.mark.parametrize(("case", "streamed"), [(case, number % 2 == 0) for number, case in enumerate(CASES)])
def test_what_has_no_form_is_left_to_the_loop(built, case, streamed):
    model, (make, fallback) = copy.deepcopy(built("llama")), CASES[case]
    attention = model.model.layers[1].self_attn
    attention.o_proj = make(attention.o_proj)
    examples = draw_examples(6, seed=3, longest=2 * TRIAL_TOKENS)
    assert {len(example.input_ids) > TRIAL_TOKENS for example in examples} == {False, True}
    expected = fisher_by_loop(model, [[example] for example in examples])
    name = f"model.layers.1.self_attn.o_proj{fallback}"
    splits = {name: Split(0, 1)}
    found = fisher_information(model, examples, layer_path="model.layers", streamed=streamed, splits=splits)
    assert found.fallback == (name,)
    assert_same(found.values, sums(expected))
    torch.testing.assert_close(
        found.units[name], expected[name].reshape(len(expected[name]), -1).sum(dim=1), rtol=TOLERANCE, atol=0
    )


def test_a_transposed_head_and_one_with_a_bias_tied_to_the_embedding(built):
    """A tied head with a bias has a form; two weights of one tensor in a transposed layer have none."""
    model = copy.deepcopy(built("gemma2"))
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 512, dtype=torch.float64))
    found = fisher_information(model, EXAMPLES, layer_path="model.layers")
    assert found.fallback == ()
    assert_same(found.values, sums(fisher_by_loop(model, [[example] for example in EXAMPLES])))
    gpt2 = copy.deepcopy(built("gpt2"))
    second = Conv1D(48, 48).double()
    second.weight = gpt2.transformer.h[0].attn.c_proj.weight
    gpt2.transformer.h[0].attn.c_proj = torch.nn.Sequential(gpt2.transformer.h[0].attn.c_proj, second)
    found = fisher_information(gpt2, EXAMPLES, layer_path="transformer.h")
    assert found.fallback[:1] == ("transformer.h.0.attn.c_proj.0.weight",)
    assert_same(found.values, sums(fisher_by_loop(gpt2, [[example] for example in EXAMPLES])))


def test_a_loss_that_is_not_finite_names_its_examples(built):
    """One token's embedding is NaN, so only the texts that have it fail."""
    model = copy.deepcopy(built("llama")).float()
    with torch.no_grad():
        model.model.embed_tokens.weight[99] = math.nan
    bad = replace(EXAMPLES[2], id="math:17", input_ids=(99, *EXAMPLES[2].input_ids[1:]))
    calm = [example for example in EXAMPLES if len(example.input_ids) > len(bad.input_ids)]
    with pytest.raises(NumericalError, match=r"for 1 of \d examples or batches:\n  - math:17$"):
        fisher_information(model, [*calm, bad], layer_path="model.layers")
