"""A second command on the same output directory: refused with exit code 2, and nothing of the first one is touched."""

import os

import pytest

from tests.commands import refused
from tests.patch_files import make_patch, mask_of, state_of
from tests.stream_files import write_stream
from trace_transfer.files import held


@pytest.mark.parametrize("command", ["train", "patch apply"])  # works in it; puts it there whole
def test_the_second_is_refused(tiny, tmp_path, command):
    model, out = tiny("qwen2", num_hidden_layers=2), tmp_path / "out"
    if command == "train":
        arguments = ["--stream", write_stream(tmp_path / "stream", model, 2)]
    else:
        base = state_of(model)
        arguments = [make_patch(base, tmp_path / "math.patch.safetensors", mask_of(base), 0).path]
    with held(out, replaced=command != "train"):
        before = sorted(tmp_path.rglob("*"))
        told = refused(*command.split(), model, *arguments, "--out", out)
        assert f"{out}: another process is at work here (process {os.getpid()} on " in told
        assert sorted(tmp_path.rglob("*")) == before
