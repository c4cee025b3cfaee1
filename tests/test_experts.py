"""Mixtures of experts from end to end: identified, carried over, trained in parts of fused tensors, saved, undone."""

import json
import re
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.commands import done
from tests.core_files import core_of
from tests.patch_files import loaded, same_bits, stored
from tests.task_files import write_tasks
from trace_transfer.formats import read_any

LAYER = {"qwen3_moe": "model.layers.1.mlp.experts", "gpt_oss": "model.layers.2.mlp.experts"}
TRAINING = ("--batch-size", 4, "--epochs", 1, "--learning-rate", 1e-3)


@pytest.fixture(scope="module")
def identified(tiny, tmp_path_factory):
    """`identify` on a tiny model with experts."""
    directory = tmp_path_factory.mktemp("identified")
    tasks = write_tasks(directory, {"math": 6, "code": 6})
    done("identify", tiny("qwen3_moe"), "--tasks", tasks, "--zero", 0, "--ratio", 0.3, "--fisher-examples", 3,
        *TRAINING, "--keep-models", "--out", directory / "out")  # fmt: skip
    return directory / "out"


def experts_of(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    return {name for name, _ in model.named_parameters() if ".experts." in name}


def test_every_expert_is_scored_by_update_and_fisher(tiny, identified):
    core = read_any(identified / "math.core.json")
    scored = {p.name: p for p in core.parameters}
    names = experts_of(tiny("qwen3_moe"))
    assert len(names) == 4 and names <= scored.keys()
    for name in names:
        assert scored[name].score is not None and all(value > 0 for value in scored[name].terms.values()), name
        assert scored[name].component in ("mlp.gate+mlp.up", "mlp.down")
    assert names <= set(read_any(identified / "fisher/math/fisher.json").fallback)


def test_experts_are_scored_one_by_one_and_trained(tiny, identified, tmp_path):
    base, tasks = tiny("qwen3_moe"), identified.parent / "tasks.yaml"
    shutil.copytree(identified, tmp_path / "out")
    done("score", base, "--tasks", tasks, "--unit", "rows", "--ratio", 0.2, "--fisher-examples", 3,
        "--out", tmp_path / "out")  # fmt: skip
    core = {  # a row of the fused tensor is an expert
        (entry.name, expert)
        for task in ("math", "code")
        for entry in read_any(tmp_path / "out" / f"{task}.core.json").core
        if ".experts." in entry.name
        for start, stop in entry.rows
        for expert in range(start, stop)
    }
    stream = yaml.safe_load(tasks.read_text())
    for item in stream["tasks"]:
        item |= {"data": str(tasks.parent / item["data"]), "core": str(tmp_path / "out" / f"{item['name']}.core.json")}
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump(stream))
    said = done(
        "train", base, "--stream", tmp_path / "stream.yaml", "--zero", 0, *TRAINING, "--out", tmp_path / "trained"
    )
    assert re.search(r"parameters were frozen, and each is bit-identical", said.output)
    before, after = loaded(base), loaded(tmp_path / "trained" / "model")
    experts = [(name, expert) for name in before if ".experts." in name for expert in range(len(before[name]))]
    moved = {(name, expert) for name, expert in experts if not torch.equal(before[name][expert], after[name][expert])}
    assert moved and moved <= core and len(moved) < len(experts)


def core_set(family, shapes):
    """Parts of fused experts, some neurons of each, along the axis on which a family has them."""
    gate_up, down = f"{LAYER[family]}.gate_up_proj", f"{LAYER[family]}.down_proj"
    if family == "gpt_oss":
        gates = tuple((at, at + 1) for at in range(0, shapes[gate_up][2], 2))
        return {gate_up: ("depth", gates), down: ("columns", ((0, 3), (7, 9)))}
    parts = {gate_up: ("columns", ((0, 5), (20, 25))), down: ("depth", ((0, 5),))}
    return {**parts, "model.layers.1.mlp.gate.weight": None, "model.layers.3.mlp.experts.down_proj": None}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """`trained(family, zero)`: the core set's parts and the directory of a training."""
    made = {}

    def get(family, zero=0):
        if (family, zero) not in made:
            directory = tmp_path_factory.mktemp("trained")
            shapes = {name: tuple(value.shape) for name, value in loaded(tiny(family)).items()}
            parts = core_set(family, shapes)
            file = core_of(tiny(family), directory / "math.core.json", list(parts))
            content = json.loads(file.read_text())
            for entry in content["parameters"]:
                if parts.get(entry["name"]) is not None:
                    axis, ranges = parts[entry["name"]]
                    entry[axis] = ranges
            file.write_text(json.dumps(content))
            stream = write_tasks(directory, {"math": 8}, "stream.yaml")
            text = stream.read_text().replace("data: math.jsonl", "data: math.jsonl, core: math.core.json")
            stream.write_text(text)
            done("train", tiny(family), "--stream", stream, *TRAINING, "--weight-decay", 0.1, "--zero", zero,
                "--out", directory / "out")  # fmt: skip
            made[family, zero] = parts, directory / "out"
        return made[family, zero]

    return get


def inside(value, part):
    """Which elements a part holds."""
    chosen = torch.zeros(value.shape, dtype=torch.bool)
    if part is None:
        return ~chosen
    axis = ("rows", "columns", "depth").index(part[0])
    for start, stop in part[1]:
        chosen[(slice(None),) * axis + (slice(start, stop),)] = True
    return chosen


@pytest.mark.parametrize(("family", "zero"), [("qwen3_moe", 0), ("qwen3_moe", 3), ("gpt_oss", 0)])
def test_only_the_parts_of_the_core_set_move(tiny, trained, family, zero):
    parts, out = trained(family, zero)
    before, after = loaded(tiny(family)), loaded(out / "model")
    for name, value in before.items():
        moved = value.view(torch.int32) != after[name].view(torch.int32)
        chosen = inside(value, parts[name]) if name in parts else torch.zeros_like(moved)
        assert not (moved & ~chosen).any(), name
        if name in parts:
            assert moved[chosen].float().mean() > 0.9, name
    found = {p.name: p for p in read_any(out / "verification.json").parameters}
    for name, part in parts.items():
        if part is not None:
            assert getattr(found[name], part[0]) == part[1]
    assert read_any(out / "verification.json").ok


def test_partitioned_over_ranks_it_is_the_same_training(trained):
    (_, one), (_, other) = trained("qwen3_moe", 0), trained("qwen3_moe", 3)
    first, second = (read_any(out / "stream.json").stages[0].losses for out in (one, other))
    assert first == pytest.approx(second, rel=1e-6)
    for name, value in loaded(one / "model").items():
        torch.testing.assert_close(value, loaded(other / "model")[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_saved_under_the_names_on_disk_and_undone(tiny, trained, tmp_path, family):
    _, out = trained(family)
    assert stored(out / "model").keys() == stored(tiny(family)).keys()
    done("patch", "revert", out / "model", out / "math.patch.safetensors", "--out", tmp_path / "back")
    assert same_bits(stored(tmp_path / "back"), stored(tiny(family)))
    done("verify", tiny(family), out / "model", "--patch", out / "math.patch.safetensors")
