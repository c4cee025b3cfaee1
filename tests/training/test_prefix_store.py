"""The cached prefix on the disk: its size, stopped and gone on with, on several ranks, of something else, damaged."""

import copy
import json
import shutil
import threading
from collections import Counter

import pytest
import torch

from tests.training.frozen_bottom import ALONE, FOUR_FILES, Opened
from tests.training.made_up import make_task
from trace_transfer.errors import TraceTransferError
from trace_transfer.examples import IGNORED, Example
from trace_transfer.training.errors import TrainingError
from trace_transfer.training.prefix import fill
from trace_transfer.training.prefix_store import PrefixCache, prefix_bytes
from trace_transfer.training.ranks import Ranks


def contents(cache):
    return {path.name: path.read_bytes() for path in cache.folder.iterdir()}


def test_bytes_are_told_and_equal_texts_are_kept_once(tiny, tmp_path):
    opened = Opened(tiny, "llama", torch.bfloat16)
    first = opened.examples[0]
    other_answer = Example("twice", first.input_ids, (IGNORED, *first.input_ids[1:]))
    num_tokens = sum(len(example.input_ids) for example in opened.examples)
    opened.examples = (*opened.examples, other_answer)
    cache = opened.cache(tmp_path, 2, shard_bytes=1 << 11)
    assert cache.num_bytes == prefix_bytes(opened.examples, 48, torch.bfloat16) == num_tokens * 48 * 2
    fill(cache, opened.layers, opened.head, opened.run, ALONE)
    files = list(cache.folder.glob("*.safetensors"))
    assert len(files) == len(cache.shards) > 3
    assert 0 < sum(file.stat().st_size for file in files) - cache.num_bytes < 200 * len(files)
    pair_btd = cache.read([first, other_answer])
    assert torch.equal(pair_btd[0], pair_btd[1])
    cache.remove()
    assert list(tmp_path.iterdir()) == []


class StopError(Exception):
    """Told to stop."""


def test_stopped_and_gone_on_it_has_the_same_bytes(tiny, tmp_path):
    opened = Opened(tiny, "llama")
    whole = opened.cache(tmp_path / "whole", 2, **FOUR_FILES)
    fill(whole, opened.layers, opened.head, opened.run, ALONE)
    assert [len(shard) for shard in whole.shards] == [1, 1, 2, 1]
    cut = opened.cache(tmp_path / "cut", 2, **FOUR_FILES)
    rounds = Counter()

    def stop():
        rounds["done"] += 1
        if rounds["done"] == 3:  # within a file
            raise StopError("stopped here")

    with pytest.raises(StopError, match="stopped here"):
        fill(cut, opened.layers, opened.head, opened.run, ALONE, between=stop)
    assert not any("forward" in vars(layer) for layer in opened.layers)
    assert cut.missing() == [2, 3]
    damaged = cut.folder / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (cut.folder / ".00002.safetensors.x.part").write_bytes(b"half")
    runs = []
    again = opened.cache(tmp_path / "cut", 2, **FOUR_FILES)
    assert fill(again, opened.layers, opened.head, lambda batch: (runs.append(batch), opened.run(batch)), ALONE) == 3
    assert len(runs) == 4
    assert contents(again) == contents(whole)
    assert fill(again, opened.layers, opened.head, runs.append, ALONE) == 0
    assert len(runs) == 4


@pytest.mark.parametrize(
    "change", [{"identity": {"model": "b"}}, {"micro_batch_size": 2}, {"boundary": 3}, {"dtype": torch.bfloat16}]
)
def test_another_identity_is_another_cache(tiny, tmp_path, change):
    opened = Opened(tiny, "llama")
    fill(opened.cache(tmp_path, 2), opened.layers, opened.head, opened.run, ALONE)
    (tmp_path / "prefix" / "stray").write_text("of the one before")
    changed = {"boundary": 2, **change}
    opened.model.to(changed.get("dtype", torch.float32))
    cache = opened.cache(tmp_path, **changed)
    assert fill(cache, opened.layers, opened.head, opened.run, ALONE) == 1
    assert sorted(contents(cache)) == ["00000.safetensors", "record.json"]
    fresh = opened.cache(tmp_path / "fresh", **changed)
    fill(fresh, opened.layers, opened.head, opened.run, ALONE)
    assert contents(cache) == contents(fresh)


