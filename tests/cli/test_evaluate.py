"""`trace-transfer evaluate`: what it prints, its exit codes, and what it refuses."""

from functools import partial

from tests import commands
from tests.evaluation_files import write_suite
from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.formats import read_any

run = partial(commands.run, "evaluate")


def rows(text):
    return {line.split()[0]: line.split() for line in text.splitlines() if line.split()}


def test_scores_and_plan(tiny, tmp_path):
    suite, out = write_suite(tmp_path / "suite"), tmp_path / "out"
    given = (tiny("llama"), "--suite", suite, "--out", out, "--limit", 3)
    planned = run(*given, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert rows(planned.stdout)["said"][:4] == ["said", "exact-match", "exact-match", "3"]
    assert "⟦It is 2 and 2: 4" in planned.stdout and "⟦wet⟧" in planned.stdout  # the first of `said`, of `nats`
    assert "finished" not in planned.stdout and not out.exists()

    done = run(*given)
    assert done.exit_code == 0, done.output
    file = read_any(out / "evaluation.json")
    for score in file.scores:
        row = rows(done.stdout)[score.name]
        assert row[1:5] == [score.kind, score.metric, f"{score.value:.4f}", f"{score.stderr:.4f}"]
    assert "evaluating" not in done.stdout and "evaluating nats" in done.stderr
    assert run(*given, "--dry-run").stdout.count("finished") == 3


def test_only_one_with_other_data_and_a_patch(tiny, tmp_path):
    suite = write_suite(tmp_path / "suite")
    base = state_of(tiny("llama"))
    patch = make_patch(base, tmp_path / "p.patch.safetensors", mask_of(base), 1)
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "suite" / "questions.jsonl").read_text().splitlines()[1] + "\n")
    given = ("--suite", suite, "--only", "nats", "--data", f"nats={other}")
    bare = run(tiny("llama"), *given, "--out", tmp_path / "bare")
    patched = run(tiny("llama"), *given, "--patch", patch.path, "--out", tmp_path / "patched")
    assert (bare.exit_code, patched.exit_code) == (0, 0), patched.output
    one, two = (read_any(tmp_path / name / "evaluation.json") for name in ("bare", "patched"))
    assert [score.num_examples for score in one.scores] == [1] and one.scores[0].value != two.scores[0].value


def test_refusals(tiny, tmp_path):
    suite = write_suite(tmp_path / "suite")
    for given, told in (
        (["--only", "nat"], "'nat': it has: nats, said, chosen; did you mean 'nats'?"),
        (["--data", "nats"], "'nats' is not NAME=FILE"),
        (["--data", "nats=none.jsonl"], "evaluation 'nats': data:"),
    ):
        done = run(tiny("llama"), "--suite", suite, "--out", tmp_path / "out", *given)
        assert done.exit_code == 2 and told in done.output
    assert not (tmp_path / "out").exists()
