"""The card beside each saved model: what the hub reads of it, where things came from, and what is left out."""

import json
import re
import shlex
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from tests.commands import done
from tests.patch_files import make_patch, same_bits, state_of, stored
from tests.stream_files import core_sets, write_core_set, write_stream
from trace_transfer.core_sets.core_file import Transfer
from trace_transfer.core_sets.masks import Mask
from trace_transfer.files import sha256_file, write_text
from trace_transfer.formats import read_any
from trace_transfer.models.sources import ModelSource
from trace_transfer.publish.model_card import CARD, Base, CoreOrigin, cores_card, patched_card, trained_card
from trace_transfer.records import to_json

LICENCE = "license: other\nlicense_name: mine\nlicense_link: https://example.org/licence\n"
LICENSED = f"---\n{LICENCE}language: en\n---\n# Base\n"
TUNED = {  # front matter of whatever was trained on a base of that licence
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["trace-transfer", "continual-learning", "trace"],
    "license": "other",
    "license_name": "mine",
    "license_link": "https://example.org/licence",
}


def read(directory):
    return ModelCard.load(directory / CARD)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """`train` on a base with a card of its own."""
    base = shutil.copytree(tiny("llama", num_hidden_layers=3), tmp_path_factory.mktemp("base") / "small-llama")
    (base / CARD).write_text(LICENSED)
    stream = write_stream(tmp_path_factory.mktemp("stream"), base, 3)
    out = tmp_path_factory.mktemp("out")
    done("train", base, "--stream", stream, "--batch-size", 4, "--epochs", 1, "--zero", 0, "--out", out)
    return base, stream, out


def test_what_was_changed_and_proved(trained):
    base, stream, out = trained
    assert read(out / "model").data.to_dict() == TUNED
    text, record = read(out / "model").text, read_any(out / "stream.json")
    assert text.lstrip().startswith("# small-llama, tuned on math and code\n")
    shapes = state_of(out / "model").shapes
    for number, stage in enumerate(record.stages, start=1):
        share = f"{stage.num_parameters} of {len(shapes)} ({stage.num_parameters / len(shapes):.3%})"
        assert f"| {number} | `{stage.label}` | {stage.num_examples} | {stage.num_steps} | {share} |" in text
        assert f"`{stage.patch}`: SHA-256 `{stage.patch_sha256}`" in text
        file = stream.parent / f"{stage.label}.core.json"
        assert f"{CoreOrigin(read_any(file), '').told}. Core file: SHA-256 `{sha256_file(file)}`" in text
    assert "tensor by tensor: nothing outside of what was trained moved." in text
    for what, count in read_any(out / "verification.json").counts.items():
        assert f"| {what} | {count.parameters:,} | {count.elements:,} |" in text
    assert "- method: trace\n- epochs: 1\n- learning rate: 2e-05\n- batch size: 4\n" in text
    assert "lora" not in text and record.model.names_sha256 in text
    for path in (base, stream.parent, out):  # nothing of this machine is told
        assert str(path) not in text and str(path.parent) not in text


def test_the_commands_in_it_work(trained, tmp_path):
    base, _, out = trained
    text = read(out / "model").text
    (command,) = re.findall(r"^trace-transfer (patch revert .*)$", text, re.MULTILINE)
    places = {"THIS_MODEL": out / "model", "before": tmp_path / "before"}
    places |= {name: out / name for name in ("math.patch.safetensors", "code.patch.safetensors")}
    done(*(places.get(word, word) for word in shlex.split(command)))
    assert same_bits(stored(tmp_path / "before"), stored(base))
    namespace = {}
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("THIS_MODEL", str(out / "model"))
    exec(code, namespace)
    assert namespace["model"].config.model_type == "llama" and namespace["tokenizer"]("a")["input_ids"]


def test_a_card_that_is_there_is_left_alone(trained, tmp_path):
    base, stream, out = trained
    again = shutil.copytree(out, tmp_path / "again")
    (again / "model" / CARD).write_text("mine")
    done("train", base, "--stream", stream, "--batch-size", 4, "--epochs", 1, "--zero", 0, "--out", again)
    assert (again / "model" / CARD).read_text() == "mine"
    assert read_any(again / "verification.json").ok


