"""HumanEval (Chen et al., 2021) through lm-evaluation-harness, its programs run by `programs` in place of `code_eval`.

The stock task loads `code_eval` from the hub when it is imported and runs programs in forks of the evaluating process.
Here prompt, decoding, stop sequences and scoring are the stock task's, version 1.0 (4.0 of the instruct form); a
problem's test calls the program from another process, so that a program cannot fake its pass.

Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.tasks_file import locate
from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.harness import HarnessEvaluation, is_installed, missing_harness, prepare_config
from trace_transfer.evaluation.reading import Reading
from trace_transfer.evaluation.sandbox.programs import Limits, require_isolation, run_programs
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec
from trace_transfer.text_formats import MalformedTextError, json_lines, read_text

if TYPE_CHECKING:
    from datasets import DatasetDict

COLUMNS = ("task_id", "prompt", "entry_point", "test")
# A problem's test, as `programs` runs it: the prompt makes the helpers that a test calls (HumanEval/32, 38 and 50), and
# the function is the program's. The stock task appends test and call to the program.
TEST = "{{prompt}}\n{{entry_point}} = __program__.{{entry_point}}\n{{test}}\ncheck({{entry_point}})"
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

# The official checker gives 3 s by the clock; these are 3 s of processor time, the same on an idle machine and on a
# busy one. It limits neither memory nor files.
LIMITS = Limits(cpu_seconds=3)


def permission_problems(settings: EvaluateSettings) -> list[str]:
    """What keeps programs that the model writes from being run."""
    if settings.allow_code_execution:
        return []
    return [
        "it runs programs that the model writes; give --allow-code-execution (allow_code_execution: true) if that is "
        "what you want. They run in a child process without network and with limits on time, memory and files"
    ]


def prepare_humaneval(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> HarnessEvaluation:
    """HumanEval, whose programs run walled in; raises as `prepare_harness`."""
    if problems := permission_problems(settings):
        raise UserError(f"{spec.label}: " + "; ".join(problems))
    if not is_installed():
        raise UserError(missing_harness([spec.name]))
    require_isolation()
    data = None if spec.data is None else locate(spec.data, reading.directory)
    config = harness_config(data, instruct=spec.template == "chat")
    return prepare_config(spec, config, reading, settings, guarded=True, has_data=True)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k of n samples, drawn without replacement, is one of the c correct ones.

    1 − C(n−c, k) / C(n, k): equation 1 of Chen et al. (2021), an unbiased estimate of pass@k; in whole numbers, so it
    needs no rewriting as a product.

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples of which {c} are correct: expected 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def harness_config(data_file: Path | None = None, *, instruct: bool = False) -> dict[str, Any]:
    """Task configuration for `simple_evaluate(tasks=[…], confirm_run_unsafe_code=True)`: 0-shot, greedy, pass@1.

    Scores are under "pass@1,create_test"; "killed,create_test" is the share of programs that were killed or timed out.
    Give `data_file`, a JSONL with the official columns, to need no hub. `instruct` is the stock `humaneval_instruct`:
    the problem as a question, the answer begun inside a code block (to be used with the model's chat template).

    Raises:
        UserError: the file cannot be read or lacks columns.
    """
    config: dict[str, Any] = {
        "task": "humaneval",
        "dataset_path": "openai/openai_humaneval",
        "unsafe_code": True,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": TEST,
        "metric_list": [{"metric": pass_rates, "aggregation": "mean", "higher_is_better": True, "k": [1]}],
        "generation_kwargs": {"until": list(STOP), "max_gen_toks": 1024, "do_sample": False},
        "repeats": 1,
        "num_fewshot": 0,
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": complete_prompts}]}],
        "metadata": {"version": 1.0},
    }
    if instruct:
        config |= {
            "task": "humaneval_instruct",
            "doc_to_text": (
                "Write a solution to the following problem and make sure that it passes the tests:\n"
                "```python\n{{ prompt }}\n```\n"
            ),
            "gen_prefix": "Here is the completed function:\n```python\n{{ prompt }}\n",
            "filter_list": [
                {"name": "create_test", "filter": [{"function": "custom", "filter_fn": complete_prompts_in_block}]}
            ],
            "metadata": {"version": 4.0},
        }
    if data_file is not None:
        read_records(data_file)  # before a model is loaded
        config |= {"custom_dataset": local_dataset, "dataset_kwargs": {"data_file": str(data_file)}}
    return config


def read_records(data_file: Path) -> list[dict[str, str]]:
    """The records of a JSONL file, the columns that are needed of each.

    Raises:
        UserError: not readable, empty, or lines that are no records; lists them.
    """
    records, problems = [], []
    for number, record in json_lines(read_text(data_file, UserError)):
        if isinstance(record, MalformedTextError):
            problems.append(f"line {number}: not JSON ({record.problem})")
            continue
        columns = record if isinstance(record, dict) else {}
        missing = [column for column in COLUMNS if not isinstance(columns.get(column), str)]
        if missing:
            problems.append(f"line {number}: no text under {', '.join(missing)}")
        elif not _is_python(record["prompt"]):
            problems.append(f"line {number}: the prompt alone is no Python; expected a function with its docstring")
        else:
            records.append({column: record[column] for column in COLUMNS})
    if problems:
        raise UserError(f"{data_file}: expected HumanEval's records, one JSON object a line:\n{listing(problems)}")
    if not records:
        raise UserError(f"{data_file}: no records; expected HumanEval's, one JSON object a line")
    return records


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def local_dataset(data_file: str, **_metadata: Any) -> DatasetDict:
    """What the harness calls in place of the hub; `_metadata` is its task's, which it passes along."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(read_records(Path(data_file)))})


def pass_rates(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """Run each problem's programs against its test: pass@k as `code_eval` has it, and the share that was killed.

    `references` are tests as of `TEST`, `predictions` the programs of each. A k of which there are too few programs is
    left out.

    Raises:
        IsolationError: programs cannot be run safely here.
    """
    counts: list[tuple[int, int]] = []
    num_killed = 0
    for test, programs in zip(references, predictions, strict=True):
        outcomes = run_programs(programs, test, LIMITS)
        counts.append((len(outcomes), sum(outcome.passed for outcome in outcomes)))
        num_killed += sum(outcome.status in ("killed", "timed out") for outcome in outcomes)
    rates = {
        f"pass@{size}": sum(pass_at_k(n, c, size) for n, c in counts) / len(counts)
        for size in k
        if all(n >= size for n, _ in counts)
    }
    return rates | {"killed": num_killed / sum(n for n, _ in counts)}


def complete_prompts(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Prompt and completion make the program. The names of the arguments are the harness's."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def complete_prompts_in_block(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """As `complete_prompts`, the completion up to the end of its code block."""
    return complete_prompts([[answer.partition("```")[0] for answer in answers] for answers in resps], docs)
