"""From fine-tuned models to core files: exact statistics from shards split and stored in any way; clear refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from trace_transfer.artefacts import CoreFile, DeltaFile, read_artefact
from trace_transfer.cli import main
from trace_transfer.rules.registry import load_families
from trace_transfer.stages.differencing import deltas_of, plan_deltas, read_deltas
from trace_transfer.stages.opening import open_model
from trace_transfer.views.core_sets import jaccard


def weights(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def tuned_copy(base, directory, seed, *, dtype=torch.float32, scale=1e-2, still=()):
    """A copy of a model with every weight moved a little, in one file whatever the base has; `still` do not move."""
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in weights(base).items():
        noise = scale * torch.randn(tensor.shape, generator=generator)
        moved[name] = (tensor.float() + (0 if name in still else noise)).to(dtype)
    save_file(moved, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture
def three(tiny, tmp_path):
    """A base in several float32 shards, and three models tuned from it: two float32, one bf16."""
    base = tiny("qwen2")
    dtypes = {"math": torch.float32, "code": torch.bfloat16, "law": torch.float32}
    tuned = {
        task: tuned_copy(base, tmp_path / task, seed, dtype=dtype) for seed, (task, dtype) in enumerate(dtypes.items())
    }
    return base, tuned


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def options(tuned):
    return [text for task, directory in tuned.items() for text in ("--tuned", f"{task}={directory}")]


def read(base, tuned):
    from trace_transfer.progress import Silent

    registry = load_families()
    opened, models = open_model(base, registry), {task: open_model(path, registry) for task, path in tuned.items()}
    return read_deltas(opened, models, plan_deltas(opened, models), Silent())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2", "phi3"])
def test_statistics_are_those_of_whole_tensors_in_float64(tiny, tmp_path, family):
    base = tiny(family)
    assert len(list(base.glob("*.safetensors"))) > 1  # the copies have one: split differently on both sides
    tuned = {
        "a": tuned_copy(base, tmp_path / "a", 1),
        "b": tuned_copy(base, tmp_path / "b", 2, dtype=torch.bfloat16),
    }
    found = read(base, tuned)
    before, after = weights(base), [weights(path) for path in tuned.values()]
    on_disk = {name.removeprefix("transformer."): name for name in before}
    assert len(found.parameters) == len(open_model(base, load_families()).anatomy.inventory.shapes)
    for parameter in found.parameters:
        name = on_disk[parameter.name.removeprefix("transformer.")]
        deltas = [(one[name].double() - before[name].double()).flatten() for one in after]
        for norm, delta in zip(parameter.norms, deltas, strict=True):
            assert norm == pytest.approx(float(delta.norm()), rel=1e-12)
        cosine = float(deltas[0] @ deltas[1] / (deltas[0].norm() * deltas[1].norm()))
        assert parameter.cosines == (pytest.approx(cosine, abs=1e-12),)
        assert parameter.unchanged == tuple(int((delta == 0).sum()) for delta in deltas)


def test_chunks_cover_large_parameters(three, monkeypatch):
    monkeypatch.setattr("trace_transfer.checkpoints.ELEMENTS_AT_ONCE", 100)
    small = read(*three)
    monkeypatch.undo()
    whole = read(*three)
    for one, other in zip(small.parameters, whole.parameters, strict=True):
        assert one.norms == pytest.approx(other.norms, rel=1e-12)
        assert one.unchanged == other.unchanged


def test_grams_come_back_from_norms_and_cosines(three):
    file = read(*three)
    table = deltas_of(file)
    assert table.gram_PKK.shape == (len(file.parameters), 3, 3)
    assert np.allclose(table.norms_PK, [p.norms for p in file.parameters], rtol=1e-12)
    first = file.parameters[0]
    assert table.cosines_PKK[0, 2, 1] == pytest.approx(first.cosines[2], rel=1e-12)


@pytest.mark.parametrize("method", ["l2-rms", "l2", "cs"])
def test_core_files_hold_the_top_of_the_scores(three, tmp_path, method):
    base, tuned = three
    result = run("score", base, *options(tuned), "--method", method, "--ratio", 0.1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for task in tuned:
        core: CoreFile = read_artefact(tmp_path / "out" / f"{task}.core.json", CoreFile)
        scores = [p.score for p in core.parameters]
        assert scores == sorted(scores, reverse=True)
        assert len(core.core) == int(0.1 * len(scores)) > 0
        assert core.method.name == method
        assert f"{len(core.core)} of {len(scores)}" in result.stdout
    assert "in common (Jaccard)" in result.stdout


def test_the_second_run_reads_no_weights_and_gives_the_same_files(three, tmp_path):
    base, tuned = three
    out = tmp_path / "out"
    first = run("score", base, *options(tuned), "--out", out)
    kept = {file.name: file.read_bytes() for file in out.iterdir()}
    again = run("score", base, *options(tuned), "--out", out)
    assert first.exit_code == again.exit_code == 0
    assert "compared before" in again.stderr
    assert "compared before" not in first.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == kept
    moved = tuned_copy(base, tmp_path / "moved", 9)
    other = run("score", base, *options({**tuned, "law": moved}), "--out", out)
    assert "compared before" not in other.stderr
    assert (out / "law.core.json").read_bytes() != kept["law.core.json"]
    assert (out / "math.core.json").read_bytes() == kept["math.core.json"]


def test_a_parameter_that_did_not_move_is_listed_without_a_score_and_told(tiny, tmp_path):
    base, name = tiny("llama"), "model.layers.1.mlp.up_proj.weight"
    tuned = {task: tuned_copy(base, tmp_path / task, seed, still=[name]) for seed, task in enumerate(("a", "b", "c"))}
    result = run("score", base, *options(tuned), "--method", "cs", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert f"did not move at all: {name}" in " ".join(result.stdout.split())
    core: CoreFile = read_artefact(tmp_path / "out" / "a.core.json", CoreFile)
    assert [p.name for p in core.parameters if p.score is None] == [name]


def test_sixteen_bits_that_rounded_the_update_away_are_warned_of(tiny, tmp_path):
    half = tuned_copy(tiny("llama"), tmp_path / "half", 0, dtype=torch.bfloat16, scale=0)
    tuned = {"a": tuned_copy(half, tmp_path / "a", 1, dtype=torch.bfloat16, scale=1e-5)}
    result = run("score", half, *options(tuned), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "saved in 16 bits" in result.stdout
    assert "Save fine-tuned models in float32" in " ".join(result.stdout.split())


def test_two_tasks_with_cs_are_warned_of_and_get_the_same_set(three, tmp_path):
    base, tuned = three
    two = {task: tuned[task] for task in ("math", "law")}
    result = run("score", base, *options(two), "--method", "cs", "--out", tmp_path / "out")
    assert "gives both the same core set" in result.stdout
    cores = [read_artefact(tmp_path / "out" / f"{task}.core.json", CoreFile) for task in two]
    assert jaccard(*cores) == (1.0, 1.0)


def test_select_is_what_score_would_have_selected(three, tmp_path):
    base, tuned = three
    run("score", base, *options(tuned), "--ratio", 0.05, "--out", tmp_path / "small")
    run("score", base, *options(tuned), "--ratio", 0.3, "--out", tmp_path / "large")
    files = [tmp_path / "small" / f"{task}.core.json" for task in tuned]
    result = run("select", *files, "--ratio", 0.3, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    for task in tuned:
        name = f"{task}.core.json"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()


def test_all_is_everything(three, tmp_path):
    base, tuned = three
    run("score", base, *options(tuned), "--ratio", 1, "--out", tmp_path / "all")
    core: CoreFile = read_artefact(tmp_path / "all" / "math.core.json", CoreFile)
    assert core.ratio_of_tensors == core.ratio_of_elements == 1.0


def test_core_files_go_into_map(three, tiny, tmp_path):
    base, tuned = three
    run("score", base, *options(tuned), "--out", tmp_path / "scores")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"Text number {i} tells of {i * i} things and of one more." for i in range(24)))
    core = tmp_path / "scores" / "math.core.json"
    command = [
        "map",
        "--src",
        base,
        "--dst",
        tiny("qwen3"),
        "--core",
        core,
        "--probe",
        texts,
        "--out",
        tmp_path / "map",
    ]
    result = run(*command, "--no-cache")
    assert result.exit_code == 0, result.stderr
    assert read_artefact(tmp_path / "map" / "math.core.json", CoreFile).transferred_from is not None


def test_deltas_can_be_inspected(three, tmp_path):
    base, tuned = three
    run("score", base, *options(tuned), "--out", tmp_path / "out")
    result = run("inspect", tmp_path / "out" / "deltas.json")
    assert result.exit_code == 0, result.stderr
    deltas: DeltaFile = read_artefact(tmp_path / "out" / "deltas.json", DeltaFile)
    largest = max(deltas.parameters, key=lambda p: max(p.norms))
    assert f"{max(largest.norms):.3g}" in result.stdout
    assert "elements as in the base" in result.stdout


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_models_that_do_not_fit_are_refused_with_every_difference(three, tiny, tmp_path):
    base, tuned = three
    message = refused("score", base, *options({**tuned, "other": tiny("llama")}), "--out", tmp_path / "out")
    assert "fine-tuned models that are not of" in message
    assert "other: lacks model.layers.0.self_attn.q_proj.bias" in message
    assert not (tmp_path / "out").exists()


def test_a_single_task_with_cs_is_refused(three, tmp_path):
    base, tuned = three
    message = refused("score", base, *options({"math": tuned["math"]}), "--method", "cs", "--out", tmp_path / "out")
    assert "cs compares tasks and needs at least two, found 1: math" in message


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--tuned", "math"], "'math' is not TASK=MODEL"),
        (["--tuned", "a=x", "--tuned", "a=y"], "task 'a' is given twice"),
        ([], "Missing option '--tuned'"),
        (["--tuned", "a=x", "--ratio", "0"], "0.0 is not in the range 0<x<=1"),
    ],
)
def test_options_that_cannot_be_meant(tiny, given, told):
    assert told in refused("score", tiny("llama"), *given)


def test_nan_in_a_tuned_model_is_named(three, tmp_path):
    base, tuned = three
    file = tuned["math"] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    message = refused("score", base, *options(tuned), "--out", tmp_path / "out")
    assert "NaN or Inf in model.layers.2.mlp.up_proj.weight" in message
    assert not list((tmp_path / "out").glob("*.json"))


def test_select_refuses_what_is_not_a_core_file(tmp_path):
    file = tmp_path / "x.core.json"
    file.write_text(json.dumps({"format": "trace-transfer/deltas"}))
    assert "expected trace-transfer/core" in refused("select", file, "--ratio", 0.1, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_function_has_the_names_and_defaults_of_the_command():
    import inspect

    from trace_transfer import score_models
    from trace_transfer.cli.score import score_command

    signature = inspect.signature(score_models)
    options = {parameter.name: parameter.default for parameter in score_command.params if parameter.name != "tuned"}
    for name, default in options.items():
        found = signature.parameters[name].default
        if name == "rules":
            assert found == ()
        elif name != "base":
            assert str(found) == str(default), name
    assert set(signature.parameters) - set(options) == {"tuned", "reporter"}
