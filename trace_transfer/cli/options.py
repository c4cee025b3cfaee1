"""Options that several commands have: each from the settings that it sets, with their defaults and reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trace_transfer.cli.values import RATIO
from trace_transfer.settings import scoring, stream, training, warm_start
from trace_transfer.settings.identify import IdentifySettings
from trace_transfer.settings.scoring import Compute, ScoreSettings
from trace_transfer.settings.stream import StreamSettings
from trace_transfer.settings.training import TrainSettings
from trace_transfer.settings.warm_start import WarmStartSettings

Decorator = Callable[[Any], Any]
TRAIN, START, SCORE, COMPUTE = TrainSettings(), WarmStartSettings(), ScoreSettings(), Compute()
STREAM = StreamSettings()


def _all(decorators: tuple[Decorator, ...]) -> Decorator:
    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def _choice(table: Any, defaults: Any, name: str, why: str) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}", type=click.Choice(table[name]), default=getattr(defaults, name),
        show_default=True, help=why,
    )  # fmt: skip


def _number(defaults: Any, name: str, kind: Any, why: str, metavar: str | None = None) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}", type=kind, default=getattr(defaults, name), show_default=True, metavar=metavar,
        help=why,
    )  # fmt: skip


def settings_of(ctx: click.Context, options: dict[str, Any], profile: str = "default") -> IdentifySettings:
    """From the options that were given explicitly, over those of the profile."""
    return IdentifySettings.of(profile, **_given(ctx, options))


def _given(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if given.get("max_grad_norm") == 0:
        given["max_grad_norm"] = None
    return given


profile_option = click.option(
    "--profile", type=click.Choice(tuple(scoring.PROFILES)), default="default", show_default=True,
    help="'paper': as its equations say; 'authors-code': as their published code does. Options beside it stay.",
)  # fmt: skip


def tuned_models(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`TASK=MODEL` options as a mapping; a task may be given once."""
    found: dict[str, str] = {}
    for value in values:
        task, separator, model = value.partition("=")
        if not separator or not task or not model:
            raise click.BadParameter(f"{value!r} is not TASK=MODEL")
        if task in found:
            raise click.BadParameter(f"task {task!r} is given twice")
        found[task] = model
    return found


def tuned_option(why: str) -> Decorator:
    return click.option("--tuned", multiple=True, callback=tuned_models, metavar="TASK=MODEL", help=why)


def out_option(default: str) -> Decorator:
    return click.option(
        "--out", default=default, show_default=True, type=click.Path(path_type=Path), help="Directory for the results."
    )


rules_option = click.option(
    "--rules", multiple=True, metavar="PATH", help="Your own rules, a file or a directory, beside or over the shipped."
)

seed_option = _number(TRAIN, "seed", click.IntRange(min=0), "Draws examples and their order.")

data_options = _all(
    (
        _number(START, "max_length", click.IntRange(min=2), "Longest example; 1024 as in the paper.", "TOKENS"),
        _choice(warm_start.CHOICES, START, "too_long", "What happens to longer examples; counted either way."),
    )
)


def _training(defaults: TrainSettings, epochs: str) -> tuple[Decorator, ...]:
    """What the warm start and the stages of a stream have in common, each with its own defaults."""
    return (
        _number(defaults, "epochs", click.IntRange(min=1), epochs),
        _number(defaults, "learning_rate", float, "AdamW's, after a linear warm-up and before the cosine."),
        _number(defaults, "batch_size", click.IntRange(min=1), "Examples per step, over all processes."),
        _number(defaults, "micro_batch_size", click.IntRange(min=1), "Examples per forward pass and process."),
        _number(defaults, "warmup", float, "Share of the steps in which the learning rate rises."),
        _number(defaults, "weight_decay", float, "AdamW's."),
        click.option(
            "--max-grad-norm", type=float, default=defaults.max_grad_norm, show_default=True,
            help="Gradients are clipped to this norm; 0 for no clipping.",
        ),
        _choice(
            training.CHOICES, defaults, "precision",
            "float32, or bfloat16 with float32 master weights; auto: bfloat16 on a GPU.",
        ),
        click.option(
            "--zero", type=click.IntRange(0, 3), default=defaults.zero, show_default=True,
            help="DeepSpeed's ZeRO stage: what is spread over several GPUs.",
        ),
        _choice(training.CHOICES, defaults, "offload", "What is kept in the CPU's memory; needs ZeRO 1, or 3."),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory for about a third more time."),
        _number(
            defaults, "checkpoint_minutes", float,
            "Minutes between checkpoints, from which the same command goes on; 0 for one after every step.",
        ),
        _number(defaults, "keep_checkpoints", click.IntRange(min=1), "Checkpoints kept while a training runs."),
        click.option(
            "--track", multiple=True, type=click.Choice(training.TRACKERS),
            help="Send loss and learning rate there, beside loss.csv; may be given often.",
        ),
        click.option(
            "--deepspeed", type=click.Path(path_type=Path), callback=_deepspeed_json, metavar="FILE", default=None,
            help="Your own DeepSpeed JSON; what it leaves out or calls 'auto' comes from these options.",
        ),
    )  # fmt: skip


