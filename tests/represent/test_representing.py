"""`represent` from models and tasks to its files, and what it refuses before it reads weights."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.patch_files import make_patch, mask_of, state_of
from tests.task_files import write_tasks
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.engine.loading import BaseModel
from trace_transfer.errors import ModelError, UserError
from trace_transfer.formats import read_any
from trace_transfer.models.sources import ModelSource
from trace_transfer.patch.model_state import StateError
from trace_transfer.progress import Silent
from trace_transfer.represent.draw import METADATA_TEXTS, centroid_distances, silhouette, spread
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.represent.representing import FILES, name_models, open_states
from trace_transfer.represent.representing import plan_representation as planned
from trace_transfer.represent.representing import run_representation as run
from trace_transfer.represent.settings import RepresentSettings

SMALL = RepresentSettings(perplexity=6, batch_size=4)


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "tasks")


@pytest.fixture
def patched(tiny, tmp_path):
    """A tiny model after one made-up stage."""
    base = state_of(tiny("llama"))
    return base.apply(make_patch(base, tmp_path / "math.patch.safetensors", mask_of(base), 0))


def represent(models, tasks, out, settings=SMALL):
    return run(planned(models, tasks, settings), out, Silent())


def test_files_say_what_the_embeddings_say(tiny, tasks, patched, tmp_path):
    out = tmp_path / "out"
    file = represent({"base": tiny("llama"), "after math": patched}, tasks, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert read_any(out / "representation.json", RepresentationFile) == file
    assert (file.tasks, file.num_texts) == (("math", "code", "law"), (10, 8, 12))
    assert file.settings["space"] == "unified"
    tensors, task_N = load_file(out / "embeddings.safetensors"), np.repeat([0, 1, 2], file.num_texts)
    assert set(tensors) == {f"{label}.{kind}" for label in ("base", "after math") for kind in ("embeddings", "tsne")}
    for model in file.models:
        found = tensors[f"{model.label}.embeddings"]
        assert found.shape == (30, 48)
        assert tensors[f"{model.label}.tsne"].shape == (30, 2)
        assert model.silhouette == pytest.approx(silhouette(found.numpy(), task_N))
        assert np.allclose(model.distances, centroid_distances(found.numpy(), task_N))
        assert np.allclose(model.spread, spread(found.numpy(), task_N))
    base, after = file.models
    assert base.fingerprint != after.fingerprint == patched.fingerprint
    assert base.model == after.model
    assert not torch.allclose(tensors["base.embeddings"], tensors["after math.embeddings"], atol=1e-2)
    with safe_open(out / "embeddings.safetensors", "pt") as opened:
        texts = json.loads(opened.metadata()[METADATA_TEXTS])
    assert texts[0] == {"id": "math:0", "words": "What is math 0?"}
    assert [text["id"].split(":")[0] for text in texts] == ["math"] * 10 + ["code"] * 8 + ["law"] * 12


def test_a_patched_state_is_read_with_its_values(tiny, tasks, patched, tmp_path):
    """Against transformers' own forward pass of a model with the values put in by hand, one text at a time."""
    plan = planned({"after": patched}, tasks, SMALL)
    run(plan, tmp_path / "out", Silent())
    model = BaseModel(ModelSource.parse(tiny("llama"))).load(torch.float32).eval()
    with torch.no_grad():
        for name in patched.patched:
            model.get_parameter(name).copy_(patched.value(name))
        expected = [
            model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0].mean(dim=0)
            for text in plan.models[0].ids
        ]
    found = load_file(tmp_path / "out" / "embeddings.safetensors")["after.embeddings"]
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_the_same_again_is_the_same(tiny, tasks, tmp_path):
    models = {"one": tiny("llama"), "two": tiny("qwen3")}
    first = represent(models, tasks, tmp_path / "a")
    assert represent(models, tasks, tmp_path / "b") == first
    for name in FILES[:2] + FILES[3:]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_models_of_other_widths_have_a_space_each(tiny, tasks, tmp_path):
    together = represent({"llama": tiny("llama"), "phi": tiny("phi3")}, tasks, tmp_path / "together")
    assert together.settings["space"] == "separate"
    represent({"phi": tiny("phi3")}, tasks, tmp_path / "alone")
    found, alone = (load_file(tmp_path / name / "embeddings.safetensors") for name in ("together", "alone"))
    assert found["llama.embeddings"].shape[1] != found["phi.embeddings"].shape[1]
    assert torch.equal(found["phi.tsne"], alone["phi.tsne"])


