"""What runs the model of an evaluation: transformers in this process, or an engine that lm-evaluation-harness drives.

`ModelInMemory` (`hf`) is read exactly as training reads it. `Engine` (`vllm`, `sglang`) is given the same token ids
through the harness' own class for it; it reads a directory of safetensors, which is written first where the model is a
GGUF file or has patches.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from trace_transfer.data.examples import IGNORED, Example
from trace_transfer.data.rendering import with_fixed_date
from trace_transfer.errors import UserError, first_line
from trace_transfer.evaluation.batching import AnswerScores, Ending, finite_logits, generate, score_answers
from trace_transfer.evaluation.settings import SPREADING, EvaluateSettings
from trace_transfer.settings import unknown_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Arguments of the harness' classes that are set here, or that would read another model or run its code.
_OURS = frozenset({
    "self", "kwargs", "pretrained", "tokenizer", "tokenizer_path", "backend", "batch_size", "max_length",
    "max_model_len", "context_length", "device", "dtype", "seed", "random_seed", "revision", "tokenizer_revision",
    "subfolder", "trust_remote_code", "use_fast_tokenizer", "peft", "delta", "lora_local_path", "autogptq",
    "gptqmodel", "gguf_file", "tp_plan", "model_path", "load_format", "max_cpu_memory", "offload_folder",
})  # fmt: skip


class Backend(ABC):
    """A model with its weights, ready to be asked."""

    settings: EvaluateSettings
    tokenizer: Any

    @abstractmethod
    def score(self, examples: Sequence[Example], advance: Callable[[], None]) -> list[AnswerScores]:
        """Of the supervised tokens of each example; `advance` is called once for each."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[], None]) -> list[str]:
        """The likeliest answer after each prompt, without special tokens; texts behind a stop text may follow it."""

    @abstractmethod
    def harness(self, *, chat: bool) -> AbstractContextManager[Any]:
        """As an object of lm-evaluation-harness; with `chat` for prompts in the model's chat template."""


@dataclass(frozen=True)
class ModelInMemory(Backend):
    """A model of transformers, wherever it is and in whatever type."""

    model: PreTrainedModel
    tokenizer: Any
    settings: EvaluateSettings

    def score(self, examples: Sequence[Example], advance: Callable[[], None]) -> list[AnswerScores]:
        return score_answers(self.model, examples, self.settings.examples_at_once, advance)

    def generate(self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[], None]) -> list[str]:
        size = self.settings.examples_at_once
        written = generate(self.model, prompts, ending, batch_size=size, tokenizer=self.tokenizer, advance=advance)
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]

    @contextmanager
    def harness(self, *, chat: bool) -> Iterator[Any]:
        from lm_eval.models.huggingface import HFLM

        class FiniteLM(HFLM):  # type: ignore[misc]  # the harness has no types
            """Of logits that are not finite the harness would make scores."""

            def _model_call(self, *given: Any, **options: Any) -> Any:
                logits_btv = super()._model_call(*given, **options)
                finite_logits(logits_btv, logits_btv)
                return logits_btv

            def _model_generate(self, *given: Any, **options: Any) -> Any:
                return super()._model_generate(*given, **options, logits_processor=[finite_logits])

        tokenizer, arguments = copy.deepcopy(self.tokenizer), dict(self.settings.backend_arguments)
        if chat:  # the same day as in training, and no beginning of text but the template's
            tokenizer.chat_template = with_fixed_date(tokenizer.get_chat_template())
            arguments["add_bos_token"] = False
        was_training = self.model.training
        try:
            yield FiniteLM(
                pretrained=self.model, tokenizer=tokenizer, backend="causal",
                batch_size=self.settings.examples_at_once, max_length=self.settings.max_length,
                **{name: value for name, value in arguments.items() if name not in SPREADING},
            )  # fmt: skip
        finally:
            self.model.train(was_training)


