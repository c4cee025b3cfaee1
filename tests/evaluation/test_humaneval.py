"""HumanEval: the stock task's configuration and scores, without the hub's code."""

import json
import os
import runpy
import sys
import types
from pathlib import Path

import pytest
import yaml
from jinja2 import Template

from tests.evaluation.by_hand import STOCK
from tests.evaluation.sandbox.test_programs import needs_landlock
from trace_transfer.evaluation import humaneval
from trace_transfer.evaluation.humaneval import harness_config, pass_rates
from trace_transfer.evaluation.sandbox.programs import run_program

# Two of HumanEval's problems (MIT licence, OpenAI), the tests shortened.
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
        "task_id": "HumanEval/53",
        "prompt": '\n\ndef add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    """\n',
        "entry_point": "add",
        "canonical_solution": "    return x + y\n",
        "test": "\n\ndef check(candidate):\n    import random\n\n    for i in range(100):\n"
        "        x, y = random.randint(0, 1000), random.randint(0, 1000)\n        assert candidate(x, y) == x + y\n",
    },
]


def test_of(record: dict[str, str]) -> str:
    return Template(humaneval.TEST).render(record)


test_of.__test__ = False


@needs_landlock
def test_solutions_pass_and_wrong_ones_do_not():
    references = [test_of(record) for record in RECORDS]
    solutions = [[record["prompt"] + record["canonical_solution"]] for record in RECORDS]
    assert pass_rates(references, solutions, [1]) == {"pass@1": 1.0, "killed": 0.0}
    wrong = [solutions[0], [RECORDS[1]["prompt"] + "    return None\n"]]
    assert pass_rates(references, wrong, [1]) == {"pass@1": 0.5, "killed": 0.0}


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
    programs.append(programs[1] + "def code(s):\n    return s\n")  # its own `code` does not count
    found = pass_rates([test_of(record)] * 3, [[program] for program in programs], [1])
    assert found["pass@1"] == pytest.approx(1 / 3)


def stock_config(name: str) -> dict[str, object]:
    """The stock task's YAML, its functions by name."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    config = yaml.load((STOCK / "humaneval" / f"{name}.yaml").read_text(), Loader)
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


def test_programs_are_made_as_the_stock_task_makes_them(monkeypatch):
    stub = types.ModuleType("evaluate")  # for what it loads from the hub
    stub.load = lambda name: types.SimpleNamespace(compute=lambda **_: ({},))
    monkeypatch.setitem(sys.modules, "evaluate", stub)
    stock = runpy.run_path(str(STOCK / "humaneval" / "utils.py"))
    answers = [["a", "b```c```", ""], ["```", "x\n```\n", "d\n```python\ne"]]
    assert humaneval.complete_prompts(answers, RECORDS) == stock["build_predictions"](answers, RECORDS)
    in_block = stock["build_predictions_instruct"](answers, RECORDS)
    assert humaneval.complete_prompts_in_block(answers, RECORDS) == in_block
