"""HumanEval: the stock task's configuration and scores, without the hub's code."""

import itertools
import json
import os
import runpy
import sys
import types
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Template

from tests.evaluation.sandbox.test_programs import needs_landlock
from trace_transfer.errors import UserError
from trace_transfer.evaluation import humaneval
from trace_transfer.evaluation.humaneval import harness_config, pass_at_k, pass_rates, read_records
from trace_transfer.evaluation.sandbox.programs import run_program

# Three of HumanEval's problems (MIT licence, OpenAI), the tests shortened.
RECORDS = [
    {
        "task_id": "HumanEval/2",
        "prompt": '\n\ndef truncate_number(number: float) -> float:\n    """ Return the decimal part of the number.\n'
        '    >>> truncate_number(3.5)\n    0.5\n    """\n',
        "entry_point": "truncate_number",
        "canonical_solution": "    return number % 1.0\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(3.5) == 0.5\n"
        "    assert abs(candidate(1.33) - 0.33) < 1e-6\n",
    },
    {
        "task_id": "HumanEval/23",
        "prompt": '\n\ndef strlen(string: str) -> int:\n    """ Return length of given string\n'
        '    >>> strlen(\'abc\')\n    3\n    """\n',
        "entry_point": "strlen",
        "canonical_solution": "    return len(string)\n",
        "test": "\n\ndef check(candidate):\n    assert candidate('') == 0\n    assert candidate('asdasnakj') == 9\n",
    },
    {
        "task_id": "HumanEval/53",
        "prompt": '\n\ndef add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    """\n',
        "entry_point": "add",
        "canonical_solution": "    return x + y\n",
        "test": "\n\ndef check(candidate):\n    import random\n\n    for i in range(100):\n"
        "        x, y = random.randint(0, 1000), random.randint(0, 1000)\n        assert candidate(x, y) == x + y\n",
    },
]


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "humaneval.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def test_of(record: dict[str, str]) -> str:
    return Template(humaneval.TEST).render(record)


test_of.__test__ = False


# ---- scores


@needs_landlock
def test_solutions_pass_and_wrong_ones_do_not():
    references = [test_of(record) for record in RECORDS]
    solutions = [[record["prompt"] + record["canonical_solution"]] for record in RECORDS]
    assert pass_rates(references, solutions, [1]) == {"pass@1": 1.0, "killed": 0.0}
    wrong = [[record["prompt"] + "    return None\n"] for record in RECORDS]
    assert pass_rates(references, wrong, [1]) == {"pass@1": 0.0, "killed": 0.0}


@needs_landlock
def test_several_programs_of_one_problem(monkeypatch):
    monkeypatch.setattr(humaneval, "LIMITS", humaneval.Limits(cpu_seconds=1, wall_seconds=2))
    prompt = RECORDS[2]["prompt"]
    bodies = ("return x + y", "return y + x", "return x - y", "while True: pass")
    programs = [f"{prompt}    {body}\n" for body in bodies]
    rates = pass_rates([test_of(RECORDS[2])], [programs], [1, 2, 4, 8])
    # 2 of 4 are right, so 1 of the 6 pairs has none; 8 are too many.
    assert rates == pytest.approx({"pass@1": 1 / 2, "pass@2": 5 / 6, "pass@4": 1, "killed": 1 / 4})


@pytest.mark.slow
@needs_landlock
def test_all_canonical_solutions_pass():
    """Give the official file's path as HUMANEVAL_JSONL."""
    path = os.environ.get("HUMANEVAL_JSONL")
    if path is None:
        pytest.skip("HUMANEVAL_JSONL names no file")
    records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert len(records) == 164

    def passing(body: str | None) -> list[str]:
        programs = [record["prompt"] + (body or record["canonical_solution"]) for record in records]
        outcomes = map(run_program, programs, map(test_of, records))
        return [record["task_id"] for record, outcome in zip(records, outcomes, strict=True) if outcome.passed]

    assert passing(None) == [record["task_id"] for record in records]
    assert passing("    return None\n") == []


@needs_landlock
def test_a_test_may_call_a_helper_of_the_prompt_and_the_function_itself():
    """As those of HumanEval/32, 33, 38 and 50."""
    record = {
        "prompt": 'def code(s: str):\n    return s[::-1]\n\n\ndef decode(s: str):\n    """ Undo `code`. """\n',
        "entry_point": "decode",
        "test": "def check(candidate):\n    for s in ('abc', ''):\n        assert candidate(code(s)) == s\n"
        "        assert tuple(decode(s)) == tuple(candidate(s))\n",
    }
    programs = [record["prompt"] + body for body in ("    return s[::-1]\n", "    return s\n")]
    # Its own `code` does not count.
    programs.append(programs[1] + "def code(s):\n    return s\n")
    assert pass_rates([test_of(record)], [programs], [1])["pass@1"] == pytest.approx(1 / 3)


