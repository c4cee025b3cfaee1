"""Evaluations of a suite → what can be run, with their data read and checked and no weight loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.exact_match import prepare_exact_match
from trace_transfer.evaluation.harness import (
    is_installed,
    missing_harness,
    permission_problems,
    prepare_harness,
    prepare_humaneval,
)
from trace_transfer.evaluation.losses import prepare_loss
from trace_transfer.evaluation.multiple_choice import prepare_choices
from trace_transfer.evaluation.outcome import Prepared
from trace_transfer.evaluation.records import Reading
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec, Suite

KINDS: dict[str, Callable[[EvaluationSpec, Reading, EvaluateSettings], Prepared]] = {
    "loss": prepare_loss,
    "exact-match": prepare_exact_match,
    "multiple-choice": prepare_choices,
    "harness": prepare_harness,
    "humaneval": prepare_humaneval,
}
NEED_HARNESS = ("harness", "humaneval")


def prepare_suite(suite: Suite, settings: EvaluateSettings, tokenizer: Any, config: Any) -> tuple[Prepared, ...]:
    """Read the data of all evaluations for the model of a tokenizer and a config.

    Raises:
        UserError: whatever would stop one of them: data, columns, tasks, metrics, templates, permission; of all
            evaluations at once.
    """
    reading = Reading.of(suite.directory, tokenizer, config)
    prepared, problems = [], []
    without = [spec.name for spec in suite.specs if spec.kind in NEED_HARNESS] if not is_installed() else []
    if without:
        problems.append(missing_harness(without))
    for spec in suite.specs:
        if spec.name in without:
            if spec.kind == "humaneval":
                problems += [f"{spec.label}: {problem}" for problem in permission_problems(settings)]
            continue
        try:
            prepared.append(KINDS[spec.kind](spec, reading, settings))
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        one = len(suite.specs) == len(problems) == 1
        raise UserError(problems[0] if one else f"{suite.label}: cannot be run:\n" + listing(problems))
    return tuple(prepared)