def test_other_texts_are_another_cache(tiny, tmp_path):
    opened = Opened(tiny, "llama")
    fill(opened.cache(tmp_path, 2), opened.layers, opened.head, opened.run, ALONE)
    first, *rest = opened.examples
    opened.examples = (Example(first.id, (7, *first.input_ids[1:]), first.labels), *rest)
    assert fill(opened.cache(tmp_path, 2), opened.layers, opened.head, opened.run, ALONE) == 1
    record = json.loads((tmp_path / "prefix" / "record.json").read_text())
    assert (record["format"], record["version"]) == ("trace-transfer/prefix", 1)


class Together:
    """Ranks that are threads, each waiting for the others in every sum."""

    def __init__(self, size):
        self.barrier, self.given = threading.Barrier(size, timeout=30), [None] * size

    def total(self, rank, values):
        self.given[rank] = values
        self.barrier.wait()
        summed = sum(self.given)
        self.barrier.wait()
        return summed

    def ranks(self, rank):
        class Member(Ranks):
            total = staticmethod(lambda values: self.total(rank, values))

        return Member(rank, len(self.given), torch.device("cpu"))


def fill_on(size, opened, caches, run_of=lambda model: model.run):
    """Fill on several ranks at once; returns for each how many files were computed, or what it raised."""
    together, results = Together(size), [None] * size
    copies = [copy.deepcopy(opened) for _ in range(size)]

    def work(rank):
        try:
            ranks = together.ranks(rank)
            results[rank] = fill(caches[rank], copies[rank].layers, copies[rank].head, run_of(copies[rank]), ranks)
        except TraceTransferError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_ranks_changes_no_bit(tiny, tmp_path, size):
    """Two of them have three and two micro-batches to compute."""
    opened = Opened(tiny, "llama")
    options = FOUR_FILES
    alone = opened.cache(tmp_path / "alone", 2, **options)
    fill(alone, opened.layers, opened.head, opened.run, ALONE)
    caches = [opened.cache(tmp_path / "together", 2, **options) for _ in range(size)]
    calls = Counter()

    def counted(model):
        return lambda batch: (calls.update([id(model)]), model.run(batch))

    num_shards = len(alone.shards)
    assert fill_on(size, opened, caches, counted) == [num_shards] * size
    assert contents(caches[0]) == contents(alone)
    assert len(set(calls.values())) == 1  # as many forward passes on each
    assert torch.equal(caches[-1].read(opened.examples), alone.read(opened.examples))
    for file in ("00000.safetensors", "00003.safetensors"):
        (caches[0].folder / file).unlink()
    assert fill_on(size, opened, caches) == [2] * size
    assert contents(caches[0]) == contents(alone)


def test_what_one_rank_cannot_write_stops_all(tiny, tmp_path, monkeypatch):
    opened = Opened(tiny, "llama")
    caches = [opened.cache(tmp_path, 2, **FOUR_FILES) for _ in range(2)]
    write = PrefixCache.write

    def full(self, shard, states):
        if shard == 1:
            raise TrainingError("the disk is full")
        write(self, shard, states)

    monkeypatch.setattr(PrefixCache, "write", full)
    first, second = fill_on(2, opened, caches)
    assert (str(first), str(second)) == (f"{caches[0].folder}: another rank could not write it", "the disk is full")
    assert caches[0].missing() == [1, 2, 3]


def test_no_room_is_told_before_anything_is_computed(tiny, tmp_path, monkeypatch):
    opened = Opened(tiny, "llama")
    cache = opened.cache(tmp_path, 2)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(TrainingError, match=rf"take {cache.num_bytes:,} bytes more, and 1,000 are free; make room, or"):
        fill(cache, opened.layers, opened.head, lambda batch: pytest.fail("computed"), ALONE)


def test_what_cannot_be_read_is_told(tiny, tmp_path):
    opened = Opened(tiny, "llama")
    cache = opened.cache(tmp_path, 2)
    fill(cache, opened.layers, opened.head, opened.run, ALONE)
    with pytest.raises(TrainingError, match="has no hidden states of made-up:0; it is of other data"):
        cache.read(make_task(1, seed=9).examples)
    cache.read(opened.examples)
    file = cache.folder / "00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"00000.safetensors: hidden states cannot be read: it is cut short. Run"):
        cache.read(opened.examples)
    with pytest.raises(TrainingError, match="it is missing or cut short"):
        opened.cache(tmp_path, 2).read(opened.examples)
    cache.folder.joinpath("00000.safetensors").unlink()
    with pytest.raises(TrainingError, match="hidden states cannot be read: No such file or directory"):
        cache.read(opened.examples)
