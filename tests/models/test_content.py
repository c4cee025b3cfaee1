"""Sums of what files hold: remembered while a file is not touched, the same wherever it lies."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from trace_transfer.models import content
from trace_transfer.models.checkpoints import SafetensorsCheckpoint, hash_weights
from trace_transfer.models.content import (
    config_files_sha256,
    config_sha256,
    file_sums,
    tokenizer_sha256,
    weights_sha256,
)
from trace_transfer.progress import Silent


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache directory, and a process that has hashed nothing yet."""
    monkeypatch.setenv("TRACE_TRANSFER_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache"


def forget(monkeypatch) -> None:
    """As a new process."""
    monkeypatch.setattr(content, "_seen", {})


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that were read, in the order of their names."""
    names: list[str] = []
    real = content._hash
    monkeypatch.setattr(content, "_hash", lambda path, advance: names.append(path.name) or real(path, advance))
    return names


@pytest.fixture(autouse=True)
def settled(monkeypatch) -> None:
    """Files made just now are as good as old ones, but where a test says otherwise."""
    monkeypatch.setattr(content, "SETTLED", -10.0)


def write(file: Path, text: str = "some weights") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def sums(*files: Path) -> list[str]:
    return file_sums(files, Silent())


def test_of_one_file_as_sha256sum_says_of_several_whatever_they_are_called(tmp_path, cache):
    assert weights_sha256([write(tmp_path / "c")]) == hashlib.sha256(b"some weights").hexdigest()
    one = [write(tmp_path / "a", "one"), write(tmp_path / "b", "two")]
    other = [write(tmp_path / "x/2", "one"), write(tmp_path / "x/1", "two")]
    assert weights_sha256(one) == weights_sha256(other) != weights_sha256(one[:1])
    assert weights_sha256([*one, one[0]]) != weights_sha256(one)


def test_a_file_is_hashed_once(tmp_path, cache, hashed, monkeypatch):
    file = write(tmp_path / "a b")
    first = sums(file)
    for _ in range(2):
        forget(monkeypatch)
        assert sums(file) == first
    link = tmp_path / "link"
    link.symlink_to(file)
    assert sums(link) == first
    assert hashed == ["a b"]


@pytest.mark.parametrize("how", ["touched", "same size", "same size and time", "replaced"])
def test_a_file_that_was_changed_is_hashed_again(tmp_path, cache, hashed, how):
    file = write(tmp_path / "a")
    stat = file.stat()
    before = sums(file)
    time.sleep(0.02)  # the clock of a file system ticks a hundred times a second
    if how == "replaced":
        write(tmp_path / "b", "Some weights").replace(file)
    elif how != "touched":
        file.write_text("Some weights")
    if how in ("same size and time", "replaced"):
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif how == "touched":
        os.utime(file)
    after = sums(file)
    assert hashed == ["a", "a"] and file.stat().st_size == stat.st_size
    assert (after == before) is (how == "touched")


def test_holes_are_not_read(tmp_path, cache):
    """80 GB of nothing stand in for two models in an example."""
    start, files = time.perf_counter(), [tmp_path / name for name in "abcd"]
    for file, where, text in zip(files, (1 << 20, 1 << 20, 1 << 30, 1 << 20), ("x", "y", "x", "x"), strict=True):
        with file.open("wb") as stream:
            stream.truncate(1 << 40)
            stream.seek(where)
            stream.write(text.encode())
    one, two, three, four = sums(*files)
    assert one == four and len({one, two, three}) == 3
    assert time.perf_counter() - start < 5


def test_a_model_that_was_copied_is_the_same(tiny, tmp_path, cache, hashed):
    copied = shutil.copytree(tiny("phi3"), tmp_path / "copy", copy_function=shutil.copyfile)
    one, other = SafetensorsCheckpoint(tiny("phi3")), SafetensorsCheckpoint(copied)
    hash_weights([tiny("phi3"), copied, None, tmp_path / "none", "owner/name"], Silent())
    count = len(hashed)
    assert one.fingerprint == other.fingerprint and len(hashed) == count == 2 * len(one.files)
    assert config_files_sha256(tiny("phi3")) == config_files_sha256(copied)
    assert tokenizer_sha256(tiny("phi3")) == tokenizer_sha256(copied)


def test_what_of_a_config_counts():
    config = {"hidden_size": 8, "rope": {"theta": 1e4, "name_or_path": "x"}, "dtype": "float32"}
    same = {
        "torch_dtype": "float32",
        "rope": {"theta": 1e4},
        "hidden_size": 8,
        "transformers_version": "4",
        "_name_or_path": "a/b",
    }
    assert config_sha256(config) == config_sha256(same)
    assert config_sha256(config) != config_sha256({**config, "rope": {"theta": 1e5}})


def test_what_of_a_tokenizer_counts(copy_of):
    directory = copy_of("llama")
    before = tokenizer_sha256(directory)
    file = directory / "tokenizer_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(list(values.items()))) | {"name_or_path": "elsewhere"}))
    write(directory / "README.md", "another")
    write(directory / "preprocessor_config.json", "{}")
    assert tokenizer_sha256(directory) == before
    write(directory / "additional_chat_templates/tools.jinja", "{{ messages }}")
    assert len({before, with_tools := tokenizer_sha256(directory)}) == 2
    file.write_text(json.dumps(values | {"chat_template": "x"}))
    assert tokenizer_sha256(directory) not in (before, with_tools)
    file.write_text("[" * 5000)  # no object: as bytes
    assert tokenizer_sha256(directory) not in (before, with_tools)
