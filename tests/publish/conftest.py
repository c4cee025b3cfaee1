"""A finished stream, trained once for the tests of this folder."""

import shutil

import pytest

from tests.commands import done
from tests.stream_files import write_stream
from trace_transfer.publish.model_card import CARD

LICENCE = "license: other\nlicense_name: mine\nlicense_link: https://example.org/licence\n"
LICENSED = f"---\n{LICENCE}language: en\n---\n# Base\n"


@pytest.fixture(scope="package")
def trained(tiny, tmp_path_factory):
    """A base with a card of its own, the stream's file, where it was trained, and the command that goes on with it."""
    base = shutil.copytree(tiny("llama", num_hidden_layers=3), tmp_path_factory.mktemp("base") / "small-llama")
    (base / CARD).write_text(LICENSED)
    stream, out = write_stream(tmp_path_factory.mktemp("stream"), base, 3), tmp_path_factory.mktemp("out")
    command = ["train", base, "--stream", stream, "--batch-size", 4, "--epochs", 1, "--zero", 0, "--out", out]
    done(*command)
    return base, stream, out, command