# ---- pass@k


@given(st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(data):
    n = data.draw(st.integers(1, 9))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_of_many_samples():
    # The product of Chen et al.'s figure 3, in floating point.
    product = 1.0
    for i in range(200 - 13 + 1, 200 + 1):
        product *= 1 - 100 / i
    assert pass_at_k(200, 13, 100) == pytest.approx(1 - product, rel=1e-12)
    assert pass_at_k(200, 150, 100) == 1


# ---- data


def test_bad_records_are_listed(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + '\n\n{"prompt": "a", "test": 3}\n[1]\nnot json\n')
    with pytest.raises(
        UserError, match=r"(?s)line 3: no text under task_id, entry_point, test.*line 4: .*line 5: not JSON"
    ):
        read_records(path)
    path.write_text(json.dumps(RECORDS[0] | {"prompt": "def f(x):\n"}))
    with pytest.raises(
        UserError, match="line 1: the prompt alone is no Python; expected a function with its docstring"
    ):
        read_records(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no records; expected HumanEval's"):
        read_records(path)
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        harness_config(tmp_path / "none.jsonl")


# ---- the harness


def stock_directory() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / "humaneval"


def stock_config(name: str) -> dict[str, object]:
    """The stock task's YAML, its functions by name."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    config = yaml.load((stock_directory() / f"{name}.yaml").read_text(), Loader)
    return stock_config(Path(config.pop("include")).stem) | config if "include" in config else config


@pytest.mark.parametrize("instruct", [False, True])
def test_the_configuration_is_the_stock_tasks(instruct):
    ours, stock = harness_config(instruct=instruct), stock_config("humaneval_instruct" if instruct else "humaneval")
    assert ours["metric_list"][0].pop("metric") is pass_rates
    assert stock["metric_list"][0].pop("metric") == "utils.pass_at_k"
    completes = humaneval.complete_prompts_in_block if instruct else humaneval.complete_prompts
    assert ours["filter_list"][0]["filter"][0].pop("filter_fn") is completes
    assert stock["filter_list"][0]["filter"][0].pop("filter_fn").startswith("utils.build_predictions")
    assert ours.pop("doc_to_target").endswith(stock.pop("doc_to_target"))
    assert ours == stock


@pytest.fixture
def stock_functions(monkeypatch):
    """The stock task's functions, with a stand-in for what they load from the hub."""
    stub = types.ModuleType("evaluate")
    stub.load = lambda name: types.SimpleNamespace(compute=lambda **_: ({},))
    monkeypatch.setitem(sys.modules, "evaluate", stub)
    return runpy.run_path(str(stock_directory() / "utils.py"))


def test_programs_are_made_as_the_stock_task_makes_them(stock_functions):
    answers = [["a", "b```c```", ""], ["```", "x\n```\n", "``"], ["d\n```python\ne"]]
    plain, block = stock_functions["build_predictions"], stock_functions["build_predictions_instruct"]
    assert humaneval.complete_prompts(answers, RECORDS) == plain(answers, RECORDS)
    assert humaneval.complete_prompts_in_block(answers, RECORDS) == block(answers, RECORDS)


@pytest.fixture(scope="module")
def evaluate():
    """`evaluate(config, model)`: the harness without its own tasks, whose index takes ten seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)

    def run(config, model, **options):
        options = {"confirm_run_unsafe_code": True, "bootstrap_iters": 0} | options
        return simple_evaluate(model, tasks=[config], task_manager=manager, **options)

    return run


@pytest.fixture
def answering():
    """A model of the harness that gives these answers, and keeps what it was asked."""
    from lm_eval.api.model import LM

    class Answering(LM):
        def __init__(self, answers):
            super().__init__()
            self.answers, self.asked = answers, []

        def generate_until(self, requests, disable_tqdm=False):
            self.asked += [request.args for request in requests]
            return self.answers[: len(requests)]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return Answering


@needs_landlock
def test_through_the_harness_right_wrong_and_killed(data_file, answering, evaluate, monkeypatch):
    monkeypatch.setattr(humaneval, "LIMITS", humaneval.Limits(cpu_seconds=1, wall_seconds=2))
    model = answering([RECORDS[0]["canonical_solution"], "    return 3\n", "    while True: pass\n"])
    results = evaluate(harness_config(data_file), model)["results"]["humaneval"]
    assert results["pass@1,create_test"] == pytest.approx(1 / 3)
    assert results["killed,create_test"] == pytest.approx(1 / 3)
    assert [text for text, _ in model.asked] == [record["prompt"] for record in RECORDS]
    assert model.asked[0][1] == {"until": list(humaneval.STOP), "max_gen_toks": 1024, "do_sample": False}
