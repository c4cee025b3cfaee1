"""The card beside each saved model: what the hub reads of it, where things came from, and what is left out."""

import re
import shlex
import shutil

import torch
from huggingface_hub import ModelCard

from tests.commands import done
from tests.core_files import core_of
from tests.patch_files import make_patch, same_bits, state_of, stored
from tests.publish.conftest import LICENSED
from tests.stream_files import core_sets
from trace_transfer.core_sets.core_file import Transfer
from trace_transfer.core_sets.masks import Mask
from trace_transfer.files import sha256_file
from trace_transfer.formats import read_any
from trace_transfer.models.sources import ModelSource
from trace_transfer.publish.model_card import CARD, Base, CoreOrigin, trained_card

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


def test_what_was_changed_and_proved(trained):
    base, stream, out, _ = trained
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
    assert not any(str(path.parent) in text for path in (base, stream.parent, out))  # nothing of this machine


def test_the_commands_in_it_work(trained, tmp_path):
    base, _, out, _ = trained
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
    base, stream, out, _ = trained
    again = shutil.copytree(out, tmp_path / "again")
    (again / "model" / CARD).write_text("mine")
    done("train", base, "--stream", stream, "--batch-size", 4, "--epochs", 1, "--zero", 0, "--out", again)
    assert (again / "model" / CARD).read_text() == "mine"


def test_a_base_of_the_hub_is_named(trained, tmp_path):
    """As the hub's cache lays its snapshots out; their commit is known."""
    base, _, out, _ = trained
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(base, tmp_path / f"models--owner--small-llama/snapshots/{commit}")
    shapes, records = state_of(out / "model").shapes, map(read_any, (out / "stream.json", out / "verification.json"))
    card = ModelCard(trained_card(ModelSource.parse(snapshot), shapes, *records, datasets=("owner/maths",)))
    more = {"base_model_relation": "finetune", "datasets": ["owner/maths"], **TUNED}
    assert card.data.to_dict() == {"base_model": "owner/small-llama", **more}
    assert f"[owner/small-llama](https://huggingface.co/owner/small-llama) at revision `{commit}`" in card.text


def test_a_licence_that_is_not_known_is_left_out(tiny, tmp_path):
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    assert Base.of(ModelSource.parse(base)).licence == {}
    for text in ("# no front matter", "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n"):
        (base / CARD).write_text(text)
        assert Base.of(ModelSource.parse(base)).licence == {}


def test_where_a_carried_core_set_came_from(tiny, tmp_path):
    core = read_any(core_of(tiny("llama"), tmp_path / "math.core.json", core_sets(4)["math"]))
    model = core.model.model_copy(update={"id": "/home/someone/models/Tiny-Qwen"})
    transfer = Transfer(
        model=model, core_sha256="0" * 64, layer_match_sha256="1" * 64, rules=("qwen3", "llama"), carry="scores"
    )
    core = core.model_copy(update={"transferred_from": transfer})
    assert CoreOrigin(core, "").told.endswith("; carried over from `Tiny-Qwen` (llama; scores)")


def test_a_patched_model(tiny, tmp_path):
    base = shutil.copytree(tiny("llama", dtype=torch.bfloat16), tmp_path / "base")
    (base / CARD).write_text(LICENSED)
    state = state_of(base)
    patch = make_patch(state, tmp_path / "math.patch.safetensors", Mask({"model.norm.weight": None}), 0)
    done("patch", "apply", base, patch.path, "--out", tmp_path / "tuned")
    card = read(tmp_path / "tuned")
    assert card.data.license_name == "mine" and card.data.tags == ["trace-transfer"]
    assert "base_model" not in card.data.to_dict()  # a directory: where it is from is not known
    assert f"`math.patch.safetensors`: SHA-256 `{patch.sha256}`" in card.text
    done("patch", "revert", tmp_path / "tuned", patch.path, "--out", tmp_path / "back")
    back = read(tmp_path / "back")
    assert back.text.lstrip().startswith("# tuned, before math\n") and "| 1 | `math` | reverted |" in back.text
    assert "license" not in back.data.to_dict() and "patch revert" not in back.text