class Engine(Backend):
    """A model that an engine has read from a directory; `lm` is the harness' object for it."""

    def __init__(self, directory: Path, dtype: str, tokenizer: Any, settings: EvaluateSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        # To the harness' class for sglang, `add_bos_token` means what its tokenizer does.
        own = {"random_seed": settings.seed, "add_bos_token": True}
        arguments = {**({"seed": settings.seed} if settings.backend == "vllm" else own), **settings.backend_arguments}
        try:
            self.lm = _harness_class(settings.backend)(
                pretrained=str(directory), dtype=dtype, batch_size=settings.examples_at_once,
                max_model_len=settings.max_length, trust_remote_code=False, **arguments,
            )  # fmt: skip
        except Exception as error:  # engines raise many kinds
            raise UserError(f"--backend {settings.backend} could not load {directory}: {first_line(error)}") from error

    def score(self, examples: Sequence[Example], advance: Callable[[], None]) -> list[AnswerScores]:
        requests, owners = [], []
        for number, example in enumerate(examples):
            # Runs of supervised tokens; nothing says how likely the first token of all is.
            supervised = [False, *(label != IGNORED for label in example.labels[1:]), False]
            edges = [place for place in range(1, len(supervised)) if supervised[place] != supervised[place - 1]]
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                requests.append((None, list(example.input_ids[:start]), list(example.input_ids[start:end])))
                owners.append(number)
        totals, counts = [0.0] * len(examples), [0] * len(examples)
        found = self.lm._loglikelihood_tokens(requests, disable_tqdm=True)
        for number, (_, _, answer), (likelihood, _) in zip(owners, requests, found, strict=True):
            totals[number] -= likelihood
            counts[number] += len(answer)
        for _ in examples:
            advance()
        return [AnswerScores(total, count, None) for total, count in zip(totals, counts, strict=True)]

    def generate(self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[], None]) -> list[str]:
        from lm_eval.api.instance import Instance

        how = {
            "until": list(ending.stop_texts), "max_gen_toks": ending.max_new_tokens, "do_sample": False,
            "temperature": 0.0, "stop_token_ids": sorted(ending.stop_ids), "skip_special_tokens": True,
        }  # fmt: skip
        requests = [Instance("generate_until", {}, (str(number), how), number) for number in range(len(prompts))]
        # The harness' classes take texts and encode them. Ours are encoded: the texts are their numbers.
        with patch.object(
            self.lm, "tok_encode", lambda numbers, **_: [list(prompts[int(number)]) for number in numbers]
        ):
            written: list[str] = self.lm.generate_until(requests, disable_tqdm=True)
        for _ in prompts:
            advance()
        return written

    @contextmanager
    def harness(self, *, chat: bool) -> Iterator[Any]:
        with ExitStack() as stack:
            if chat:
                template = with_fixed_date(self.tokenizer.get_chat_template())
                changes = [(self.lm.tokenizer, "chat_template", template), (self.lm, "add_bos_token", False)]
                changes += [(self.lm, "hf_chat_template", template)] if hasattr(self.lm, "hf_chat_template") else []
                for owner, name, value in changes:
                    stack.enter_context(patch.object(owner, name, value))
            yield self.lm


def _harness_class(name: str) -> Any:
    from lm_eval.api.registry import get_model

    return get_model(name)


def backend_problems(settings: EvaluateSettings) -> list[str]:
    """Why the backend cannot be had here, or arguments that it does not take, or that are not to be given here."""
    name, given = settings.backend, settings.backend_arguments
    lacking = [one for one in ("lm_eval", name) if name != "hf" and importlib.util.find_spec(one) is None]
    if lacking:
        return [
            f"--backend {name}: {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed here; "
            f"pip install 'lm-eval[{name}]', in an environment that has what {name} asks for"
        ]
    known, takes_any = set(SPREADING), False
    if (given or name != "hf") and importlib.util.find_spec("lm_eval") is not None:  # its import takes seconds
        try:
            parameters = inspect.signature(_harness_class(name).__init__).parameters
        except Exception as error:  # a library of another version, or without the GPU that it was built for
            return [f"--backend {name}: cannot be imported: {first_line(error)}"]
        takes_any = name != "hf" and any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        known = (set(parameters) | (known if name == "hf" else set())) - _OURS
    problems = [
        f"{one}: is not to be given here: the model, its code and its type are decided by MODEL and --dtype, the rest "
        "by options of the same names" for one in given if one in _OURS
    ]  # fmt: skip
    unknown = [one for one in given if one not in _OURS and one not in known and not takes_any]
    return [f"backend_arguments: {one}" for one in problems + unknown_problems(unknown, known)]


def spread(model: PreTrainedModel, settings: EvaluateSettings) -> PreTrainedModel:
    """Put the layers of a model on all GPUs, and what is too large for them on the CPU, as accelerate divides them."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory, get_max_memory

    limits: dict[Any, Any] = get_max_memory()
    if most := settings.backend_arguments.get("max_memory_per_gpu"):
        limits = {place: free if place == "cpu" else most for place, free in limits.items()}
    whole = model._no_split_modules
    balanced = get_balanced_memory(model, max_memory=limits, no_split_module_classes=whole)
    dispatch_model(model, infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=whole))
    return model


def backend_versions(settings: EvaluateSettings) -> dict[str, str]:
    """Of an engine, beside the libraries that every result names."""
    return {} if settings.backend == "hf" else {name: version(name) for name in ("lm_eval", settings.backend)}