def test_max_examples_and_max_length(tiny, tasks, tmp_path):
    settings = RepresentSettings(perplexity=4, max_examples=5, max_length=6, pool="last")
    plan = planned({"m": tiny("llama")}, tasks, settings)
    assert plan.num_texts == (5, 5, 5)
    assert {len(text) for text in plan.models[0].ids} == {6}
    assert plan.models[0].num_cut == 15
    assert run(plan, tmp_path / "out", Silent()).settings["num_cut"] == {"m": 15}


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr("trace_transfer.engine.loading.load_model", lambda *a, **k: pytest.fail("weights were read"))


@pytest.mark.usefixtures("no_weights")
def test_one_task_and_too_few_texts_are_refused(tiny, tmp_path):
    model = {"m": tiny("llama")}
    with pytest.raises(UserError, match=r"one task; how tasks are kept apart needs two at least"):
        planned(model, write_tasks(tmp_path / "a", {"math": 9}), SMALL)
    with pytest.raises(TaskError, match=r"each task needs 3 texts at least(.|\n)*code: 2\n(.|\n)*law: 1"):
        planned(model, write_tasks(tmp_path / "b", {"math": 9, "code": 2, "law": 1}), SMALL)
    few = write_tasks(tmp_path / "c", {"math": 5, "code": 5})
    with pytest.raises(UserError, match=r"10 texts are too few for t-SNE of perplexity 10(.|\n)*--perplexity 2"):
        planned(model, few, RepresentSettings(perplexity=10))


@pytest.mark.usefixtures("no_weights")
def test_a_tokenizer_of_another_model_and_texts_too_long_for_it(tiny, copy_of, tasks):
    other, bare = copy_of("llama", vocab_size=40), copy_of("gpt2")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    for model, told in (
        (bare, "tokenizer"),
        (other, "the tokenizer belongs to another model"),
        (tiny("gpt2", n_positions=8), r"was made for 8 tokens.*--max-length 8"),
    ):
        with pytest.raises(ModelError, match=told):
            planned({"m": model}, tasks, SMALL)


def test_labels():
    assert name_models(["me/base"], [("tuned", "/b/model")]) == {"base": "me/base", "tuned": "/b/model"}
    with pytest.raises(UserError, match=r"models of the same label(.|\n)*model: a/model\n(.|\n)*model: /b"):
        name_models(["a/model", "c/other"], [("model", "/b")])


def test_patches_belong_to_a_label_and_follow_each_other(tiny, tasks, patched, tmp_path):
    base = tiny("llama")
    second = make_patch(patched, tmp_path / "code.patch.safetensors", mask_of(patched, seed=1), 1, task="code")
    first = patched.patches[0].path
    states = open_states({"base": base, "after": base}, [("after", first), ("after", second.path)])
    assert [len(state.patches) for state in states.values()] == [0, 2]
    assert states["after"].fingerprint == patched.apply(second).fingerprint
    with pytest.raises(UserError, match=r"patches of no model; the labels are base(.|\n)*tuned="):
        open_states({"base": base}, [("tuned", first)])
    twice = open_states({"m": base}, [("m", first), ("m", first)])
    with pytest.raises(StateError, match="not in the state"):
        represent(twice, tasks, tmp_path / "out")
