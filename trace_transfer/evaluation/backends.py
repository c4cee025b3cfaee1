"""What runs the model of an evaluation: transformers in this process, or an engine that lm-evaluation-harness drives.

`ModelInMemory` (`hf`) is read exactly as training reads it, in padded batches of like lengths. `Engine` (`vllm`,
`sglang`) is given the same token ids through the harness' own class for it; it reads a directory of safetensors, which
is written first where the model is a GGUF file or has patches.

Shapes: b examples of a batch, t tokens of its longest, v tokens of the vocabulary, n scored positions.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trace_transfer.data.examples import IGNORED, Example, collate, losses
from trace_transfer.data.rendering import with_fixed_date
from trace_transfer.errors import NumericalError, UserError, first_line
from trace_transfer.evaluation.settings import SPREADING, EvaluateSettings
from trace_transfer.settings import unknown_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 1 << 28  # elements of [b, t, v]: 1 GiB in float32
AUTO = 64  # examples that `auto` begins with
PAD = 0  # what stands where the attention mask is 0 is not read
# Arguments of the harness' classes for engines that are set here, or that would read another model or run its code.
_OURS = frozenset({
    "pretrained", "tokenizer", "tokenizer_path", "batch_size", "max_length", "max_model_len", "context_length",
    "device", "dtype", "seed", "random_seed", "revision", "tokenizer_revision", "trust_remote_code", "lora_local_path",
    "model_path", "load_format",
})  # fmt: skip


class AnswerScores(NamedTuple):
    """Of an example's supervised tokens: the summed cross-entropy in nats; how many were the likeliest, if known."""

    loss: float
    num_hits: int | None


@dataclass(frozen=True)
class Ending:
    """Where an answer ends: after so many tokens, at one of these, which is left out, or behind a text, left in."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]


@dataclass(frozen=True)
class ModelInMemory:
    """A model of transformers without dropout (`eval()`), wherever it is and in whatever type."""

    model: PreTrainedModel
    tokenizer: Any
    settings: EvaluateSettings

    def score(self, examples: Sequence[Example], advance: Callable[[], None]) -> list[AnswerScores]:
        """Of the supervised tokens of each example; `advance` is called once for each."""
        found: list[AnswerScores | None] = [None] * len(examples)

        def step(indices: list[int]) -> None:
            batch = collate([examples[index] for index in indices])
            ids_bt, mask_bt = batch.input_ids_bt.to(self.model.device), batch.attention_mask_bt.to(self.model.device)
            targets_bt = batch.targets_bt.to(self.model.device)
            logits_btv = self.model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).logits
            for index, logits_tv, targets_t in zip(indices, logits_btv, targets_bt, strict=True):
                logits_nv, targets_n = (one[targets_t != IGNORED] for one in (logits_tv, targets_t))
                losses_n = losses(logits_nv[None], targets_n[None])[0]  # softmax of what is scored only
                _require_finite(losses_n)
                num_hits = int((logits_nv.argmax(dim=-1) == targets_n).sum())
                found[index] = AnswerScores(sum(losses_n.tolist()), num_hits)
                advance()

        most = max(MAX_LOGITS // self.model.config.get_text_config().vocab_size, 1)
        with torch.inference_mode():
            in_batches([len(one.input_ids) for one in examples], self.settings.examples_at_once, step, most)
        return found  # type: ignore[return-value]

    def generate(self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[], None]) -> list[str]:
        """The likeliest answer after each prompt, without special tokens; texts behind a stop text may follow it.

        Greedy, whatever the model's own settings for generation say: a penalty for repetition would count as knowledge.
        """
        from transformers import GenerationConfig

        ends = sorted(ending.stop_ids)
        found = [""] * len(prompts)
        config = GenerationConfig(
            do_sample=False, num_beams=1, use_cache=True, max_new_tokens=ending.max_new_tokens, pad_token_id=PAD,
            eos_token_id=ends or None, stop_strings=list(ending.stop_texts) or None,
        )  # fmt: skip

        def step(indices: list[int]) -> None:
            texts = [torch.tensor(prompts[index]) for index in indices]
            masks = [torch.ones_like(ids_t) for ids_t in texts]  # padded on the left: all go on at the same position
            ids_bt, mask_bt = (
                pad_sequence(one, batch_first=True, padding_value=PAD, padding_side="left") for one in (texts, masks)
            )
            written_bt = self.model.generate(  # type: ignore[operator]  # whatever is not declared is a Tensor to torch
                input_ids=ids_bt.to(self.model.device), attention_mask=mask_bt.to(self.model.device),
                logits_processor=[finite_logits],
                **({"tokenizer": self.tokenizer} if ending.stop_texts else {}),
            )[:, ids_bt.shape[1] :].tolist()  # fmt: skip
            for index, written in zip(indices, written_bt, strict=True):
                stop = next((place for place, token in enumerate(written) if token in ends), len(written))
                found[index] = self.tokenizer.decode(written[:stop], skip_special_tokens=True)
                advance()

        # In place of the model's own, with which transformers fills whatever a given one leaves open.
        with torch.inference_mode(), patch.object(self.model, "generation_config", config):
            in_batches([len(prompt) for prompt in prompts], self.settings.examples_at_once, step)
        return found

    @contextmanager
    def harness(self, *, chat: bool) -> Iterator[Any]:
        """As an object of lm-evaluation-harness; with `chat` for prompts in the model's chat template."""
        from lm_eval.models.huggingface import HFLM

        class FiniteLM(HFLM):  # type: ignore[misc]  # the harness has no types
            """Of logits that are not finite the harness would make scores."""

            def _model_call(self, *given: Any, **options: Any) -> Any:
                logits_btv = super()._model_call(*given, **options)
                finite_logits(logits_btv, logits_btv)
                return logits_btv

            def _model_generate(self, *given: Any, **options: Any) -> Any:
                return super()._model_generate(*given, **options, logits_processor=[finite_logits])

        tokenizer = copy.deepcopy(self.tokenizer)
        if chat:  # the same day as in training, and no beginning of text but the template's
            tokenizer.chat_template = with_fixed_date(tokenizer.get_chat_template())
        with torch.inference_mode():
            yield FiniteLM(
                pretrained=self.model, tokenizer=tokenizer, backend="causal",
                batch_size=self.settings.examples_at_once, max_length=self.settings.max_length,
                **({"add_bos_token": False} if chat else {}),
            )  # fmt: skip


