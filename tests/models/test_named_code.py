"""Fields of a model's JSON files that name code or files from elsewhere: refused before anything is fetched or run."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.integrations import hub_kernels

from trace_transfer.errors import ModelError
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.models import sources
from trace_transfer.models.sources import ModelSource, build_meta_model, load_config

MARK = "ran.txt"


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection or fetches a kernel fails the test, with an error that nothing catches."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail(f"asked for {arguments[:2]}")

    for owner, names in (
        (socket.socket, ("connect", "connect_ex")), (socket, ("create_connection", "getaddrinfo")),
        (hub_kernels, ("get_kernel",)),
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)  # as on a machine that has the package


def change(directory: Path, file: str, **fields: Any) -> Path:
    """A model whose JSON file has other fields, and that has code which leaves a mark wherever it is run."""
    values = json.loads((directory / file).read_text("utf-8"))
    (directory / file).write_text(json.dumps(values | fields), "utf-8")
    for name in ("evil.py", "custom_generate/generate.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(f"open({str(directory / MARK)!r}, 'w')\nclass Evil: pass\ngenerate = Evil\n")
    return directory


@pytest.mark.parametrize(("fields", "told"), [
    ({"attn_implementation": "owner/name"}, "attn_implementation: 'owner/name'"),
    ({"attn_implementation": {"": "sdpa", "text_config": "owner/name"}}, "text_config: 'owner/name'"),
    ({"per_layer_config": [{}, {"attn_implementation": "o/n"}]}, "per_layer_config.1.attn_implementation: 'o/n'"),
    ({"experts_implementation": "sonicmoe"}, "experts_implementation: 'sonicmoe'"),
    ({"transformers_weights": "../other.safetensors"}, "transformers_weights: '../other.safetensors'"),
])  # fmt: skip
def test_a_config_that_asks_for_code_is_refused(copy_of, fields, told):
    model = change(copy_of("llama"), "config.json", **fields)
    with pytest.raises(ModelError, match=r"config\.json asks for code or files from elsewhere") as refused:
        build_meta_model(load_config(ModelSource.parse(model)))
    assert told in str(refused.value)


def test_the_config_that_transformers_would_take_is_looked_at(copy_of):
    """`configuration_files` sends transformers from `config.json` to another file."""
    model = copy_of("llama")
    harmless = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.4.0.0.json").write_text(json.dumps(harmless | {"attn_implementation": "owner/name"}))
    change(model, "config.json", configuration_files=["config.4.0.0.json"])
    with pytest.raises(ModelError, match="attn_implementation: 'owner/name'"):
        load_config(ModelSource.parse(model))


def test_what_models_are_saved_with_passes(copy_of):
    """Code that is named beside a known `model_type` is left alone, and `custom_generate/` is not run."""
    fields = {
        "attn_implementation": "eager", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        "_name_or_path": "owner/name", "custom_generate": "owner/name", "use_kernels": True,
    }  # fmt: skip
    model = change(copy_of("llama"), "config.json", **fields)
    assert build_meta_model(load_config(ModelSource.parse(model))).config._attn_implementation == "eager"
    assert not (model / MARK).exists()
    for kind in ("llama", "gemma3", "gpt_oss", "deepseek_v3", "mixtral", "qwen3_moe", "gpt2", "mistral3", "phi3"):
        sources._refuse_code(kind, json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False)))


def test_a_tokenizers_own_code_and_paths_are_not_used(copy_of, tmp_path):
    """Neither code nor files outside of the directory, of which old versions of transformers wrote the paths."""
    model = copy_of("llama")
    expected = load_tokenizer(ModelSource.parse(model)).encode("the quick brown fox")
    other = str(tmp_path / "another.json")
    change(
        model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_file=other,
        special_tokens_map_file=other, vocab_file=other,
    )  # fmt: skip
    (tmp_path / "another.json").write_text("{}")
    assert load_tokenizer(ModelSource.parse(model)).encode("the quick brown fox") == expected
    assert not (model / MARK).exists()
