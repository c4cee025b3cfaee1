"""HumanEval (Chen et al., 2021) through lm-evaluation-harness, its programs run by `programs` in place of `code_eval`.

The stock task loads `code_eval` from the hub when it is imported and runs programs in forks of the evaluating process.
Here prompt, decoding, stop sequences and scoring are the stock task's, version 1.0 (4.0 of the instruct form); a
problem's test calls the program from another process, so that a program cannot fake its pass.

Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trace_transfer.errors import UserError
from trace_transfer.evaluation.harness import HarnessEvaluation, prepare_config
from trace_transfer.evaluation.outcome import Reading
from trace_transfer.evaluation.sandbox.programs import Limits, run_program
from trace_transfer.evaluation.suite_file import EvaluationSpec

COLUMNS = ("task_id", "prompt", "entry_point", "test")
# A problem's test, as `programs` runs it: the prompt makes the helpers that a test calls (HumanEval/32, 38 and 50), and
# the function is the program's. The stock task appends test and call to the program.
TEST = "{{prompt}}\n{{entry_point}} = __program__.{{entry_point}}\n{{test}}\ncheck({{entry_point}})"
# The official checker gives 3 s by the clock; these are 3 s of processor time, the same on an idle machine and on a
# busy one. It limits neither memory nor files.
LIMITS = Limits(cpu_seconds=3)
NOT_ALLOWED = (
    "it runs programs that the model writes; give --allow-code-execution (allow_code_execution: true) if that is what "
    "you want. They run in a child process without network and with limits on time, memory and files"
)


def prepare_humaneval(spec: EvaluationSpec, reading: Reading) -> HarnessEvaluation:
    """HumanEval, whose programs run walled in; raises as `prepare_harness`."""
    if not reading.settings.allow_code_execution:
        raise UserError(f"{spec.label}: {NOT_ALLOWED}")
    run_program("", "", LIMITS)  # raises where programs cannot be confined
    config = harness_config(instruct=spec.template == "chat")
    if spec.data is not None:
        config["process_docs"] = lambda docs: docs.select_columns(list(COLUMNS))
    return prepare_config(spec, config, reading, guarded=True)


def harness_config(*, instruct: bool = False) -> dict[str, Any]:
    """The harness' configuration of the task: 0-shot, greedy, pass@1.

    Scores are under "pass@1,create_test"; "killed,create_test" is the share of programs that were killed or timed out.
    `instruct` is the stock `humaneval_instruct`: the problem as a question, the answer begun inside a code block (to be
    used with the model's chat template).
    """
    programs = complete_prompts_in_block if instruct else complete_prompts
    config: dict[str, Any] = {
        "task": "humaneval",
        "dataset_path": "openai/openai_humaneval",
        "unsafe_code": True,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": TEST,
        "metric_list": [{"metric": pass_rates, "aggregation": "mean", "higher_is_better": True, "k": [1]}],
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "max_gen_toks": 1024, "do_sample": False,
        },
        "repeats": 1,
        "num_fewshot": 0,
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": programs}]}],
        "metadata": {"version": 4.0 if instruct else 1.0},
    }  # fmt: skip
    asked = "Write a solution to the following problem and make sure that it passes the tests:\n"
    block = "```python\n{{ prompt }}\n"
    return config | {
        "task": "humaneval_instruct", "doc_to_text": f"{asked}{block}```\n",
        "gen_prefix": f"Here is the completed function:\n{block}",
    } if instruct else config  # fmt: skip


def pass_rates(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """Run each problem's one program against its test, as of `TEST`: pass@1, and the share that was killed."""
    outcomes = [run_program(program, test, LIMITS) for test, (program,) in zip(references, predictions, strict=True)]
    num_killed = sum(one.status in ("killed", "timed out") for one in outcomes)
    return {"pass@1": sum(one.passed for one in outcomes) / len(outcomes), "killed": num_killed / len(outcomes)}


def complete_prompts(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Prompt and completion make the program. The names of the arguments are the harness's."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def complete_prompts_in_block(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """As `complete_prompts`, the completion up to the end of its code block."""
    return complete_prompts([[answer.partition("```")[0] for answer in answers] for answers in resps], docs)
