"""HumanEval: the stock task's configuration and scores, without the hub's code."""

import runpy
import sys
import types

import pytest
from jinja2 import Template

from tests.evaluation.by_hand import STOCK
from tests.evaluation.sandbox.test_programs import needs_landlock
from trace_transfer.evaluation import paper_tasks
from trace_transfer.evaluation.paper_tasks import harness_config, pass_rates

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
    return Template(paper_tasks.TEST).render(record)


test_of.__test__ = False


@needs_landlock
def test_solutions_pass_and_wrong_ones_do_not():
    references = [test_of(record) for record in RECORDS]
    solutions = [[record["prompt"] + record["canonical_solution"]] for record in RECORDS]
    wrong = [solutions[0], [RECORDS[1]["prompt"] + "    return None\n"]]
    assert pass_rates(references, wrong, [1]) == {"pass@1": 0.5, "killed": 0.0}


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


def test_the_prompts_are_the_stock_tasks_and_what_is_run_is_ours():
    for instruct, version in ((False, 1.0), (True, 4.0)):
        config = harness_config(instruct=instruct)
        assert config["doc_to_text"].endswith("{{ prompt }}\n```\n" if instruct else "{{prompt}}")
        assert config["metadata"]["version"] == version and config["generation_kwargs"]["until"][0] == "\nclass"
        assert config["doc_to_target"] == paper_tasks.TEST and config["metric_list"][0]["metric"] is pass_rates
        assert "utils" not in repr(config)


def test_programs_are_made_as_the_stock_task_makes_them(monkeypatch):
    stub = types.ModuleType("evaluate")  # for what it loads from the hub
    stub.load = lambda name: types.SimpleNamespace(compute=lambda **_: ({},))
    monkeypatch.setitem(sys.modules, "evaluate", stub)
    stock = runpy.run_path(str(STOCK / "humaneval" / "utils.py"))
    answers = [["a", "b```c```", ""], ["```", "x\n```\n", "d\n```python\ne"]]
    assert paper_tasks.complete_prompts(answers, RECORDS) == stock["build_predictions"](answers, RECORDS)
    in_block = stock["build_predictions_instruct"](answers, RECORDS)
    assert paper_tasks.complete_prompts_in_block(answers, RECORDS) == in_block
