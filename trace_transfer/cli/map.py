"""`trace-transfer map`: read the options, call `plan_map` and `run_map`, print the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trace_transfer.cli.publishing import asked_destination, push_options
from trace_transfer.cli.values import OUT_DIRECTORY, RATIO
from trace_transfer.settings.mapping import CHOICES, PROFILES, MapSettings

DEFAULTS = MapSettings()


def _choice(name: str, why: str) -> Callable[[Any], Any]:
    """An option of `MapSettings` with a fixed list of values; the help shows the default and the reason for it."""
    return click.option(
        f"--{name}", type=click.Choice(CHOICES[name]), default=getattr(DEFAULTS, name), show_default=True, help=why
    )


@click.command("map")
@click.option("--src", required=True, metavar="MODEL", help="Source: a directory, a GGUF file or a hub name.")
@click.option("--dst", required=True, metavar="MODEL", help="Target, likewise.")
@click.option(
    "--core", multiple=True, metavar="FILE",
    help="A core file of the source to carry across, or owner/name:FILE for one on the hub; may be given several "
    "times. Without one only layers are matched.",
)  # fmt: skip
@click.option("--out", default="runs/map", show_default=True, type=OUT_DIRECTORY, help="Directory for the results.")
@click.option(
    "--profile", type=click.Choice(tuple(PROFILES)), default="default", show_default=True,
    help="'paper' sets the paper's choices (biased CKA, one row per text, rows as they are, argmax, core carried "
    "by name); options given beside it stay.",
)  # fmt: skip
@click.option(
    "--probe", metavar="FILE",
    help="Texts on which both models are read: text or JSONL. Default: 480 short texts of maths, code, medicine, law "
    "and general prose that come with the package.",
)  # fmt: skip
@_choice(
    "rows",
    "What is compared. boundary: token ends that both tokenizers share, where both have read the same prefix; word: "
    "means over words; example: one mean per text (the paper's), which saturates.",
)
@_choice(
    "similarity",
    "cka-debiased is near 0 for unrelated layers however wide they are; cka (the paper's) is then near 1; cka-rbf has "
    "a Gaussian kernel.",
)
@_choice(
    "representation",
    "stream: the residual stream after the layer; with unit rows the steadiest on the pairs of models tried. update: "
    "what the layer adds to it, which tells neighbouring layers of one model apart far more clearly.",
)
@_choice("transform", "unit: rows scaled to unit norm, so that no single row or massive activation decides; none.")
@_choice(
    "match",
    "coverage: order is kept and no layer of either model is left out; argmax: the most similar target layer of each "
    "source layer (the paper's), which leaves a deeper target partly unused; one-to-one and monotone use each layer "
    "once at most. Controls, for comparison only: depth: relative depth alone, whatever is similar; shuffled: coverage "
    "with its target layers permuted by --seed.",
)
@_choice(
    "carry",
    "scores: move every score and select the top r again on the target, so that the budget holds; core: what is core "
    "stays core by name (the paper's), which shrinks the ratio on a larger target.",
)
@click.option(
    "--ratio", type=RATIO, metavar="R",
    help="Core share, e.g. 0.05. Default: that of the core file.",
)  # fmt: skip
@click.option(
    "--rules", multiple=True, metavar="PATH", help="Your own rules, a file or a directory, beside or over the shipped."
)
@click.option(
    "--max-length", type=click.IntRange(min=8), default=DEFAULTS.max_length, show_default=True, metavar="TOKENS",
    help="Texts are cut there; the shipped ones are shorter.",
)  # fmt: skip
@click.option(
    "--minibatches", type=click.IntRange(min=1), default=DEFAULTS.minibatches, show_default=True,
    help="Rows drawn from each text, one per minibatch: rows of one text depend on each other.",
)  # fmt: skip
@click.option(
    "--splits", type=click.IntRange(min=0), default=DEFAULTS.splits, show_default=True,
    help="Random halves of the texts that say how stable the match is; 0 for none.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=DEFAULTS.batch_size, show_default=True, help="Texts at a time."
)
@click.option("--device", default=DEFAULTS.device, show_default=True, help="auto: a GPU where there is one.")
@_choice("dtype", "auto: float32 on a CPU, bfloat16 on a GPU.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=DEFAULTS.seed,
    show_default=True,
    help="Draws the rows, and a shuffled match.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path, file_okay=False), default=DEFAULTS.cache, show_default=True,
    help="Where what was read of a model is kept, so that another --match takes seconds.",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Keep nothing.")
@push_options("the translated core files and the layer match, with a card,")
@click.option(
    "--dry-run", is_flag=True, help="Names, shapes, memory and time wanted; reads no weights, writes nothing."
)
@click.pass_context
def map_command(
    ctx: click.Context,
    /,
    src: str,
    dst: str,
    core: tuple[str, ...],
    out: Path,
    profile: str,
    no_cache: bool,
    push_to_hub: str | None,
    private: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Match the layers of two models on a probe set and carry core sets from SRC to DST.

    Writes layer_match.json, similarity.safetensors, correspondence.json, heatmap.html, heatmap.png and, for each
    --core file, the translated TASK.core.json.

    \b
    trace-transfer map --src meta-llama/Meta-Llama-3-8B --dst Qwen/Qwen3-32B \\
        --core math.core.json --out runs/llama-to-qwen3
    """
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if no_cache:
        given["cache"] = None
    settings = MapSettings.of(profile, **given)
    to = asked_destination(push_to_hub, private)
    if to is not None and not core:
        raise click.UsageError("--push-to-hub sends core files, and none is carried; give --core")

    from trace_transfer.hub import local_files
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.mapping import check_out, plan_map, run_map

    quiet_libraries()
    plan = plan_map(src, dst, local_files(core), settings)
    if dry_run:
        check_out(plan, out, settings)  # as `run_map` does
        from trace_transfer.estimation import estimate, render_estimate

        click.echo(render_estimate(estimate(plan, settings)))
        return
    result = run_map(plan, out, settings, Terminal())

    from trace_transfer.views.summary import render_summary

    click.echo(render_summary(result))
    if to is not None:
        from trace_transfer.publishing import publish_cores

        click.echo(f"sent: {publish_cores(to, result.files, plan.target.source)}")
