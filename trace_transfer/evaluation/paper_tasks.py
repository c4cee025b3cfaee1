"""Tasks of the paper that lm-evaluation-harness does not have so: HumanEval walled in, and the authors' own scripts.

HumanEval goes through the harness; prompt, decoding, stop sequences and scoring are the stock task's, version 1.0 (4.0
of the instruct form). Its programs are run by `programs` in place of `code_eval`, which is loaded from the hub and runs
them in forks of the evaluating process.

How the authors of TRACE read an answer is written anew here, for the harness' filters of `suites/authors`.

Sources: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374; KEAML-JLU/TRACE, eval/ (July
2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trace_transfer.errors import UserError
from trace_transfer.evaluation.harness import prepare_config
from trace_transfer.evaluation.outcome import Prepared, Reading
from trace_transfer.evaluation.sandbox.programs import Limits, run_program
from trace_transfer.evaluation.suite_file import EvaluationSpec

COLUMNS = ("task_id", "prompt", "entry_point", "test")
# A problem's test, as `programs` runs it: the prompt makes the helpers that a test calls (HumanEval/32, 38 and 50), and
# the function is the program's. The stock task appends test and call to the program.
TEST = "{{prompt}}\n{{entry_point}} = __program__.{{entry_point}}\n{{test}}\ncheck({{entry_point}})"
# The official checker gives 3 s by the clock; these are 3 s of processor time, the same on an idle machine and on a
# busy one. It limits neither memory nor files.
LIMITS = Limits(cpu_seconds=3)


def prepare_humaneval(spec: EvaluationSpec, reading: Reading) -> Prepared:
    """HumanEval, whose programs run walled in; raises as `prepare_harness`."""
    if not reading.settings.allow_code_execution:
        raise UserError(
            f"{spec.label}: it runs programs that the model writes; give --allow-code-execution (allow_code_execution: "
            "true) if that is what you want. They run in a child process without network and with limits on time, "
            "memory and files"
        )
    run_program("", "", LIMITS)  # raises where programs cannot be confined
    config = harness_config(instruct=spec.template == "chat")
    if spec.data is not None:
        config["process_docs"] = lambda docs: docs.select_columns(list(COLUMNS))
    return prepare_config(spec, config, reading, guarded=True)


def harness_config(*, instruct: bool = False) -> dict[str, Any]:
    """The stock task (`humaneval_instruct` for a chat template) with our programs, tests and metrics `pass_rates`."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    file = Path(lm_eval.__file__).parent / f"tasks/humaneval/humaneval{'_instruct' * instruct}.yaml"
    config: dict[str, Any] = load_yaml(file, resolve_func=False)  # whose own functions fetch things when imported
    programs = complete_prompts_in_block if instruct else complete_prompts
    (metric,), (chosen,) = config["metric_list"], config["filter_list"]
    return config | {
        "metric_list": [metric | {"metric": pass_rates}],
        "filter_list": [chosen | {"filter": [{"function": "custom", "filter_fn": programs}]}],
        "doc_to_target": TEST,
    }


def pass_rates(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """Run each problem's one program against its test: pass@1, and the share that was killed or timed out."""
    outcomes = [run_program(program, test, LIMITS) for test, (program,) in zip(references, predictions, strict=True)]
    num_killed = sum(one.status in ("killed", "timed out") for one in outcomes)
    return {"pass@1": sum(one.passed for one in outcomes) / len(outcomes), "killed": num_killed / len(outcomes)}


def complete_prompts(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Prompt and completion make the program. The names of the arguments are the harness's."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def complete_prompts_in_block(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """As `complete_prompts`, the completion up to the end of its code block."""
    return complete_prompts([[answer.partition("```")[0] for answer in answers] for answers in resps], docs)


# ---- how the authors read an answer

INVALID = "[invalid]"
TRIGGER = "the answer is"
_NUMBER = re.compile(r"-?\d+\.?\d*")
# In the order in which they are tried on a line; each needs some text behind the letter.
_OPTIONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])\.\s*.",
        r"^([A-D]):\s*.",
        r"^([A-D])\s+.",
        r"Option\s*([A-D])[：:]\s*.",
        r"Answer\s*is\s*([A-D])[：:]\s*.",
        r"([A-D])\s*option[：:]\s*.",
        r"^([A-D])\s*[.：:]\s*.",
    )
)


def gsm8k_number(text: str) -> str:
    """The first number after the first "the answer is", up to the next; without one, the last number of the text."""
    before, *behind = text.lower().split(TRIGGER)
    numbers = _NUMBER.findall((behind[0] if behind else before).replace(",", ""))
    return (numbers[0] if behind else numbers[-1]).removesuffix(".") if numbers else INVALID


def gsm8k_target(doc: Mapping[str, Any]) -> str:
    """What stands behind #### in the data."""
    found = re.search(r"#### (-?[0-9.,]+)", doc["answer"])
    return found[1].strip().replace(",", "") if found else INVALID


def medqa_letter(text: str) -> str:
    """A to D: of the first line that names an option, else the first such letter by itself, else the first letter."""
    lines = [line.strip() for line in text.strip().split("\n")]
    for found in (pattern.search(line) for line in lines for pattern in _OPTIONS):
        if found:
            return found[1].upper()
    if found := re.search(r"\b([A-D])\b", text):
        return found[1]
    first = lines[0].upper()
    return first[0] if first[:1] in tuple("ABCD") else INVALID


def gsm8k_filter(resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
    """`gsm8k_number` of every response."""
    return [[gsm8k_number(text) for text in texts] for texts in resps]


def medqa_filter(resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
    """`medqa_letter` of every response."""
    return [[medqa_letter(text) for text in texts] for texts in resps]


def medqa_prompt(doc: Mapping[str, Any]) -> str:
    """The question as their data have it (the heading of the options is theirs), in the prompt of their script."""
    options = "\n".join(f"{letter}. {doc[f'ending{place}']}" for place, letter in enumerate("ABCD"))
    return (
        "OUTPUT FORMAT:\n"
        "1) The first line: Output the answer, which is the provided option "
        "(e.g., 'A. xxx', 'B. yyy', 'C. zzz', 'D. www'); \n"
        "2) The second line and beyond (optional): Start with “Explanation:” to give a brief analysis.\n\n"
        "Now please answer the following question:\n\n"
        "Question: Based on the following clinical case, determine the cause and choose the most likely diagnosis.\n"
        f"{doc['sent1'].strip()}\n选项：\n{options}\n\nAnswer:"
    )
