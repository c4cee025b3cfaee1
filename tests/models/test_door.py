"""Kinds of model directories x commands: one verdict in every cell, and transformers' values where it is usable."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from tests.evaluation_files import write_suite
from tests.model_kinds import REFUSED, USABLE, make_base, make_kind
from tests.task_files import write_tasks
from tests.tiny_models import TEXTS
from trace_transfer.cli import main
from trace_transfer.engine.loading import load_model
from trace_transfer.errors import ModelError
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.sources import ModelSource, build_meta_model, inventory_of, load_config
from trace_transfer.progress import telling

NORM = "model.norm.weight"


def commands(model: Path, place: Path, base: Path) -> dict[str, list[object]]:
    """Commands that are given a model, with the files that they need beside it, made of a base."""
    write_tasks(place)
    write_suite(place)
    (place / "texts.txt").write_text("\n\n".join(TEXTS))
    return {
        "map": ["map", "--src", model, "--dst", base, "--probe", place / "texts.txt", "--out", place / "out"],
        "identify": ["identify", model, "--tasks", place / "tasks.yaml", "--batch-size", 4, "--out", place / "out"],
        "evaluate": ["evaluate", model, "--suite", place / "mine.yaml", "--out", place / "out"],
        "rules check": ["rules", "check", "--model", model],
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("kinds") / "base")


def call(arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(base, tmp_path, kind):
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        load_config(ModelSource.parse(make_kind(base, tmp_path / "model", make)))


def test_refused_by_every_command_in_the_same_words(base, tmp_path):
    make, message = REFUSED["several things"]
    directory = make_kind(base, tmp_path / "model", make)
    with pytest.raises(ModelError, match=message) as caught:
        load_config(ModelSource.parse(directory))
    verdict = " ".join(str(caught.value).split())
    for command, arguments in commands(directory, tmp_path / "place", base).items():
        result = call(arguments)
        assert result.exit_code == 2, (command, result.output, result.exception)
        assert verdict in " ".join(result.stderr.split()), command
    assert not list((tmp_path / "place/out").rglob("*")), "something was written"


@pytest.mark.parametrize("kind", USABLE)
def test_both_readers_give_the_values_of_transformers(base, tmp_path, kind):
    """`load_model` is what trains and is evaluated; `load` what `map` reads; `chunks` what is compared and written."""
    make, note = USABLE[kind]
    directory, told = make_kind(base, tmp_path / "model", make), []
    tokens = torch.arange(40)[None]
    with torch.no_grad(), telling(told.append):
        expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        source = ModelSource.parse(directory)
        config = load_config(source)
        streamed, weights = build_meta_model(config), open_checkpoint(source)
        inventory = inventory_of(streamed)
        weights.load(streamed, lambda name: True, "cpu", torch.float32)
        streamed.tie_weights(missing_keys={name for name, value in streamed.named_parameters() if value.is_meta})
        loaded = load_model(source, torch.float32).eval()
        for model in (streamed, loaded):
            assert torch.equal(model(tokens).logits, expected(tokens).logits)
        for name, parameter in expected.named_parameters():
            assert torch.equal(
                torch.cat(list(weights.chunks(streamed, name, inventory.shapes[name]))), parameter.flatten()
            )
    assert len(told) == (note is not None) and (note is None or re.search(note, told[0]))
