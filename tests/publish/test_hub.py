"""What goes to the hub and comes from it, spoken with a hub on this machine through the real client."""

import json

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants
from safetensors.torch import load

from tests.commands import done, refused
from tests.core_files import core_of
from tests.local_hub import TOKEN, running_hub
from tests.patch_files import make_patch, same_bits, state_of, stored
from tests.stream_files import core_sets
from trace_transfer.core_sets.masks import Mask
from trace_transfer.errors import ArtefactError
from trace_transfer.formats import read_any
from trace_transfer.publish.hub import Destination, HubError, destination, local_file, push_files


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and a client that is logged in to it."""
    with running_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose protocol the hub here does not speak
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_who_may_write_where(hub):
    assert destination("model") == Destination("someone/model", False)
    assert destination("someone/model", private=True) == Destination("someone/model", True)
    assert destination("lab/model") == Destination("lab/model", False)
    with pytest.raises(HubError, match="--push-to-hub others/model: someone cannot write for 'others', only for someo"):
        destination("others/model")
    assert not hub.repos and not [asked for asked in hub.asked if not asked.startswith("GET")]


def test_who_cannot_write(hub, monkeypatch):
    def refused(told):
        with pytest.raises(HubError, match=told):
            destination("model")

    hub.role = "read"
    refused(r"the token of someone may only read; log in with one that may write")
    hub.role = "fineGrained"
    assert destination("model").repo == "someone/model"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("--push-to-hub model: .*HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    refused("--push-to-hub model: .*hf auth login")


def test_files_go_in_one_commit_and_can_be_fetched(hub, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    to = Destination("lab/cores", True)
    url = push_files(to, {"a.json": tmp_path / "a.json", "b.txt": "text"}, "Both")
    assert url == f"{hub.url}/lab/cores" and hub.private == {"lab/cores"} and hub.commits == ["Both"]
    assert hub.repos == {"lab/cores": {"a.json": b"{}", "b.txt": b"text"}}
    push_files(to, {"b.txt": "another", "deep/law.core.json": "[]"}, "Again")
    assert hub.repos["lab/cores"] == {"a.json": b"{}", "b.txt": b"another", "deep/law.core.json": b"[]"}
    for name, content in (("lab/cores:a.json", "{}"), ("lab/cores@main:deep/law.core.json", "[]")):
        assert local_file(name).read_text() == content
    with pytest.raises(ArtefactError, match=r"lab/cores:no.json: no.json of lab/cores could not be had from the hub"):
        local_file("lab/cores:no.json")
    for name in ("math.core.json", "runs/math.core.json", "/a/b/c.json", "C:math.json"):
        assert str(local_file(name)) == name
    hub.refuse = ("/api/models/lab/cores/commit",)
    with pytest.raises(HubError, match=r"lab/cores: a.json could not be sent to the hub: .*the same command sends"):
        push_files(to, {"a.json": "{}"}, "Cores")


def test_core_files_go_there_and_come_back(hub, tiny, tmp_path):
    source, target = tiny("llama"), tiny("qwen3")
    for task, core in core_sets(4).items():
        core_of(source, tmp_path / f"{task}.core.json", core, task=task)
    arguments = ["map", "--src", source, "--dst", target, "--batch-size", 64, "--splits", 0, "--out", tmp_path / "out"]
    cores = [part for task in core_sets(4) for part in ("--core", tmp_path / f"{task}.core.json")]
    result = done(*arguments, *cores, "--push-to-hub", "lab/cores", "--private")
    assert f"sent: {hub.url}/lab/cores" in result.stdout and hub.private == {"lab/cores"}
    sent = hub.repos["lab/cores"]
    assert sent.keys() == {"README.md", "layer_match.json", *(f"{task}.core.json" for task in core_sets(4))}
    assert sent["math.core.json"] == (tmp_path / "out/math.core.json").read_bytes()
    card = ModelCard(sent["README.md"].decode())
    assert card.data.tags == ["trace-transfer", "core-set"] and "base_model" not in card.data.to_dict()
    assert "carried over from `llama` (llama; scores)" in card.text
    back = ["map", "--src", target, "--dst", source, "--batch-size", 64, "--splits", 0, "--out", tmp_path / "back"]
    done(*back, "--core", "lab/cores:math.core.json")
    assert read_any(tmp_path / "back/math.core.json").transferred_from.model.id == str(target)


def test_a_tuned_model_with_its_record_and_patches(hub, trained):
    *_, out, command = trained
    result = done(*command, "--push-to-hub", "lab/tuned")
    assert f"sent: {hub.url}/lab/tuned" in result.stdout and not hub.private
    sent = hub.repos["lab/tuned"]
    for file in (out / "model").iterdir():
        assert sent[file.name] == file.read_bytes()
    names = ("stream.json", "verification.json", "math.patch.safetensors", "code.patch.safetensors")
    for name in names:
        assert sent[f"trace-transfer/{name}"] == (out / name).read_bytes()
    assert len(sent) == len(list((out / "model").iterdir())) + len(names)
    assert hub.commits == ["Model", "How it was made, and patches to undo it"]


def test_nothing_is_done_where_nothing_can_be_sent(hub, tiny, tmp_path, trained):
    *_, command = trained
    core = core_of(tiny("llama"), tmp_path / "c.core.json", core_sets(4)["math"])
    patch = make_patch(state_of(tiny("llama")), tmp_path / "p", Mask({"model.norm.weight": None}), 0).path
    out = ("--out", tmp_path / "out", "--push-to-hub", "others/model")
    for arguments in (
        (*command[:-2], *out),
        ("map", "--src", tiny("llama"), "--dst", tiny("qwen3"), "--core", core, *out),
        ("identify", tiny("llama"), "--tasks", command[3], *out),
        ("patch", "apply", tiny("llama"), patch, *out),
    ):
        assert "someone cannot write for 'others'" in refused(*arguments)
        assert not (tmp_path / "out").exists()
    assert "and none is carried; give --core" in refused(
        "map", "--src", tiny("llama"), "--dst", tiny("qwen3"), "--push-to-hub", "lab/cores"
    )
    assert not hub.repos


def test_a_patched_model_with_its_patches(hub, tiny, tmp_path):
    base, out = tiny("llama"), tmp_path / "out"
    patch = make_patch(state_of(base), tmp_path / "math.patch.safetensors", Mask({"model.norm.weight": None}), 0)
    result = done("patch", "apply", base, patch.path, "--out", out, "--push-to-hub", "tuned")
    assert f"sent: {hub.url}/someone/tuned" in result.stdout
    sent = hub.repos["someone/tuned"]
    assert sent["trace-transfer/math.patch.safetensors"] == patch.path.read_bytes()
    tensors = {name: value for file in sent if file.startswith("model-") for name, value in load(sent[file]).items()}
    assert same_bits(tensors, stored(out)) and json.loads(sent["config.json"])["model_type"] == "llama"
    assert "# llama, tuned on math" in sent["README.md"].decode()
