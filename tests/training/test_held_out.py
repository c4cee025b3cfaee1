"""Records that are held out of a stream's tasks: which, what is refused, and what a stream's record says of them."""

import json

import pytest
from click.testing import CliRunner

from tests.engine.made_up import make_task
from tests.stream_files import write_stream
from tests.training.test_train import TASKS
from trace_transfer.cli import main
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.errors import UserError
from trace_transfer.formats import read_any
from trace_transfer.training.methods import split
from trace_transfer.training.settings import StreamSettings
from trace_transfer.training.streaming import plan_stream


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama", num_hidden_layers=3)


@pytest.fixture
def stream(model, tmp_path):
    """`stream.yaml`; math has held-out records of its own."""
    file = write_stream(tmp_path / "stream", model, 3, TASKS)
    records = [{"prompt": f"What is math {i}?", "completion": f"{i * i}"} for i in (20, 21, 22)]
    (file.parent / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    file.write_text(file.read_text().replace("data: math.jsonl", "data: math.jsonl, eval_data: held.jsonl"))
    return file


def planned(model, stream, out, **settings):
    return plan_stream(model, stream, settings=StreamSettings.of(batch_size=4, zero=0, **settings), rules=(), out=out)


def test_a_share_of_the_records_each_on_one_side():
    """Equal records stay together, and all examples of a record."""
    data = make_task(20)
    twins = tuple(Example(f"made-up:{20 + n}", e.input_ids, e.labels) for n, e in enumerate(data.examples[:10]))
    parts = tuple(Example(f"{e.id}/2", e.input_ids[:-1], e.labels[:-1]) for e in data.examples[10:])
    whole = TaskData("made-up", (*data.examples, *twins, *parts), 30, 0, 0, "plain", "x")
    for seed in range(5):
        left, held = split(whole, 0.3, seed)
        assert sorted([*left.examples, *held.examples], key=id) == sorted(whole.examples, key=id)
        assert {e.input_ids for e in left.examples}.isdisjoint(e.input_ids for e in held.examples)
        records = [{e.id.partition("/")[0] for e in side.examples} for side in (left, held)]
        assert records[0].isdisjoint(records[1])
        assert len({e.input_ids for e in held.examples if "/" not in e.id}) == 6
        assert split(whole, 0.3, seed) == (left, held)
    assert len({split(whole, 0.3, seed)[1].sha256 for seed in range(5)}) == 5
    with pytest.raises(UserError, match="'made-up' has one record"):
        split(make_task(1), 0.5, 0)


def test_a_stream_with_held_out_records(model, stream, tmp_path):
    """One task with a file of its own, the others with a share; the record says what was found and kept."""
    out = tmp_path / "out"
    arguments = ["train", model, "--stream", stream, "--batch-size", 4, "--epochs", 3, "--learning-rate", 1e-2]
    arguments += ["--zero", 0, "--eval-share", 0.3, "--eval-every", 1, "--patience", 2, "--keep-best", "--out", out]
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    record = read_any(out / "stream.json")
    assert [stage.num_examples for stage in record.stages] == [8, 4, 4]  # of 8, 6 and 6
    for stage in record.stages:
        losses = [one.loss for one in stage.evaluations]
        assert [one.step for one in stage.evaluations] == list(range(1, stage.num_steps + 1))
        assert stage.kept_step == losses.index(min(losses)) + 1
        assert f"{stage.label}: held-out loss {losses[0]:.3f}" in done.stdout
    assert (record.settings["eval_share"], record.settings["keep_best"]) == (0.3, True)


def test_what_is_refused(model, stream, tmp_path):
    held = stream.parent / "held.jsonl"
    held.write_text(held.read_text() + (stream.parent / "law.jsonl").read_text().splitlines()[3] + "\n")
    with pytest.raises(UserError, match=r"trained on; leave(.|\n)*- math:3 of the held-out records is law:3"):
        planned(model, stream, tmp_path / "out")
    stream.write_text(stream.read_text().replace("eval_data: held.jsonl", "eval_split: test"))
    with pytest.raises(UserError, match=r"task 'math': .*eval_split: only for hub data sets; math.jsonl is a local"):
        planned(model, stream, tmp_path / "out")
    stream.write_text(stream.read_text().replace(", eval_split: test", ""))
    with pytest.raises(UserError, match="patience, keep_best: nothing is held out; give eval_share"):
        planned(model, stream, tmp_path / "out", patience=2, keep_best=True)
