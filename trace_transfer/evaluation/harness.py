"""Tasks of lm-evaluation-harness, which is imported inside functions alone.

A stock task keeps its prompts, filters and metrics; what changes is where its data come from, how many examples are
shown and how long answers may be. Prompts are read by the harness' own model class, as a call by hand reads them.
"""

from __future__ import annotations

import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trace_transfer.data.encoding import template_of
from trace_transfer.data.records import Message, read_rows, records_sha256
from trace_transfer.data.rendering import ChatTemplate, RenderingError
from trace_transfer.data.tasks_file import TaskError, locate
from trace_transfer.errors import NumericalError, UserError, first_line, suggestion
from trace_transfer.evaluation.backends import Backend
from trace_transfer.evaluation.outcome import EvaluationError, Outcome, Prepared, Reading, Sample
from trace_transfer.evaluation.records import Member
from trace_transfer.evaluation.suite_file import SHOTS, EvaluationSpec, is_yaml
from trace_transfer.models.sources import hub_silence

BOOTSTRAP = 1000  # draws, for metrics that are no mean
_NAME = re.compile(r"^(?:task|group):[ \t]*([\"']?)([^\s\"'#\[]+)\1[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class _Tasks:
    """A task of the harness, or all of a group; `groups`: the group first, then those within it."""

    spec: EvaluationSpec
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    metric: str
    filter: str
    limit: int | None
    num_examples: int

    def run(self, backend: Backend, advance: Callable[[], None]) -> Outcome:
        """What `lm_eval.simple_evaluate` does with a task, without its look at the machine, which takes seconds."""
        try:
            found = self._evaluate(backend, advance)
        except (UserError, NumericalError):
            raise
        except Exception as error:  # the harness and its metrics raise many kinds
            raise EvaluationError(f"{self.spec.label}: lm-evaluation-harness failed: {first_line(error)}") from error
        (first, *smaller), results = [*self.groups, *self.tasks], {**found["results"], **found.get("groups", {})}
        value, stderr = self._score(results[first])
        logged = [(name, one) for name in self.tasks for one in found["samples"][name] if one["filter"] == self.filter]
        samples = tuple(self._sample(name, one) for name, one in logged)
        members = [Member(name=one, value=score[0], stderr=score[1], num_examples=results[one]["sample_len"])
                   for one in smaller if self.groups and (score := self._score(results[one]))]  # fmt: skip
        killed = sum(bool(sample.more.get("killed")) for sample in samples)
        return Outcome(value, stderr, samples, killed, tuple(members) or None)

    def _score(self, results: Mapping[str, Any]) -> tuple[float, float | None]:
        if (value := results.get(f"{self.metric},{self.filter}")) is None:
            raise EvaluationError(f"{self.spec.label}: has no '{self.metric}' of filter '{self.filter}'")
        stderr = results.get(f"{self.metric}_stderr,{self.filter}")
        return float(value), float(stderr) if isinstance(stderr, (int, float)) else None

    def _evaluate(self, backend: Backend, advance: Callable[[], None]) -> Any:
        from lm_eval.evaluator import evaluate

        told, settings = _Progress(advance, self.num_examples), backend.settings
        chat = self.spec.template == "chat"
        with _quiet(), _seeded(settings.seed), backend.harness(chat=chat) as lm:
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=settings.seed)
            lm.set_cache_hook(told)
            found = evaluate(
                lm, {"tasks": self.tasks, "groups": self.groups}, limit=self.limit,
                bootstrap_iters=BOOTSTRAP, log_samples=True, system_instruction=self.spec.system,
                apply_chat_template=chat, fewshot_as_multiturn=True,
                confirm_run_unsafe_code=settings.allow_code_execution,
            )  # fmt: skip
        for _ in range(told.left):  # documents whose choices were scored, several to each
            advance()
        return found

    def _sample(self, name: str, logged: Mapping[str, Any]) -> Sample:
        value = logged.get(self.metric)
        number = float(value) if isinstance(value, (int, float)) else float("nan")
        arguments = list(logged["arguments"])
        writes = self.tasks[name].OUTPUT_TYPE == "generate_until"
        more: dict[str, Any] = {"task": name} if self.groups else {}
        more["filtered"] = logged["filtered_resps"][0 if writes else slice(None)]
        if not writes:
            more["continuations"] = [one[1] for one in arguments if len(one) > 1]
        more |= {"killed": logged["killed"]} if "killed" in logged else {}
        right = bool(number) if number in (0.0, 1.0) else None
        output = str(logged["resps"][0][0]) if writes else None
        return Sample(logged["doc_id"], str(arguments[0][0]), output, str(logged["target"]), number, right, more)


