"""A tokenizer is the model's own, or none: what transformers makes up where files are missing is refused."""

import json

import pytest

from tests.tiny_models import TEXTS, build_config, build_tokenizer
from trace_transfer.errors import ModelError
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.models.sources import ModelSource

# Families for which transformers raises, makes a tokenizer that drops all, and makes one that knows nothing.
FAMILIES = ("llama", "qwen2", "gemma3_text")


def opened(place):
    return load_tokenizer(ModelSource.parse(place))


def write(directory, family, tokenizer):
    """A model's config and a tokenizer; no weights are looked at here."""
    build_config(family).save_pretrained(directory)
    build_tokenizer(tokenizer).save_pretrained(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_none_or_one_that_makes_nothing_of_a_text(tmp_path, family):
    write(tmp_path, family, "prose")
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"] |= {"vocab": {"<s>": 0}, "merges": []}
    file.write_text(json.dumps(state))
    with pytest.raises(ModelError, match=r"ordinary text becomes no token .*; copy them"):
        opened(tmp_path)
    file.unlink()  # `tokenizer_config.json` stays: it has no words
    with pytest.raises(ModelError, match=rf"^{tmp_path}: .*tokenizer"):
        opened(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_is_read_as_it_stands(tmp_path, family):
    write(tmp_path, family, "code")
    own = build_tokenizer("code")
    found = opened(tmp_path)
    assert [found(text)["input_ids"] for text in TEXTS] == [own(text)["input_ids"] for text in TEXTS]
