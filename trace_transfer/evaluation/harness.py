"""The door to lm-evaluation-harness: the one module that imports it, and only inside functions.

A stock task keeps its prompts, filters and metrics; what changes is where its data come from, how many examples are
shown and how long answers may be. Prompts are read by the harness' own model class, as a call by hand reads them.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.encoding import template_of
from trace_transfer.data.reading import hub_silence, read_rows
from trace_transfer.data.records import Message
from trace_transfer.data.rendering import ChatTemplate, RenderingError, with_fixed_date
from trace_transfer.data.tasks_file import TaskError, locate, suggestion
from trace_transfer.errors import NumericalError, UserError, first_line
from trace_transfer.evaluation.batching import finite_logits
from trace_transfer.evaluation.outcome import EvaluationError, Outcome, Prepared, Sample, records_sha256
from trace_transfer.evaluation.reading import Reading, require_room
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import SHOTS, EvaluationSpec

if TYPE_CHECKING:
    from datasets import Dataset

PACKAGE = "lm-eval>=0.4.9,<0.5"  # as in pyproject.toml
BOOTSTRAP = 1000  # draws, for metrics that are no mean
_NAME = re.compile(r"^(?:task|group):[ \t]*([\"']?)([^\s\"'#\[]+)\1[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class HarnessEvaluation(Prepared):
    """A task of the harness, with its data read.

    Attributes:
        task: the harness' own object; its requests are built anew by each run.
        filter: whose results count.
    """

    task: Any
    filter: str

    def run(self, model: Any, tokenizer: Any, settings: EvaluateSettings, advance: Callable[[], None]) -> Outcome:
        """What `lm_eval.simple_evaluate` does with a task, without its look at the machine, which takes seconds.

        Raises:
            EvaluationError: the harness failed, or gave no such metric.
        """
        try:
            found = self._evaluate(model, tokenizer, settings, advance)
        except (UserError, NumericalError):
            raise
        except Exception as error:  # the harness and its metrics raise many kinds
            raise EvaluationError(f"{self.spec.label}: lm-evaluation-harness failed: {first_line(error)}") from error
        name = self.task.task_name
        results, logged = found["results"][name], found["samples"][name]
        key = f"{self.metric},{self.filter}"
        if key not in results:
            known = [one.partition(",")[0] for one in results if "," in one and "_stderr," not in one]
            raise EvaluationError(f"{self.spec.label}: no metric '{self.metric}', {suggestion(self.metric, known)}")
        stderr = results.get(f"{self.metric}_stderr,{self.filter}")
        samples = tuple(self._sample(one) for one in logged if one["filter"] == self.filter)
        return Outcome(
            float(results[key]), float(stderr) if isinstance(stderr, (int, float)) else None, samples,
            sum(bool(sample.more.get("killed")) for sample in samples),
        )  # fmt: skip

    def _evaluate(
        self, model: Any, tokenizer: Any, settings: EvaluateSettings, advance: Callable[[], None]
    ) -> Any:  # fmt: skip
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        class FiniteLM(HFLM):  # type: ignore[misc]  # the harness has no types
            """Of logits that are not finite the harness would make scores."""

            def _model_call(self, *given: Any, **options: Any) -> Any:
                logits_btv = super()._model_call(*given, **options)
                finite_logits(logits_btv, logits_btv)
                return logits_btv

            def _model_generate(self, *given: Any, **options: Any) -> Any:
                return super()._model_generate(*given, **options, logits_processor=[finite_logits])

        told = _Progress(advance, self.num_steps)
        was_training = model.training
        with _quiet(), _seeded(settings.seed):
            self.task.set_fewshot_seed(seed=settings.seed)
            own, chat = copy.deepcopy(tokenizer), self.spec.template == "chat"
            if chat:  # the same day as in training, and no beginning of text but the template's
                own.chat_template = with_fixed_date(own.get_chat_template())
            lm = FiniteLM(
                pretrained=model, tokenizer=own, backend="causal", batch_size=settings.batch_size,
                max_length=settings.max_length, add_bos_token=False if chat else None,
            )  # fmt: skip
            lm.set_cache_hook(told)
            try:
                found = evaluate(
                    lm, {"tasks": {self.task.task_name: self.task}}, limit=self.settings["limit"],
                    bootstrap_iters=BOOTSTRAP, log_samples=True, system_instruction=self.spec.system,
                    apply_chat_template=chat, fewshot_as_multiturn=True,
                    confirm_run_unsafe_code=settings.allow_code_execution,
                )  # fmt: skip
            finally:
                model.train(was_training)
        told.finish()
        return found

    def _sample(self, logged: Mapping[str, Any]) -> Sample:
        """A document as the harness logged it; of likelihoods the requests and what came out of them."""
        value = logged.get(self.metric)
        number = float(value) if isinstance(value, (int, float)) else float("nan")
        arguments = list(logged["arguments"])
        writes = self.task.OUTPUT_TYPE == "generate_until"
        more = {"filtered": logged["filtered_resps"][0 if writes else slice(None)]}
        if not writes:
            more["continuations"] = [one[1] for one in arguments if len(one) > 1]
        told = {key: logged[key] for key in ("killed", "outcome", "error") if key in logged}
        right = bool(number) if number in (0.0, 1.0) else None
        output = str(logged["resps"][0][0]) if writes else None
        return Sample(
            logged["doc_id"], str(arguments[0][0]), output, str(logged["target"]), number, right, {**more, **told}
        )  # fmt: skip


class _Progress:
    """What the harness tells of each answer is meant for a cache; a bar can live on it."""

    def __init__(self, advance: Callable[[], None], num_steps: int) -> None:
        self.advance, self.left = advance, num_steps

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        if kind == "generate_until" and self.left:
            self.left -= 1
            self.advance()

    def finish(self) -> None:
        """The rest: documents whose choices were scored, several to each."""
        for _ in range(self.left):
            self.advance()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers as `simple_evaluate` seeds them, but for what `seed` is for; the caller's go on as they were."""
    import numpy as np
    import torch

    before, before_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def is_installed() -> bool:
    """Whether there is a harness; nothing of it is imported."""
    return importlib.util.find_spec("lm_eval") is not None