@dataclass
class _Progress:
    """A bar lives on what the harness tells its cache of each answer."""

    advance: Callable[[], None]
    left: int

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        if kind == "generate_until" and self.left:
            self.left -= 1
            self.advance()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers as `simple_evaluate` seeds them, but for what `seed` is for; the caller's go on as they were."""
    import numpy as np
    import torch

    with torch.random.fork_rng(), ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' log, warnings and bars; what goes wrong is raised."""
    import lm_eval.api.task
    import lm_eval.models.huggingface

    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for module in (lm_eval.api.task, lm_eval.models.huggingface):
            bar = module.tqdm
            silent = lambda *given, _bar=bar, **options: _bar(*given, **{**options, "disable": True})  # noqa: E731
            stack.enter_context(patch.object(module, "tqdm", silent))
        yield


def missing_harness(names: Sequence[str]) -> str:
    return (
        f"{', '.join(names)}: {'need' if len(names) > 1 else 'needs'} lm-evaluation-harness, which is not installed: "
        "pip install 'lm-eval>=0.4.9,<0.5' (in a copy of the repository: pip install '.[evaluation]'). Evaluations of "
        "your own data do not, in a file given with --suite FILE"
    )


# ---- tasks


def prepare_harness(spec: EvaluationSpec, reading: Reading) -> Prepared:
    """A stock task or group, or one described by a YAML file of the harness' kind, with its data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    name = spec.task or spec.name
    path = locate(name, reading.directory) if is_yaml(name) else stock_file(name)
    if path is None:
        near = ", ".join(get_close_matches(name, list(_named_files()), 5, cutoff=0.5)) or "nothing"
        raise TaskError(f"{spec.label}: no task '{name}' in lm-evaluation-harness; near: {near}")
    try:
        config = load_yaml(path, resolve_func=False)  # imports nothing: some tasks fetch things when they are imported
        if "class" in config:
            raise TaskError(f"{spec.label}: '{name}' is a program of the harness, not a description; not supported")
        if "group" not in config and not config.get("unsafe_code"):
            config = {"task": name, **load_yaml(path, resolve_func=True)}
    except UserError:
        raise
    except Exception as error:  # yaml's, and what includes and functions lead to
        raise TaskError(f"{spec.label}: the task '{name}' cannot be read: {first_line(error)}") from error
    if "group" in config:
        return _prepare_group(spec, path, str(config["group"]), reading)
    return prepare_config(spec, config, reading)


def stock_file(name: str) -> Path | None:
    """The file of a task or group that comes with the harness."""
    from lm_eval.tasks import TaskManager

    if (found := _named_files().get(name)) is not None:
        return found
    with _quiet():  # names that come from an included file: ten seconds
        entry = TaskManager().task_index.get(name)
    return None if entry is None else entry.yaml_path


@lru_cache(maxsize=1)
def _named_files() -> Mapping[str, Path]:
    """Name → file of all tasks and groups that name themselves in their own file: two seconds, once."""
    import lm_eval

    found: dict[str, Path] = {}
    for file in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        for match in _NAME.finditer(file.read_text("utf-8")):
            found.setdefault(match[2], file)
    return found


def prepare_config(
    spec: EvaluationSpec, config: Mapping[str, Any], reading: Reading, *, guarded: bool = False
) -> Prepared:
    """From the harness' configuration of a task; `guarded`: the model's programs are walled in."""
    from lm_eval.api.task import ConfigurableTask

    if config.get("unsafe_code") and not guarded:
        raise _unguarded(spec, config.get("task"))
    changed = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    if spec.shots is not None:
        changed["num_fewshot"] = spec.shots
    if changed.get("output_type", "generate_until") == "generate_until":
        changed["generation_kwargs"] = _generation(spec, changed.get("generation_kwargs"), reading)
    try:
        _set_data(changed, spec, reading)
        with _quiet():
            task = ConfigurableTask(config=changed)
            len(task.eval_docs)
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and the task's own functions raise many kinds
        if spec.data is None:
            raise _from_hub(spec, changed, first_line(error)) from error
        raise TaskError(
            f"{spec.label}: the task '{config.get('task')}' cannot use these records: {first_line(error)}. Expected "
            f"are the columns of {config.get('dataset_path')}, each with values of one kind"
        ) from error
    # The first that the task lists; kind humaneval lists a function whose results have other names.
    metrics = [spec.first_metric] if spec.kind == "humaneval" else list(task.aggregation())
    filters = [one["name"] for one in changed.get("filter_list") or ()] or ["none"]
    return _prepared(spec, {changed["task"]: task}, {}, metrics, filters, reading)


def _prepare_group(spec: EvaluationSpec, path: Path, name: str, reading: Reading) -> Prepared:
    """All tasks of a group, as the harness builds them from their own data."""
    from lm_eval.tasks import TaskManager

    if spec.data or spec.shots_data:
        raise TaskError(
            f"{spec.label}: '{name}' is a group, whose tasks have data sets of their own; leave data: out "
            "(HF_HUB_OFFLINE=1 reads the hub's cache), or list its tasks"
        )
    try:
        with _quiet():
            found = TaskManager(include_path=path.parent if is_yaml(spec.task or "") else None).load(name)
            tasks, group = found["tasks"], found["groups"][name]
            if unsafe := [one for one, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]:
                raise _unguarded(spec, ", ".join(unsafe))
            for task in tasks.values():
                if spec.shots is not None:
                    task.set_config(key="num_fewshot", value=spec.shots)
                if task.OUTPUT_TYPE == "generate_until":
                    given = _generation(spec, task.config.generation_kwargs, reading)
                    task.set_config(key="generation_kwargs", value=given)
    except UserError:
        raise
    except Exception as error:  # as in `prepare_config`
        raise TaskError(f"{spec.label}: the group '{name}' cannot be made of its data: {first_line(error)}") from error
    if not group.aggregate_metric_list:
        raise TaskError(f"{spec.label}: the group '{name}' has no score of its own; list its tasks: {', '.join(tasks)}")
    metrics = [one.metric for one in group.aggregate_metric_list]
    own = [name for one in group.aggregate_metric_list for name in one.filter_list or ()]
    some = [one["name"] for task in tasks.values() for one in task.config.filter_list or ()]
    return _prepared(spec, tasks, {name: group, **found["groups"]}, metrics, own or some or ["none"], reading)


def _prepared(
    spec: EvaluationSpec, tasks: Mapping[str, Any], groups: Mapping[str, Any], metrics: Sequence[str],
    filters: Sequence[str], reading: Reading,
) -> Prepared:  # fmt: skip
    """With the metric and the filter that are asked for, or the first of each."""
    filters = list(dict.fromkeys(filters))
    for key, asked, known in (("metric", spec.metric, metrics), ("filter", spec.filter, filters)):
        if asked is not None and asked not in known:
            raise TaskError(f"{spec.label}: {key}: unknown '{asked}', {suggestion(asked, known, 'the task has')}")
    metric, own_filter = spec.metric or metrics[0], spec.filter or filters[0]
    limit, rows, num_examples = reading.settings.limit_of(spec.limit), [], 0
    for task in tasks.values():
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        num_examples += count
        rows += [*islice(task.eval_docs, count), *(task.fewshot_docs() or () if task.config.num_fewshot else ())]
    first, *others = tasks.values()
    same = {one.config.num_fewshot for one in others} <= {first.config.num_fewshot}
    writes = first.OUTPUT_TYPE == "generate_until" and not groups
    told = {
        "protocol": "lm-evaluation-harness", "lm_eval": version("lm_eval"), "task": next(iter({**groups, **tasks})),
        "shots": first.config.num_fewshot if same else None, "limit": limit, "filter": own_filter,
        "template": "chat" if spec.template == "chat" else "none",
        "max_new_tokens": first.config.generation_kwargs.get("max_gen_toks", 256) if writes else None,
    }  # fmt: skip
    higher = bool(first.higher_is_better().get(metric, True))
    run = _Tasks(spec, tasks, groups, metric, own_filter, limit, num_examples).run
    return Prepared(spec, metric, higher, num_examples, records_sha256(rows), told, run, num_examples)


def _generation(spec: EvaluationSpec, given: Any, reading: Reading) -> dict[str, Any]:
    found = dict(given or {"until": ["\n\n"], "do_sample": False})
    if spec.template == "chat":  # the harness itself stops at the end of text alone
        until = found.get("until") or []
        until, end = [until] if isinstance(until, str) else list(until), _turn_end(spec, reading.tokenizer)
        found["until"] = until if end in ("", *until) else [*until, end]
    if most := spec.max_new_tokens or reading.settings.max_new_tokens:
        found["max_gen_toks"] = most
    reading.require_room(spec, found.get("max_gen_toks", 256))
    return found


def _turn_end(spec: EvaluationSpec, tokenizer: Any) -> str:
    """The text with which the chat template ends an answer; a TaskError if there is none, or if it does not take the
    system message that is asked for (which the harness would leave out)."""
    template_of(spec, tokenizer)
    system = () if spec.system is None else (Message("system", spec.system),)
    try:
        return ChatTemplate(tokenizer, {}).prompt([*system, Message("user", "?")]).end
    except RenderingError as error:
        raise TaskError(f"{spec.label}: template: chat: {error}") from error


def _unguarded(spec: EvaluationSpec, name: Any) -> TaskError:
    return TaskError(
        f"{spec.label}: the task '{name}' runs programs that the model writes, with nothing around them; only kind: "
        "humaneval runs them walled in"
    )


# ---- data


def _set_data(config: dict[str, Any], spec: EvaluationSpec, reading: Reading) -> None:
    """Local files in place of the task's data set: one split to be scored, and one that examples are drawn from."""
    if spec.data is None:
        if spec.shots_data is not None:
            raise TaskError(f"{spec.label}: shots_data: without data: the task's own data set has its own examples")
        # Asked once: its client would try a dead connection for half a minute, for each data set.
        if silence := hub_silence(str(config.get("dataset_path")), dataset=True):
            raise _from_hub(spec, config, f"{silence}; HF_HUB_OFFLINE=1 reads its cache")
        return
    scored = config.get("test_split") or config.get("validation_split") or "test"
    splits = {scored: read_rows(spec, reading.directory).dataset()}
    own = config.get("fewshot_config") or {}
    left_out = ["split"]
    config |= dict.fromkeys(("training_split", "validation_split", "fewshot_split", "dataset_kwargs"))
    if spec.shots_data is not None:
        name = "train" if scored != "train" else "shots"
        splits[name] = read_rows(spec.model_copy(update={"data": spec.shots_data}), reading.directory).dataset()
        config |= {"training_split": name, "fewshot_split": name}
        left_out.append("samples")
    elif config.get("num_fewshot") and not own.get("samples"):
        raise TaskError(
            f"{spec.label}: {config['num_fewshot']} examples are to be shown, and its data file has only what is "
            f"scored; give a file of examples with shots_data: (--data {spec.name}{SHOTS}=FILE), or shots: 0"
        )
    kept = {key: value for key, value in own.items() if key not in left_out}
    config |= {"test_split": scored, "fewshot_config": kept or None, "custom_dataset": lambda **_: splits}


def _from_hub(spec: EvaluationSpec, config: Mapping[str, Any], why: str) -> TaskError:
    source = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
    return TaskError(
        f"{spec.label}: its data set {source} could not be had from the hub ({why}). Check your connection, or give a "
        f"local file with the same columns: --data {spec.name}=FILE"
    )