def card_of(out, source, method="trace", **more):
    record = read_any(out / "stream.json")
    record = record.model_copy(update={"settings": {**record.settings, "method": method}})
    return trained_card(source, state_of(out / "model").shapes, record, read_any(out / "verification.json"), **more)


def test_a_base_of_the_hub_is_named(trained, tmp_path):
    """As the hub's cache lays its snapshots out; their commit is known."""
    base, _, out = trained
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(base, tmp_path / f"models--owner--small-llama/snapshots/{commit}")
    card = ModelCard(card_of(out, ModelSource.parse(snapshot), datasets=("owner/maths", "owner/code")))
    assert card.data.to_dict() == {
        "base_model": "owner/small-llama",
        "base_model_relation": "finetune",
        "datasets": ["owner/maths", "owner/code"],
        **TUNED,
    }
    assert f"[owner/small-llama](https://huggingface.co/owner/small-llama) at revision `{commit}`" in card.text


def test_a_licence_that_is_not_known_is_left_out(tiny, tmp_path):
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    assert Base.of(ModelSource.parse(base)).licence == {}
    for text in ("", "# no front matter", "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n", "---\n- a\n---\n"):
        (base / CARD).write_text(text)
        assert Base.of(ModelSource.parse(base)).licence == {}


def test_other_methods(trained):
    _, _, out = trained
    card = ModelCard(card_of(out, ModelSource.parse(out / "model"), "lora"))
    assert "trace" not in card.data.tags and "- lora rank: 8\n- lora alpha: 16" in card.text
    assert "core set" not in card.text.lower() and "arxiv" not in card.text


def test_where_a_carried_core_set_came_from(tiny, tmp_path):
    file = write_core_set(tiny("llama"), tmp_path / "math.core.json", "math", core_sets(4)["math"])
    core = read_any(file)
    match = tmp_path / "layer_match.json"
    model = core.model.model_copy(update={"id": "/home/someone/models/Tiny-Qwen"})
    transfer = Transfer(
        model=model, core_sha256="0" * 64, layer_match_sha256="1" * 64, rules=("qwen3", "llama"), carry="scores"
    )
    core = core.model_copy(update={"transferred_from": transfer})
    file.write_text(to_json(core))
    assert CoreOrigin.of(core, file).told.endswith("; carried over from `Tiny-Qwen` (llama; scores)")
    write_text(match, json.dumps({"not": "the match that it was carried along"}))
    assert CoreOrigin.of(core, file).policy is None


def test_a_patched_model(tiny, tmp_path):
    base = shutil.copytree(tiny("llama", dtype=torch.bfloat16), tmp_path / "base")
    (base / CARD).write_text(LICENSED)
    state = state_of(base)
    patch = make_patch(state, tmp_path / "math.patch.safetensors", Mask({"model.norm.weight": None}), 0)
    done("patch", "apply", base, patch.path, "--out", tmp_path / "tuned")
    card = read(tmp_path / "tuned")
    assert card.data.license_name == "mine" and card.data.tags == ["trace-transfer"]
    assert "base_model" not in card.data.to_dict()  # a directory: where it is from is not known
    assert f"| 1 | `math` | applied | trace | 1 of {len(state.shapes)} (" in card.text
    assert f"`math.patch.safetensors`: SHA-256 `{patch.sha256}`" in card.text
    done("patch", "revert", tmp_path / "tuned", patch.path, "--out", tmp_path / "back")
    assert patched_card(state.apply(patch)) == patched_card(state_of(base).apply(patch))
    back = read(tmp_path / "back")
    assert back.text.lstrip().startswith("# tuned, before math\n") and "| 1 | `math` | reverted |" in back.text
    assert "license" not in back.data.to_dict() and "patch revert" not in back.text


def test_core_files(tiny, tmp_path):
    file = write_core_set(tiny("llama"), tmp_path / "math.core.json", "math", core_sets(4)["math"])
    core = read_any(file)
    card = ModelCard(cores_card([(core, file)], ModelSource("owner/small@v1", None, None, "v1")))
    assert card.data.to_dict() == {"base_model": "owner/small", "tags": ["trace-transfer", "core-set"]}
    assert "[owner/small](https://huggingface.co/owner/small) at revision `v1`" in card.text
    assert f"`names_sha256` `{core.model.names_sha256}`" in card.text
    assert "| `math.core.json` | 2 | score `lf`" in card.text
