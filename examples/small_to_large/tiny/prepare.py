"""Writes the run files of the studies: two directions × two sets of tasks, else alike; and trains the models.

    python -m examples.small_to_large.tiny.prepare               # half an hour on one core, once
    trace-transfer run examples/small_to_large/tiny/llama_to_qwen3.words.yaml

What is compared was decided before the first run, on other seeds: see README.md.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

import click

from examples.small_to_large.tiny.models import HERE, SHAPES, train_missing
from examples.small_to_large.tiny.tasks import DIALECTS, WORDS
from examples.small_to_large.tiny.tasks import main as write_tasks

DIRECTIONS = {"llama_to_qwen3": ("llama-small", "qwen3-large"), "qwen3_to_llama": ("qwen3-small", "llama-large")}
SETS = {"words": WORDS, "dialects": DIALECTS}
TUNING = {  # of the dialects the best rates are lower, but for two methods
    "words": "factors: [0.25, 0.5, 1, 2]",
    "dialects": "factors: [0.0625, 0.125, 0.25, 0.5, 1],\n         "
    "rates: {trace-snr-rows: &more [1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3], trace-snr-parameters: *more}",
    "refined": "factors: [0.25, 0.5, 1, 2, 4]",
}
TASK = "  - {{name: {0}, data: data/{0}.train.jsonl, template: plain, max_examples: 96}}\n"
EVALUATION = "  - {{name: {0}, kind: loss, data: data/{0}.test.jsonl, template: plain}}\n"
RUN = Template("""\
# Written by examples.small_to_large.tiny.prepare; run files of one kind differ in the models and in the tasks alone.
name: $name
source: models/$source
target: models/$target
out: ../../../runs/tiny/$name

tasks:
$tasks
evaluations: # nats per token of the right answer
$evaluations
$methods
draws: 2
seeds: $seeds
orders: vary
tuning: {$tuning, seeds: [100, 101]}
$comparisons

identify: {unit: elements, ratio: 0.05, batch_size: 8, micro_batch_size: 8, learning_rate: 1.0e-3, max_length: 128}
train: {epochs: 1, batch_size: 8, micro_batch_size: 8, learning_rate: 4.0e-3, max_length: 128, zero: 0,
        checkpoint_minutes: 60}
