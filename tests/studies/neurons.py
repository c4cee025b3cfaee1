"""Do neurons and heads of a target that act like the core ones of a source matter for the same task?

    python -m tests.studies.neurons RUN    # the run file of a study: of its source, its target and its tasks

Each neuron or head of the target gets the mean rank of those of the matched source layer, weighted by how alike they
respond to the texts of the tasks (squared: the correlation of neurons' means over tokens, CKA of heads'). Printed is
the rank correlation of these scores with the target's own, by `snr`, within each layer, as a mean over the layers;
beside it that of sources at random (99 % of the draws lie within), of the units' activity in the target alone, and of
the target's own scores from other examples, which no carried score can be expected to pass. Markdown, on stdout.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from trace_transfer import identify
from trace_transfer.data.encoding import read_tasks
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.progress import quiet_libraries
from trace_transfer.study.run_file import load_run
from trace_transfer.transfer.policies import depth_pairs

UNITS = {"neurons": "mlp.down_proj", "heads": "self_attn.o_proj"}  # whose columns are read
DRAWS = 200
Layers = dict[int, np.ndarray]  # layer → the scores of its units, in order
Scores = dict[tuple[str, str], Layers]  # (task, units) → these


def scores_of(model: Path, tasks: Path, seed: int) -> Scores:
    """The signal to noise of each unit's columns."""
    options = {"method": "snr", "unit": "rows", "max_length": 128, "seed": seed}
    with tempfile.TemporaryDirectory() as out:
        cores = identify(model, tasks, out=Path(out) / "cores", **options).cores
    found: Scores = {(core.task, units): defaultdict(dict) for units in UNITS for core in cores}
    for core in cores:
        for one in core.parameters:
            for units, name in UNITS.items():
                if one.name.endswith(f"{name}.weight") and one.columns and one.layer is not None:
                    found[core.task, units][one.layer][one.columns[0][0]] = one.score or 0.0
    return {
        key: {layer: np.array([value for _, value in sorted(of.items())]) for layer, of in sorted(layers.items())}
        for key, layers in found.items()
    }


def responses(model: Path, tasks: Path, scores: Scores) -> dict[tuple[str, int], torch.Tensor]:
    """(units, layer) → float64 [units, texts, columns], centred over texts."""
    network = AutoModelForCausalLM.from_pretrained(model)
    rows: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for name, module in network.named_modules():
        for units, suffix in UNITS.items():
            if name.endswith(suffix):
                key = units, int(name.split(".")[2])
                module.register_forward_pre_hook(lambda _, given, key=key: rows[key].append(given[0].mean(dim=(0, 1))))
    data = read_tasks(open_model(model, load_families()), tasks, 128, "cut", 0)
    with torch.inference_mode():
        for example in sorted((one for task in data for one in task.examples), key=lambda one: one.id):
            network(torch.tensor([example.input_ids]))
    counts = {(units, layer): len(of) for (_, units), layers in scores.items() for layer, of in layers.items()}
    found = {key: torch.stack(of).double().view(len(of), counts[key], -1).transpose(0, 1) for key, of in rows.items()}
    return {key: values - values.mean(dim=1, keepdim=True) for key, values in found.items()}


def alike(source: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """How alike units respond, [target, source]: linear CKA, which is the squared correlation of single columns."""
    sizes_S, sizes_T = (torch.linalg.matrix_norm(values.mT @ values) for values in (source, target))
    both = torch.einsum("tnc,snd->tscd", target, source).square().sum(dim=(2, 3))
    return (both / (sizes_T[:, None] * sizes_S).clamp(min=1e-30)).numpy()


def agreement(scores: Layers, own: Layers) -> float:
    """Spearman's correlation within each layer, its mean over the layers."""
    return float(np.nanmean([spearmanr(scores[layer], own[layer]).statistic for layer in scores]))


@click.command()
@click.argument("run", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(run: Path) -> None:
    """Rank correlation of carried scores of units with the target's own."""
    quiet_libraries()
    study = load_run(run)
    specs = [task.spec.model_dump(mode="json", exclude_unset=True) for task in study.tasks]
    specs = [{**spec, "data": str(study.directory.absolute() / spec["data"])} for spec in specs]
    with tempfile.TemporaryDirectory() as directory:
        tasks = Path(directory) / "tasks.yaml"
        tasks.write_text(json.dumps({"tasks": specs}), "utf-8")
        compare(Path(study.source), Path(study.target), tasks)


def compare(source: Path, target: Path, tasks: Path) -> None:
    draw = np.random.default_rng(0).permutation
    found_S, own, again = scores_of(source, tasks, 0), scores_of(target, tasks, 0), scores_of(target, tasks, 1)
    acts_S, acts_T = responses(source, tasks, found_S), responses(target, tasks, own)
    click.echo(
        "| units | task | carried | at random (99 %) | activity | own, other examples |\n|---|---|---|---|---|---|"
    )
    num_S, num_T = (1 + max(layer for _, layer in acts) for acts in (acts_S, acts_T))
    pairs = depth_pairs((num_S, num_T), by_target=True)
    likeness = {(units, t): alike(acts_S[units, s], acts_T[units, t]) ** 2 for units in UNITS for s, t in pairs}
    weights_of = {key: one / one.sum(axis=1, keepdims=True) for key, one in likeness.items()}
    for task, units in own:
        weights = {t: weights_of[units, t] for _, t in pairs}
        ranks, ours = {t: found_S[task, units][s].argsort().argsort() for s, t in pairs}, own[task, units]
        carried = agreement({t: weights[t] @ one for t, one in ranks.items()}, ours)
        drawn = [agreement({t: weights[t] @ draw(one) for t, one in ranks.items()}, ours) for _ in range(DRAWS)]
        low, high = np.quantile(drawn, [0.005, 0.995])
        active = agreement({t: acts_T[units, t].square().sum(dim=(1, 2)).numpy() for t in ranks}, ours)
        ceiling = agreement(again[task, units], ours)
        told = f"{carried:+.2f} | {low:+.2f} to {high:+.2f} | {active:+.2f} | {ceiling:+.2f}"
        click.echo(f"| {units} | {task} | {told} |")


if __name__ == "__main__":
    main()
