from collections import Counter

import pytest

from tests.engine.made_up import make_task, settings
from trace_transfer.engine.batches import Plan


def ids_of(batch):
    return [example.id for example in batch.examples]


def test_every_example_once_per_epoch_in_an_order_of_its_own():
    data = make_task(21)
    found = [ids_of(batch) for batch in Plan(data, settings(epochs=3)).batches()]
    assert [len(batch) for batch in found] == [8, 8, 5] * 3
    epochs = [[name for batch in found[start : start + 3] for name in batch] for start in (0, 3, 6)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(example.id for example in data.examples)
    assert len({tuple(sorted(found[start])) for start in (0, 3, 6)}) == 3
    assert [ids_of(b) for b in Plan(data, settings(epochs=3)).batches(4)] == found[4:]
    assert [ids_of(b) for b in Plan(data, settings(epochs=3, seed=1)).batches()] != found


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ranks_share_a_batch_and_have_as_much_to_do(num_ranks):
    for batch in Plan(make_task(13), settings(micro_batch_size=2)).batches():
        shares = [batch.share(rank, num_ranks) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        found = {number: examples for share in shares for number, examples in share if number is not None}
        assert [found[number] for number in range(len(batch.micro_batches))] == list(batch.micro_batches)
        assert all(len(examples) == 1 for share in shares for number, examples in share if number is None)