def missing_harness(names: Sequence[str]) -> str:
    """What to say to evaluations that need the harness where there is none."""
    return (
        f"{', '.join(names)}: {'need' if len(names) > 1 else 'needs'} lm-evaluation-harness, which is not installed: "
        f"pip install '{PACKAGE}' (in a copy of the repository: pip install '.[evaluation]'). Evaluations of your own "
        "data do not, in a file given with --suite FILE"
    )


def permission_problems(settings: EvaluateSettings) -> list[str]:
    """What keeps programs that the model writes from being run."""
    if settings.allow_code_execution:
        return []
    return [
        "it runs programs that the model writes; give --allow-code-execution (allow_code_execution: true) if that is "
        "what you want. They run in a child process without network and with limits on time, memory and files"
    ]


def prepare_harness(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> HarnessEvaluation:
    """A stock task, or one described by a YAML file of the harness' kind, with its data.

    Raises:
        UserError: no harness, no such task or metric or filter, data that are not there, or that would have to come
            from the hub and do not, code of the model that would be run unguarded.
    """
    if not is_installed():
        raise UserError(missing_harness([spec.name]))
    config = task_config(spec, reading.directory)
    return prepare_config(spec, config, reading, settings)


def prepare_humaneval(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> HarnessEvaluation:
    """HumanEval, whose programs run walled in; raises as `prepare_harness`."""
    if problems := permission_problems(settings):
        raise UserError(f"{spec.label}: " + "; ".join(problems))
    if not is_installed():
        raise UserError(missing_harness([spec.name]))
    from trace_transfer.evaluation.humaneval import harness_config
    from trace_transfer.evaluation.sandbox.programs import require_isolation

    require_isolation()
    data = None if spec.data is None else locate(spec.data, reading.directory)
    config = harness_config(data, instruct=spec.template == "chat")
    return prepare_config(spec, config, reading, settings, guarded=True, has_data=True)


def prepare_config(
    spec: EvaluationSpec, config: Mapping[str, Any], reading: Reading, settings: EvaluateSettings, *,
    guarded: bool = False, has_data: bool = False,
) -> HarnessEvaluation:  # fmt: skip
    """From the harness' configuration of a task.

    Args:
        guarded: code of the model is run, but walled in.
        has_data: the configuration says where the data are; `data:` of the evaluation is known to it.
    """
    from lm_eval.api.task import ConfigurableTask

    if config.get("unsafe_code") and not guarded:
        raise TaskError(
            f"{spec.label}: the task '{config.get('task')}' runs programs that the model writes, with nothing "
            "around them; only kind: humaneval runs them walled in"
        )
    changed = dict(config)
    for key in ("tag", "group", "task_list"):
        changed.pop(key, None)
    _set_shots(changed, spec)
    if not has_data:
        _set_data(changed, spec, reading)
    elif spec.data is None:
        _require_hub(spec, changed)
    most = spec.max_new_tokens or settings.max_new_tokens
    writes = changed.get("output_type", "generate_until") == "generate_until"
    if writes:
        given = dict(changed.get("generation_kwargs") or {"until": ["\n\n"], "do_sample": False})
        if spec.template == "chat":
            given = _ended(given, _turn_end(spec, reading.tokenizer))
        changed["generation_kwargs"] = given if most is None else {**given, "max_gen_toks": most}
        require_room(spec, reading.longest(settings), changed["generation_kwargs"].get("max_gen_toks", 256))
    try:
        with _quiet():
            task = ConfigurableTask(config=changed)
            docs = task.eval_docs
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and the task's own functions raise many kinds
        raise TaskError(_unusable(spec, changed, error)) from error
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    metric, own_filter = _metric(spec, task, changed)
    limit = settings.limit_of(spec.limit)
    num_examples = min(len(docs), limit or len(docs))
    shots = task.config.num_fewshot
    told = {
        "protocol": "lm-evaluation-harness", "lm_eval": version("lm_eval"), "task": changed["task"], "shots": shots,
        "limit": limit, "filter": own_filter, "template": "chat" if spec.template == "chat" else "none",
        "max_new_tokens": changed["generation_kwargs"].get("max_gen_toks", 256) if writes else None,
    }  # fmt: skip
    shown = list(task.fewshot_docs() or ()) if shots else []
    rows = [*islice(docs, num_examples), *shown]
    higher = task.higher_is_better().get(metric, True)
    return HarnessEvaluation(
        spec, metric, bool(higher), num_examples, records_sha256(rows), told, task, own_filter
    )  # fmt: skip


def _set_shots(config: dict[str, Any], spec: EvaluationSpec) -> None:
    """As many examples as the evaluation says, if it does."""
    if spec.shots is not None:
        config["num_fewshot"] = spec.shots


def _set_data(config: dict[str, Any], spec: EvaluationSpec, reading: Reading) -> None:
    """Local files in place of the task's data set: one split to be scored, and one that examples are drawn from.

    Raises:
        TaskError: examples are to be shown and there is nothing to draw them from; a file cannot be read; there is no
            file, and the hub cannot be reached.
    """
    if spec.data is None:
        if spec.shots_data is not None:
            raise TaskError(f"{spec.label}: shots_data: without data: the task's own data set has its own examples")
        _require_hub(spec, config)
        return
    scored = config.get("test_split") or config.get("validation_split") or "test"
    splits = {scored: _table(spec, reading)}
    own = config.get("fewshot_config") or {}
    config.update(
        training_split=None, validation_split=None, test_split=scored, fewshot_split=None, dataset_kwargs=None
    )
    config["fewshot_config"] = {key: value for key, value in own.items() if key != "split"} or None
    if spec.shots_data is not None:
        shots = spec.model_copy(update={"data": spec.shots_data})
        name = "train" if scored != "train" else "shots"
        splits[name] = _table(shots, reading)
        config.update(training_split=name, fewshot_split=name)
        config["fewshot_config"] = {key: value for key, value in own.items() if key not in ("split", "samples")} or None
    elif config.get("num_fewshot") and not own.get("samples"):
        raise TaskError(
            f"{spec.label}: {config['num_fewshot']} examples are to be shown, and its data file has only what is "
            f"scored; give a file of examples with shots_data: (--data {spec.name}{SHOTS}=FILE), or shots: 0"
        )
    config["custom_dataset"] = lambda **_: splits


def _table(spec: EvaluationSpec, reading: Reading) -> Dataset:
    """The records as the harness wants them: each column of one kind."""
    rows = read_rows(spec, reading.directory)
    try:
        return rows.dataset()
    except Exception as error:  # pyarrow raises many kinds
        raise TaskError(
            f"{spec.label}: a column has values of several kinds, which the harness cannot use: {first_line(error)}"
        ) from error


def _require_hub(spec: EvaluationSpec, config: Mapping[str, Any]) -> None:
    """Ask the hub once: its client would try a dead connection for half a minute, for each data set.

    Raises:
        TaskError: it does not answer.
    """
    if silence := hub_silence(str(config.get("dataset_path"))):
        raise TaskError(_from_hub(spec, config, f"{silence}; HF_HUB_OFFLINE=1 reads its cache"))


def _from_hub(spec: EvaluationSpec, config: Mapping[str, Any], why: str) -> str:
    source = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
    return (
        f"{spec.label}: its data set {source} could not be had from the hub ({why}). Check your connection, or give a "
        f"local file with the same columns: --data {spec.name}=FILE"
    )


def _unusable(spec: EvaluationSpec, config: Mapping[str, Any], error: Exception) -> str:
    """What to say when a task cannot be made of its data."""
    if spec.data is None:
        return _from_hub(spec, config, first_line(error))
    missing = f": its records lack the column {error}" if isinstance(error, KeyError) else f": {first_line(error)}"
    return (
        f"{spec.label}: the task '{config.get('task')}' cannot use these records{missing}. Expected are the columns of "
        f"{config.get('dataset_path')}"
    )


def _turn_end(spec: EvaluationSpec, tokenizer: Any) -> str:
    """The text with which the chat template ends an answer.

    Raises:
        TaskError: there is no template, or it does not take a question, or not the system message that is asked for
            (which the harness would leave out).
    """
    template_of(spec, tokenizer)
    system = () if spec.system is None else (Message("system", spec.system),)
    try:
        return ChatTemplate(tokenizer, {}).prompt([*system, Message("user", "?")]).end
    except RenderingError as error:
        raise TaskError(f"{spec.label}: template: chat: {error}") from error


def _ended(given: Mapping[str, Any], end: str) -> dict[str, Any]:
    """Generation that stops at one more text: the harness itself stops at the end of text alone."""
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    return {**given, "until": until if end in ("", *until) else [*until, end]}


def task_config(spec: EvaluationSpec, directory: Path) -> dict[str, Any]:
    """The configuration of a task by its name, or in a file of the user's, with all that it includes.

    Raises:
        TaskError: unknown, a group of tasks, or a task that is a program.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    name = spec.task or spec.name
    path = locate(name, directory) if name.endswith((".yaml", ".yml")) else stock_file(name)
    if path is None:
        raise TaskError(
            f"{spec.label}: no task '{name}' in lm-evaluation-harness; {suggestion(name, _near(name), 'near')}"
        )
    try:
        bare = load_yaml(path, resolve_func=False)  # imports nothing: some tasks fetch things when they are imported
        if "group" in bare:
            tasks = [one if isinstance(one, str) else str(one.get("task")) for one in bare.get("task", ())]
            raise TaskError(f"{spec.label}: '{name}' is a group; list its tasks: {', '.join(tasks)}")
        if "class" in bare:
            raise TaskError(f"{spec.label}: '{name}' is a program of the harness, not a description; not supported")
        return bare if bare.get("unsafe_code") else {"task": name, **load_yaml(path, resolve_func=True)}
    except TaskError:
        raise
    except Exception as error:  # what the functions of a task raise when they are imported
        raise TaskError(f"{spec.label}: the task '{name}' cannot be read: {first_line(error)}") from error


def stock_file(name: str) -> Path | None:
    """The file of a task or group that comes with the harness."""
    if (found := _named_files().get(name)) is not None:
        return found
    from lm_eval.tasks import TaskManager  # names that come from an included file: ten seconds

    with _quiet():
        entry = TaskManager().task_index.get(name)
    return None if entry is None else entry.yaml_path


@lru_cache(maxsize=1)
def _named_files() -> Mapping[str, Path]:
    """Name → file of all tasks and groups that name themselves in their own file: two seconds, once."""
    import lm_eval

    root = Path(lm_eval.__file__).parent / "tasks"
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*.yaml")):
        for match in _NAME.finditer(file.read_text("utf-8")):
            found.setdefault(match[2], file)
    return found


def _near(name: str) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, list(_named_files()), 5, cutoff=0.5) or ["(nothing)"]


def _metric(spec: EvaluationSpec, task: Any, config: Mapping[str, Any]) -> tuple[str, str]:
    """The metric and the filter that are asked for, or the first of each.

    Raises:
        TaskError: the task has no such metric or filter.
    """
    # The first that the task lists; kind humaneval lists a function whose results have other names.
    known = [spec.first_metric] if spec.kind == "humaneval" else list(task.aggregation())
    filters = [one["name"] for one in config.get("filter_list") or ()] or ["none"]
    problems = []
    if spec.metric is not None and spec.metric not in known:
        problems.append(f"metric: unknown '{spec.metric}', {suggestion(spec.metric, known, 'the task has')}")
    if spec.filter is not None and spec.filter not in filters:
        problems.append(f"filter: unknown '{spec.filter}', {suggestion(spec.filter, filters, 'the task has')}")
    if problems:
        raise TaskError(f"{spec.label}: " + "; ".join(problems))
    return spec.metric or known[0], spec.filter or filters[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' log, warnings and bars; what goes wrong is raised."""
    import lm_eval.api.task
    import lm_eval.models.huggingface

    logger, modules = logging.getLogger("lm_eval"), (lm_eval.api.task, lm_eval.models.huggingface)
    level, bars = logger.level, [module.tqdm for module in modules]
    logger.setLevel(logging.CRITICAL)
    for module, bar in zip(modules, bars, strict=True):
        module.tqdm = lambda *given, _bar=bar, **options: _bar(*given, **{**options, "disable": True})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
