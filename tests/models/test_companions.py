"""What a written model has beside its weights: all that the base has, and nothing that is true of the base alone."""

import json
from pathlib import Path

import pytest

from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.models.model_directory import code_that_is_there
from trace_transfer.models.sources import ModelSource, download
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent

BELONGS = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "tekken.json", "vocab.json",
    "tokenizer.model", "tokenizer.model.v3", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/tools.jinja",
    "generation_config.json", "qwen.tiktoken", "merges.txt", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md",
    "special_tokens_map.json", "added_tokens.json", "custom_generate/generate.py", "modeling_mine.py",
)  # fmt: skip
LEFT = (
    "README.md", "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "tf_model.h5",
    "model.onnx", "flax_model.msgpack", "other.gguf", "adapter_config.json",
    "adapter_model.safetensors", "optimizer.pt",
    "trainer_state.json", "training_args.bin", "scheduler.pt", "rng_state_0.pth", "all_results.json", ".gitattributes",
    ".git/config", "checkpoint-500/optimizer.pt", "runs/events.json", "original/params.json", "tokenizer.bin",
    "custom_generate/.hidden", "data.jsonl", "picture.png",
)  # fmt: skip


def base_with(copy_of, names) -> Path:
    base: Path = copy_of("llama")
    for name in names:
        (base / name).parent.mkdir(exist_ok=True)
        if not (base / name).exists():
            (base / name).write_text("{}" if name.endswith(".json") else f"the content of {name}")
    return base


def written(base: Path, out: Path) -> Path:
    write_model(state_of(base), out, Silent())
    return out


def test_a_written_model_has_what_belongs_to_its_base(copy_of, tmp_path):
    base = base_with(copy_of, BELONGS)
    out = written(base, tmp_path / "out")
    for name in (*BELONGS, "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_and_nothing_else(copy_of, tmp_path):
    bare = written(base_with(copy_of, ()), tmp_path / "bare")
    expected = {file.relative_to(bare) for file in bare.rglob("*")}
    base = tmp_path / "models/llama"
    for name in LEFT:
        if name.startswith("adapter_"):
            continue  # an adapter in a model's directory is refused elsewhere
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    out = written(base, tmp_path / "out")
    assert {file.relative_to(out) for file in out.rglob("*")} - {Path("custom_generate")} == expected


@pytest.mark.parametrize("has_code", [True, False])
def test_auto_map_only_with_its_code(copy_of, tmp_path, has_code):
    base = base_with(copy_of, ("modeling_mine.py",) if has_code else ())
    maps = {
        "config.json": {"AutoModelForCausalLM": "modeling_mine.Mine", "AutoModel": "owner/name--modeling.Mine"},
        "tokenizer_config.json": {"AutoTokenizer": ["modeling_mine.Slow", None]},
        "processor_config.json": {"AutoProcessor": "modeling_mine.Processor"},
    }
    for name, auto_map in maps.items():
        values = json.loads((base / name).read_text()) if (base / name).exists() else {"image_size": 3}
        (base / name).write_text(json.dumps(values | {"auto_map": auto_map}))
    out = written(base, tmp_path / "out")
    for name, auto_map in maps.items():
        values, before = (json.loads((place / name).read_text()) for place in (out, base))
        kept = {key: value for key, value in auto_map.items() if has_code or "--" in str(value)}
        assert values.get("auto_map") == (kept or None), name
        if name != "config.json":
            assert {**values, "auto_map": 0} == {**before, "auto_map": 0}
    assert (out / "modeling_mine.py").exists() is has_code


@pytest.mark.parametrize(
    ("auto_map", "kept"),
    [
        ({"A": "here.X", "B": "gone.X", "C": "o/n--gone.X"}, {"A": "here.X", "C": "o/n--gone.X"}),
        ({"A": ["here.X", "gone.X"]}, None),
        ({"A": [None, "here.X"]}, {"A": [None, "here.X"]}),
        (["here.X", None], ["here.X", None]),  # of tokenizers, in an old form
        (["gone.X", None], None),
        ({"A": "noclass"}, None),
    ],
)
def test_which_code_is_there(tmp_path, auto_map, kept):
    (tmp_path / "here.py").touch()
    assert code_that_is_there(auto_map, tmp_path) == kept


def test_of_the_hub_the_same_files_are_fetched(monkeypatch, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    asked = {}

    def snapshot_download(repo, *, revision, allow_patterns):
        asked["patterns"] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert download(ModelSource("owner/name")) == tmp_path
    names = ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "README.md"]
    fetched = set(filter_repo_objects([*BELONGS, *names, *LEFT], allow_patterns=asked["patterns"]))
    assert fetched >= {*BELONGS, *names}
    assert not fetched & {"pytorch_model.bin", "consolidated.00.pth", "tf_model.h5", "model.onnx", "other.gguf"}
    assert not fetched & {"flax_model.msgpack", "optimizer.pt", ".git/config", "training_args.bin", "picture.png"}


def test_a_patched_model_has_them_too(copy_of, tmp_path):
    base = base_with(copy_of, BELONGS)
    state = state_of(base)
    state = state.apply(make_patch(state, tmp_path / "p.patch.safetensors", mask_of(state), 1))
    write_model(state, tmp_path / "out", Silent())
    assert all((tmp_path / "out" / name).is_file() for name in BELONGS)