def _deepspeed_json(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Any:
    from trace_transfer.settings.deepspeed_json import read_deepspeed_json

    return {} if value is None else read_deepspeed_json(value)


warm_start_options = _all(
    (
        *_training(TRAIN, "Length of a warm start; 1 as in the paper."),
        click.option(
            "--replicates", type=click.IntRange(1, 2), default=START.replicates, show_default=True,
            help="2: warm-start each task on two halves of its data, and tell core sets from noise.",
        ),
        _choice(
            warm_start.CHOICES, START, "delta_dtype",
            "How deltas are kept; bfloat16 takes half the room and loses 0.4 % of each value.",
        ),
        click.option("--keep-models", is_flag=True, help="Keep the warm-started models, too."),
    )
)  # fmt: skip


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


stream_options = _all(
    (
        _choice(
            stream.CHOICES, STREAM, "method",
            "; ".join(f"{name}: {what}" for name, what in stream.METHODS.items()) + ".",
        ),
        _number(STREAM, "max_length", click.IntRange(min=2), "Longest example; 1024 as in the paper.", "TOKENS"),
        _choice(stream.CHOICES, STREAM, "too_long", "What happens to longer examples; counted either way."),
        click.option(
            "--order", callback=_names, default="", metavar="TASK,…",
            help="Order of the tasks; that of the file if not given.",
        ),
        *_training(STREAM.train, "Passes over the data of a task; 3 as in the paper."),
        _choice(
            stream.CHOICES, STREAM, "save_dtype", "Save what moved in the type of the base's weights, or in float32."
        ),
        _number(STREAM, "lora_rank", click.IntRange(min=1), "Of method lora."),
        _number(STREAM, "lora_alpha", float, "Of method lora."),
        _choice(
            stream.CHOICES, STREAM, "adapter", "lora: carry one adapter through all tasks, or merge it after each."
        ),
        click.option(
            "--special", default=None, metavar="TASK", help="dmt: the task trained last; by default the stream's last."
        ),
        _number(STREAM, "replay_share", float, "dmt: share of the other tasks' examples replayed beside it."),
        _choice(stream.CHOICES, STREAM, "control_unit", "random: as many tensors as the core set, or elements."),
    )
)  # fmt: skip


def stream_settings_of(ctx: click.Context, options: dict[str, Any]) -> StreamSettings:
    """From the options that were given explicitly, over the paper's defaults."""
    return StreamSettings.of(**_given(ctx, options))


score_options = _all(
    (
        profile_option,
        _choice(
            scoring.CHOICES, SCORE, "method",
            "lf: size of the update and Fisher information (eq. 3-5); cs: how unlike the other tasks' updates its "
            "direction is (eq. 6-8); l2 and fisher: one half of lf.",
        ),
        click.option(
            "--ratio", type=RATIO, default=SCORE.ratio, show_default=True,
            help="Core share.",
        ),
        _choice(
            scoring.CHOICES, SCORE, "unit",
            "What the ratio counts: tensors (as the paper), elements of whole tensors, or elements of heads and "
            "neurons (rows), which are then scored one by one.",
        ),
        click.option(
            "--alpha", type=click.FloatRange(0, 1), default=SCORE.alpha, show_default=True, help="Share of L2 in lf."
        ),
        _choice(
            scoring.CHOICES, SCORE, "l2",
            "rms: does not favour large tensors; norm: eq. 3; relative: to the norm of the base.",
        ),
        _choice(scoring.CHOICES, SCORE, "fisher", "Squared gradients of examples (eq. 4), or of batches of two."),
        _choice(scoring.CHOICES, SCORE, "fisher_size", "mean: does not favour large tensors; sum: eq. 4."),
        _choice(scoring.CHOICES, SCORE, "fisher_at", "At the tuned model (eq. 4) or the base (Algorithm 1)."),
        _number(SCORE, "fisher_examples", click.IntRange(min=1), "Examples drawn from each task for it."),
        _choice(scoring.CHOICES, SCORE, "normalise", "What makes L2 and Fisher comparable."),
        _choice(scoring.CHOICES, SCORE, "normalise_within", "Over all parameters, or each kind of them by itself."),
        _choice(
            scoring.CHOICES, SCORE, "zero_delta", "cs of a parameter that did not move: none, or as of cosine 0."
        ),
        _choice(
            scoring.CHOICES, SCORE, "cosine", "corrected: freed of the noise that two replicates show (--replicates 2)."
        ),
        click.option(
            "--exclude", multiple=True, metavar="COMPONENT",
            help="Leave a component (attention.query, head), a group (norm, mlp) or 'bias' out; may be given often.",
        ),
        _number(SCORE, "min_elements", click.IntRange(min=1), "Leave smaller parameters out."),
    )
)  # fmt: skip

compute_options = _all(
    (
        click.option("--device", default=COMPUTE.device, show_default=True, help="For Fisher; auto: a GPU if any."),
        _number(COMPUTE, "tokens_at_once", click.IntRange(min=1), "Tokens of a batch for Fisher."),
        click.option(
            "--layer-streamed", is_flag=True,
            help="Fisher with the activations of one layer at a time: less memory for about half again the time.",
        ),
    )
)  # fmt: skip