evaluate: {max_length: 128}
keep: none
jobs: 2
""")
METHODS = """\
methods:
  # Everything trains, at rates around a smaller one.
  - {name: sequential, like: sequential, train: {learning_rate: 1.0e-3}}
  - {name: joint, like: joint, train: {learning_rate: 4.0e-3}}
  - {name: dmt, like: dmt, train: {learning_rate: 1.0e-3}}
  - lora
  # Tensors, as many as 5 % of the parameters allow.
  - trace-lf
  - transfer-lf
  - depth-map
  - shuffled-map
  - &drawn {name: random, like: random, train: {learning_rate: 1.6e-2}} # random sets learn best at larger rates
  # Rows, and single parameters: scores of the target's own.
  - trace-lf-rows
  - trace-snr-rows
  - {<<: *drawn, name: random-rows, like: random-rows}
  - trace-snr-parameters
  - {<<: *drawn, name: random-parameters, like: random-parameters}
  - {<<: *drawn, name: random-within-parameters, like: random-within-parameters}"""
COMPARISONS = """\
comparisons: # stated beforehand; p is adjusted over them
  - {methods: [trace-lf, transfer-lf], against: random}
  - {methods: [transfer-lf], against: depth-map}
  - {methods: [transfer-lf], against: shuffled-map}
  - {methods: [transfer-lf], against: trace-lf}
  - {methods: [trace-lf-rows, trace-snr-rows], against: random-rows}
  - {methods: [trace-snr-parameters], against: random-parameters}
  - {methods: [trace-snr-parameters], against: random-within-parameters}
  - {methods: [trace-lf, transfer-lf, trace-lf-rows, trace-snr-rows, trace-snr-parameters], against: sequential}"""

# Does the source add anything to the target's own gradients? Rows by SNR: of the whole target, of the tensors that were
# carried over, of those carried with shuffled layers; and random rows of the carried tensors.
REFINED_METHODS = """\
methods:
  - trace-snr-rows
  - transfer-snr-rows
  - {name: shuffled-snr-rows, like: transfer-snr-rows, map: {match: shuffled},
     title: "Shuffled layer map, then SNR rows"}
  - {name: random-inside, like: transfer-snr-rows, train: {method: random-within, learning_rate: 8.0e-3},
     title: "Transfer-LF, then random rows"}"""
REFINED_COMPARISONS = """\
comparisons: # stated beforehand; p is adjusted over them
  - {methods: [transfer-snr-rows], against: trace-snr-rows}
  - {methods: [transfer-snr-rows], against: shuffled-snr-rows}
  - {methods: [transfer-snr-rows], against: random-inside}"""

# What the first runs found, asked again: twenty other seeds, two more controls, what was carried as a prior, and core
# sets without embedding and head. The rates are those that the first runs chose, but for what is new.
CONFIRM_METHODS = """\
methods:
  - sequential
  - trace-lf
  - transfer-lf
  - depth-map
  - shuffled-map
  - one-set
  - role-profile
  - {name: lf-in-layers, like: trace-lf, identify: &layers {exclude: [embedding, head]}, title: "TRACE-LF in layers"}
  - random
  - trace-snr-rows
  - prior-snr-rows
  - {name: snr-rows-in-layers, like: trace-snr-rows, identify: *layers, title: "TRACE-SNR, rows in layers"}
  - random-rows"""
CONFIRM_COMPARISONS = """\
comparisons: # stated beforehand; p is adjusted over them
  - {methods: [trace-lf, transfer-lf], against: random}
  - {methods: [transfer-lf], against: trace-lf}
  - {methods: [transfer-lf], against: depth-map}
  - {methods: [transfer-lf], against: shuffled-map}
  - {methods: [trace-lf], against: one-set}
  - {methods: [trace-lf], against: role-profile}
  - {methods: [trace-snr-rows], against: random-rows}
  - {methods: [prior-snr-rows, snr-rows-in-layers], against: trace-snr-rows}
  - {methods: [lf-in-layers], against: trace-lf}
  - {methods: [trace-lf, transfer-lf, trace-snr-rows], against: sequential}"""
KNOWN = "sequential", "trace-lf", "transfer-lf", "depth-map", "random", "trace-snr-rows", "random-rows"
FIRST_RATES = {
    "llama_to_qwen3.words": (5e-4, 2e-3, 2e-3, 4e-3, 8e-3, 4e-3, 8e-3),
    "llama_to_qwen3.dialects": (2.5e-4, 2e-3, 1e-3, 1e-3, 4e-3, 4e-3, 4e-3),
    "qwen3_to_llama.words": (1e-3, 4e-3, 2e-3, 2e-3, 1.6e-2, 8e-3, 1.6e-2),
    "qwen3_to_llama.dialects": (2.5e-4, 2e-3, 2e-3, 4e-3, 4e-3, 4e-3, 4e-3),
}
OTHER_MODELS = "llama_to_qwen3.words"  # its first run had models of another training, so all rates are chosen anew
AROUND = (0.5, 1, 2)
NEW = {  # method → the one whose rate its own are chosen around, and by which factors
    "shuffled-map": ("transfer-lf", AROUND),
    "one-set": ("trace-lf", (0.5, 1, 2, 4)),
    "role-profile": ("random", (0.25, 0.5, 1)),
    "lf-in-layers": ("trace-lf", (0.125, 0.25, 0.5, 1)),
    "prior-snr-rows": ("trace-snr-rows", AROUND),
    "snr-rows-in-layers": ("trace-snr-rows", AROUND),
}


def rates_to_confirm(run: str) -> str:
    first = dict(zip(KNOWN, FIRST_RATES[run], strict=True))
    of = {name: (name, AROUND if run == OTHER_MODELS else (1,)) for name in KNOWN} | NEW
    grids = {name: [first[like] * factor for factor in factors] for name, (like, factors) in of.items()}
    return "rates: {" + ",\n                 ".join(f"{name}: {grid}" for name, grid in grids.items()) + "}"


REFINED, CONFIRM = ".refined", ".confirm"
KINDS = {
    "": (METHODS, COMPARISONS, range(20)),
    REFINED: (REFINED_METHODS, REFINED_COMPARISONS, range(10)),
    CONFIRM: (CONFIRM_METHODS, CONFIRM_COMPARISONS, range(20, 40)),
}


def run_file(direction: str, tasks: str, kind: str = "") -> str:
    """The text of a run file."""
    (source, target), (methods, comparisons, seeds) = DIRECTIONS[direction], KINDS[kind]
    tuning = rates_to_confirm(f"{direction}.{tasks}") if kind == CONFIRM else TUNING[kind.removeprefix(".") or tasks]
    return RUN.substitute(
        name=f"{direction}.{tasks}{kind}", source=source, target=target, seeds=list(seeds),
        methods=methods, comparisons=comparisons, tuning=tuning,
        tasks="".join(TASK.format(name) for name in SETS[tasks]),
        evaluations="".join(EVALUATION.format(name) for name in SETS[tasks]),
    )  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "models", show_default=False)
def main(out: Path) -> None:
    """Write the run files, the tasks and the models that are not there yet."""
    for direction in DIRECTIONS:
        for tasks in SETS:
            for kind in KINDS:
                file = HERE / f"{direction}.{tasks}{kind}.yaml"
                file.write_text(run_file(direction, tasks, kind), "utf-8")
    write_tasks()
    train_missing(tuple(SHAPES), out)


if __name__ == "__main__":
    main()