def batches_by_length(lengths: Sequence[int], batch_size: int, most_tokens: int | None = None) -> list[list[int]]:
    """Indices in batches of like lengths, the longest first, so that too little memory is seen at once; a padded batch
    has at most so many tokens, unless it is one example."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        last = batches[-1] if batches else None
        # the first of a batch is its longest
        full = last is not None and most_tokens is not None and (len(last) + 1) * lengths[last[0]] > most_tokens
        if last is None or len(last) == batch_size or full:
            batches.append([index])
        else:
            last.append(index)
    return batches


def in_batches(
    lengths: Sequence[int], batch_size: int | Literal["auto"], step: Callable[[list[int]], None],
    most_tokens: int | None = None,
) -> None:  # fmt: skip
    """Call `step` with the indices of each batch; `auto`: where memory is too small all that are left are halved."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    waiting = batches_by_length(lengths, AUTO if batch_size == "auto" else batch_size, most_tokens)
    while waiting:
        try:
            step(waiting[0])
        except RuntimeError as error:
            if batch_size != "auto" or len(waiting[0]) == 1 or not should_reduce_batch_size(error):
                raise
        else:
            del waiting[0]
            continue
        clear_device_cache(garbage_collection=True)  # outside `except`: the error holds what filled the memory
        waiting = [half for one in waiting for half in (one[: len(one) // 2], one[len(one) // 2 :]) if half]


def finite_logits(_ids_bt: Tensor, logits_bv: Tensor) -> Tensor:
    """A logits processor that changes nothing; a NumericalError for NaN and Inf (-Inf is for tokens never written)."""
    _require_finite(logits_bv.amax(dim=-1))  # NaN where any is NaN
    return logits_bv


def _require_finite(values_n: Tensor) -> None:
    if not values_n.isfinite().all():
        raise NumericalError(
            "its logits are NaN or infinite, so they give no score; try --dtype float32, and check that the model's "
            "files are complete"
        )


# ---- engines


class Engine:
    """A model that an engine has read, with the methods of `ModelInMemory`; `lm` is the harness' object for it."""

    def __init__(self, directory: Path, dtype: str, tokenizer: Any, settings: EvaluateSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        # To the harness' class for sglang, `add_bos_token` means what its tokenizer does.
        own = {"random_seed": settings.seed, "add_bos_token": True}
        arguments = {**({"seed": settings.seed} if settings.backend == "vllm" else own), **settings.backend_arguments}
        from lm_eval.api.registry import get_model

        try:
            self.lm = get_model(settings.backend)(
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
        losses = [0.0] * len(examples)
        found = self.lm._loglikelihood_tokens(requests, disable_tqdm=True)
        for number, (likelihood, _) in zip(owners, found, strict=True):
            losses[number] -= likelihood
        for _ in examples:
            advance()
        return [AnswerScores(loss, None) for loss in losses]

    def generate(self, prompts: Sequence[Sequence[int]], ending: Ending, advance: Callable[[], None]) -> list[str]:
        from lm_eval.api.instance import Instance

        how = {
            "until": list(ending.stop_texts), "max_gen_toks": ending.max_new_tokens, "do_sample": False,
            "temperature": 0.0, "stop_token_ids": sorted(ending.stop_ids), "skip_special_tokens": True,
        }  # fmt: skip
        requests = [Instance("generate_until", {}, (str(number), how), number) for number in range(len(prompts))]
        # The harness' classes take texts and encode them. Ours are encoded: the texts are their numbers.
        with patch.object(self.lm, "tok_encode", lambda texts, **_: [list(prompts[int(text)]) for text in texts]):
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


Backend = ModelInMemory | Engine


def backend_problems(settings: EvaluateSettings) -> list[str]:
    """Why the backend cannot be had here, and arguments that are not to be given to it."""
    name, given = settings.backend, settings.backend_arguments
    if name == "hf":
        return [f"backend_arguments: {one}" for one in unknown_problems(given, SPREADING)]
    if lacking := [one for one in ("lm_eval", name) if importlib.util.find_spec(one) is None]:
        return [
            f"--backend {name}: not installed here: {', '.join(lacking)}; pip install 'lm-eval[{name}]', in an "
            f"environment that has what {name} asks for"
        ]
    return [
        f"backend_arguments: {one}: is not to be given here: the model, its code and its type are decided by MODEL and "
        "--dtype, the rest by options of the same names" for one in given if one in _OURS
    ]  # fmt: skip


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
