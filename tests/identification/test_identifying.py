"""From a base model and tasks, or from fine-tuned models, to core files: through the commands that people type."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.commands import done, run
from tests.reference import authors_scores
from tests.task_files import SIZES, write_tasks
from tests.tuned_models import tuned_copy, weights
from trace_transfer import identify, score
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.data.encoding import read_tasks
from trace_transfer.data.examples import IGNORED
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.formats import read_any
from trace_transfer.identification.fisher.information import draw
from trace_transfer.identification.records import DeltaFile, FisherFile, StabilityFile, WarmStartFile

FAST = ("--batch-size", 4, "--learning-rate", 1e-3)


def core_of(out, task) -> CoreFile:
    return read_any(out / f"{task}.core.json", CoreFile)


def files(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def identified(tiny, tasks, tmp_path_factory):
    """One whole run with two replicates of each task; not to be written to."""
    out = tmp_path_factory.mktemp("identified") / "out"
    result = done("identify", tiny("qwen2"), "--tasks", tasks, "--replicates", 2, "--ratio", 0.2, *FAST, "--out", out)
    return out, result


@pytest.fixture
def three(tiny, tmp_path):
    """A base in several float32 shards, and three models tuned from it: two float32, one bf16."""
    base = tiny("qwen2")
    dtypes = {"math": torch.float32, "code": torch.bfloat16, "law": torch.float32}
    return base, {
        task: tuned_copy(base, tmp_path / task, seed, dtype=dtype) for seed, (task, dtype) in enumerate(dtypes.items())
    }


def options(tuned):
    return [text for task, directory in tuned.items() for text in ("--tuned", f"{task}={directory}")]


# ---- the whole command


def test_a_run_writes_all_that_it_says(identified):
    out, result = identified
    assert {file.name for file in out.iterdir()} == {
        "warm_start", "fisher", "deltas.json", "math.core.json", "code.core.json", "law.core.json", "stability.json",
        "importance.html", "importance.png",
    }  # fmt: skip
    for name in ("math.core.json", "stability.json", "importance.html", "fisher/math/1/fisher.json"):
        assert f"{out / name}" in result.stdout
    assert "in common (Jaccard)" in result.stdout
    assert "training on math/1" in result.stderr
    assert "training on" not in result.stdout
    assert not list(out.rglob("checkpoint"))
    assert not list(out.rglob(".*"))


def test_core_files_hold_the_top_of_the_scores_and_what_they_are_made_of(identified):
    out, _ = identified
    for task in SIZES:
        core = core_of(out, task)
        scores = [p.score for p in core.parameters]
        assert scores == sorted(scores, reverse=True)
        assert len(core.core) == int(0.2 * len(scores))
        for parameter in core.parameters:
            terms = parameter.terms
            assert parameter.score == pytest.approx(0.5 * terms["l2_norm_score"] + 0.5 * terms["fisher_norm_score"])
        by_name = {p.name: p for p in core.parameters}
        query = by_name["model.layers.3.self_attn.q_proj.bias"]
        assert (query.component, query.layer) == ("attention.query", 3)
        assert by_name["model.embed_tokens.weight"].component == "embedding+head"
        assert core.method.model_extra["replicates"] == 2
        assert core.method.model_extra["epochs"] == 1


def test_warm_starts_say_what_they_were_made_of(identified):
    out, _ = identified
    halves = [read_any(out / "warm_start" / "law" / str(k) / "warm_start.json", WarmStartFile) for k in (1, 2)]
    assert [half.replicate for half in halves] == [1, 2]
    assert sum(half.data.num_examples for half in halves) == SIZES["law"]
    assert halves[0].data.sha256 != halves[1].data.sha256
    assert all(half.num_steps == len(half.losses) == 2 for half in halves)
    assert halves[0].settings["learning_rate"] == 1e-3
    shards = halves[0].shards
    assert sum(len(load_file(out / "warm_start" / "law" / "1" / name)) for name in shards) == 62


def test_the_same_command_again_trains_nothing_and_changes_nothing(identified, tiny, tasks):
    out, _ = identified
    before = files(out)
    again = done("identify", tiny("qwen2"), "--tasks", tasks, "--replicates", 2, "--ratio", 0.2, *FAST, "--out", out)
    assert "training on" not in again.stderr
    assert again.stderr.count("warm-started before") == 6
    assert again.stderr.count("Fisher information read before") == 6
    assert "these deltas were compared before" in again.stderr
    assert files(out) == before


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tiny, tasks, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        done("identify", tiny("llama"), "--tasks", tasks, *FAST, "--seed", seed, "--out", tmp_path / name)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["warm_start/math/delta-00001.safetensors"] != other["warm_start/math/delta-00001.safetensors"]


def test_score_of_warm_starts_is_the_second_half_of_identify(identified, tiny, tasks, tmp_path):
    out, _ = identified
    (tmp_path / "warm_start").symlink_to(out / "warm_start")
    done("score", tiny("qwen2"), "--tasks", tasks, "--ratio", 0.2, "--out", tmp_path)
    for name in (*(f"{task}.core.json" for task in SIZES), "stability.json", "importance.html"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_warm_start_is_the_tuned_model_minus_the_base(tiny, tasks, tmp_path):
    base = tiny("gemma3_text")
    done("warm-start", base, "--tasks", tasks, *FAST, "--keep-models", "--out", tmp_path / "out")
    place = tmp_path / "out" / "warm_start" / "math"
    tuned = AutoModelForCausalLM.from_pretrained(place / "model")
    before = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).named_parameters())
    delta = load_file(place / "delta-00001.safetensors")
    assert set(delta) == set(before)
    for name, value in tuned.named_parameters():
        assert torch.equal(delta[name], value - before[name]), name
    assert any(float(one.abs().max()) > 1e-4 for one in delta.values())


def test_scores_of_kept_models_are_those_of_their_deltas(tiny, tasks, tmp_path):
    base, out = tiny("llama"), tmp_path / "out"
    done("identify", base, "--tasks", tasks, *FAST, "--keep-models", "--out", out)
    tuned = {task: out / "warm_start" / task / "model" for task in SIZES}
    done("score", base, *options(tuned), "--tasks", tasks, "--out", tmp_path / "again")
    for task in SIZES:
        ours, theirs = core_of(out, task), core_of(tmp_path / "again", task)
        theirs = {p.name: p.score for p in theirs.parameters}
        for parameter in ours.parameters:
            assert parameter.score == pytest.approx(theirs[parameter.name], rel=1e-3, abs=1e-6)


def test_a_task_that_is_tuned_already_is_not_trained(tiny, tasks, tmp_path):
    base = tiny("llama")
    tuned = tuned_copy(base, tmp_path / "law", 1)
    result = done("identify", base, "--tasks", tasks, "--tuned", f"law={tuned}", *FAST, "--out", tmp_path / "out")
    assert "training on law" not in result.stderr
    assert {file.name for file in (tmp_path / "out" / "warm_start").iterdir()} == {"math", "code"}
    assert read_any(tmp_path / "out" / "fisher/law/fisher.json", FisherFile).num == SIZES["law"]
    assert core_of(tmp_path / "out", "law").core


def test_a_dry_run_tells_and_does_nothing(tiny, tasks, tmp_path):
    result = done("identify", tiny("llama"), "--tasks", tasks, "--out", tmp_path / "out", "--dry-run")
    assert not (tmp_path / "out").exists()
    for expected in ("math", "supervised", "3 to be made, 0 finished", "memory:", "disk:", "the best 5.00% of tensors"):
        assert expected in result.stdout, expected
    assert "  <s>What is math 0?⏎\n  ⏎\n  ⟦It is 0.<s>⟧\n" in result.stdout


def test_the_functions_do_what_the_commands_do(identified, tiny, tasks, tmp_path):
    out, _ = identified
    settings = {"replicates": 2, "ratio": 0.2, "batch_size": 4, "learning_rate": 1e-3}
    found = identify(tiny("qwen2"), tasks, out=tmp_path / "out", **settings)
    assert [core.task for core in found.cores] == list(SIZES)
    assert (tmp_path / "out" / "math.core.json").read_bytes() == (out / "math.core.json").read_bytes()
    again = score(tiny("qwen2"), tasks=tasks, out=tmp_path / "out", method="cs")
    assert again.cores[0].method.name == "cs"


# ---- exactness


def gradients(directory, groups):
    """Of the mean answer loss of each group of examples, by tensor, in float64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    found = []
    for group in groups:
        model.zero_grad()
        num = sum(example.num_supervised for example in group)
        for example in group:
            logits_tv = model(torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1]
            labels_t = torch.tensor(example.labels[1:])
            kept = labels_t != IGNORED
            (torch.nn.functional.cross_entropy(logits_tv[kept], labels_t[kept], reduction="sum") / num).backward()
        found.append({name: copy.copy(p.grad).clone() for name, p in model.named_parameters()})
    return found


def parameters(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("profile", ["paper", "authors-code"])
def test_profiles_are_what_is_written_out_by_hand(tiny, tasks, tmp_path, profile):
    base = tiny("llama", num_hidden_layers=2)
    tuned = {task: tuned_copy(base, tmp_path / task, seed) for seed, task in enumerate(SIZES)}
    done(
        "score", base, *options(tuned), "--tasks", tasks, "--profile", profile, "--ratio", 0.2, "--out", tmp_path / "lf"
    )
    done(
        "score", base, *options(tuned), "--profile", profile, "--method", "cs", "--ratio", 0.2, "--out", tmp_path / "cs"
    )
    before, after = parameters(base), {task: parameters(path) for task, path in tuned.items()}
    for data in read_tasks(open_model(base, load_families()), tasks, 1024, "cut", 0):
        examples, task = draw(data, 300, 0), data.task
        if profile == "paper":
            grads = gradients(tuned[task], [[example] for example in examples])
            lf = authors_scores.paper_lf(before, after[task], grads, 0.2)
            cs = authors_scores.paper_cs(before, after, task, 0.2)
        else:
            grads = gradients(tuned[task], [examples[i : i + 2] for i in range(0, len(examples), 2)])
            lf = authors_scores.authors_lf(before, after[task], grads, 0.2)
            cs = authors_scores.authors_cs(before, after, task, 0.2)
        for expected, out in ((lf, tmp_path / "lf"), (cs, tmp_path / "cs")):
            core = core_of(out, task)
            assert [p.name for p in core.core] == expected.core
            for parameter in core.parameters:
                assert parameter.score == pytest.approx(expected.scores[parameter.name], rel=1e-4, abs=1e-5)


def test_fisher_at_the_base_is_the_bases(tiny, tasks, tmp_path):
    base = tiny("llama")
    tuned = tuned_copy(base, tmp_path / "math", 1)
    for at in ("tuned", "base"):
        done(
            "score", base, "--tuned", f"math={tuned}", "--tasks", tasks, "--fisher-at", at, "--out", tmp_path / at
        )  # fmt: skip
    (data, *_) = read_tasks(open_model(base, load_families()), tasks, 1024, "cut", 0)
    for at, directory in (("tuned", tuned), ("base", base)):
        found = read_any(tmp_path / at / "fisher/math/fisher.json", FisherFile)
        assert found.at == at
        grads = gradients(directory, [[example] for example in data.examples])
        for parameter in found.parameters:
            expected = np.mean([float(one[parameter.name].square().sum()) for one in grads])
            assert parameter.value == pytest.approx(expected, rel=1e-4), parameter.name


def test_a_hundred_per_cent_is_everything(identified, tiny, tasks, tmp_path):
    out, _ = identified
    for unit in ("tensors", "elements"):
        done("select", out / "math.core.json", "--ratio", 1, "--unit", unit, "--out", tmp_path / unit)
        core = core_of(tmp_path / unit, "math")
        assert core.ratio_of_tensors == core.ratio_of_elements == 1.0


# ---- rows


@pytest.mark.parametrize(("family", "method"), [("qwen2", "lf"), ("phi3", "lf"), ("gpt2", "cs")])
def test_rows_are_scored_one_by_one_and_fill_their_budget(tiny, tasks, tmp_path, family, method):
    base = tiny(family)
    tuned = {task: tuned_copy(base, tmp_path / task, seed) for seed, task in enumerate(SIZES)}
    command = ("score", base, *options(tuned), "--tasks", tasks, "--method", method, "--ratio", 0.1)
    done(*command, "--unit", "rows", "--out", tmp_path / "rows")
    done(*command, "--out", tmp_path / "tensors")
    core, whole = core_of(tmp_path / "rows", "math"), core_of(tmp_path / "tensors", "math")
    assert len(core.parameters) > 3 * len(whole.parameters)
    assert 0.09 < core.ratio_of_elements <= 0.1
    elements = sum(p.num_elements for p in core.parameters)
    assert elements == sum(p.num_elements for p in whole.parameters)
    if method == "lf":  # squares of the parts sum to the square of the whole
        for parameter in whole.parameters:
            parts = [p for p in core.parameters if p.name == parameter.name]
            for term, power in (("l2_delta", 2), ("fisher_info", 1)):
                total = sum(p.num_elements * p.terms[term] ** power for p in parts)
                assert total == pytest.approx(parameter.num_elements * parameter.terms[term] ** power, rel=1e-4)
    assert {p.component for p in core.parameters} >= {"attention.query", "mlp.up" if family != "phi3" else "mlp.gate"}


def test_rows_cannot_be_selected_from_tensors(identified, tmp_path):
    out, _ = identified
    message = refused("select", out / "math.core.json", "--unit", "rows", "--out", tmp_path / "out")
    assert "was scored by tensors, and cannot be selected from by rows" in message


# ---- stability


def test_stability_puts_overlap_within_beside_overlap_between(identified):
    out, result = identified
    report = read_any(out / "stability.json", StabilityFile)
    assert [method.method for method in report.methods] == ["lf", "cs", "l2"]
    assert set(report.reliability) == set(SIZES)
    for method in report.methods:
        assert [one.task for one in method.tasks] == list(SIZES)
        assert all(0 <= one.within_tensors <= 1 and 0 <= one.between_tensors <= 1 for one in method.tasks)
    assert "tability" in result.stdout


def test_a_single_task_has_no_overlap_with_others(tiny, tmp_path):
    tasks = write_tasks(tmp_path / "tasks", {"math": 8})
    done("identify", tiny("llama"), "--tasks", tasks, "--replicates", 2, *FAST, "--out", tmp_path / "out")
    report = read_any(tmp_path / "out" / "stability.json", StabilityFile)
    assert all(one.clear is None and one.between_tensors is None for m in report.methods for one in m.tasks)


def test_corrected_cosines_need_replicates(identified, tiny, tasks, tmp_path):
    out, _ = identified
    copied = tmp_path / "out"
    copied.mkdir()
    (copied / "warm_start").symlink_to(out / "warm_start")
    done("score", tiny("qwen2"), "--method", "cs", "--cosine", "corrected", "--out", copied)
    corrected = {p.name: p.terms for p in core_of(copied, "math").parameters}
    done("score", tiny("qwen2"), "--method", "cs", "--out", copied)
    compared = 0
    for parameter in core_of(copied, "math").parameters:
        for other in ("cosine with code", "cosine with law"):
            if other in (corrected[parameter.name] or {}):  # both deltas are reliable enough
                compared += 1
                assert abs(corrected[parameter.name][other]) >= abs(parameter.terms[other]) - 1e-9
    assert compared > 20
    message = refused(
        "identify", tiny("qwen2"), "--tasks", tasks, "--method", "cs", "--cosine", "corrected", "--out", tmp_path / "no"
    )
    assert "needs the reliability of two replicates of every task: --replicates 2" in message


# ---- fine-tuned models


def test_the_second_run_reads_no_weights_and_gives_the_same_files(three, tmp_path):
    base, tuned = three
    out = tmp_path / "out"
    first = done("score", base, *options(tuned), "--method", "l2", "--out", out)
    kept = files(out)
    again = done("score", base, *options(tuned), "--method", "l2", "--out", out)
    assert "compared before" in again.stderr
    assert "compared before" not in first.stderr
    assert files(out) == kept
    moved = tuned_copy(base, tmp_path / "moved", 9)
    other = done("score", base, *options({**tuned, "law": moved}), "--method", "l2", "--out", out)
    assert "compared before" not in other.stderr
    assert (out / "law.core.json").read_bytes() != kept["law.core.json"]
    assert (out / "math.core.json").read_bytes() == kept["math.core.json"]


def test_a_tensor_that_did_not_move_is_listed_without_a_score_and_told(tiny, tmp_path):
    base, name = tiny("llama"), "model.layers.1.mlp.up_proj.weight"
    tuned = {task: tuned_copy(base, tmp_path / task, seed, still=[name]) for seed, task in enumerate(("a", "b", "c"))}
    result = done("score", base, *options(tuned), "--method", "cs", "--out", tmp_path / "out")
    assert f"did not move at all: {name}" in " ".join(result.stdout.split())
    assert [p.name for p in core_of(tmp_path / "out", "a").parameters if p.score is None] == [name]
    done("score", base, *options(tuned), "--method", "cs", "--zero-delta", "cosine-0", "--out", tmp_path / "out")
    by_name = {p.name: p.score for p in core_of(tmp_path / "out", "a").parameters}
    assert by_name[name] == 1.0


def test_sixteen_bits_that_rounded_the_update_away_are_warned_of(tiny, tmp_path):
    half = tuned_copy(tiny("llama"), tmp_path / "half", 0, dtype=torch.bfloat16, scale=0)
    tuned = {"a": tuned_copy(half, tmp_path / "a", 1, dtype=torch.bfloat16, scale=1e-5)}
    result = done("score", half, *options(tuned), "--method", "l2", "--out", tmp_path / "out")
    assert "saved in 16 bits" in result.stdout
    assert "Save fine-tuned models in float32" in " ".join(result.stdout.split())


def test_ties_at_the_cut_are_told(tiny, tmp_path):
    base = tiny("llama")
    result = done("score", base, "--tuned", f"a={base}", "--method", "l2", "--out", tmp_path / "out")
    assert "have the same score; model order decided" in " ".join(result.stdout.split())


def test_core_sets_of_hardly_any_elements_are_told(three, tmp_path):
    """Norms that moved most: 5 % of the tensors, and next to nothing of the elements."""
    base, _ = three
    still = [name for name in weights(base) if "norm" not in name]
    tuned = tuned_copy(base, tmp_path / "norms", 1, still=still)
    command = ("score", base, "--tuned", f"a={tuned}", "--method", "l2", "--out", tmp_path / "out")
    assert "core sets of very few parameters (a 0." in " ".join(done(*command).stdout.split())
    assert "very few parameters" not in done(*command, "--unit", "elements", "--exclude", "norm").stdout


def test_components_and_small_tensors_can_be_left_out(three, tmp_path):
    base, tuned = three
    command = ("score", base, *options(tuned), "--method", "l2", "--out", tmp_path / "out")
    done(*command, "--exclude", "norm", "--exclude", "bias", "--exclude", "head", "--exclude", "embedding")
    unscored = {p.name for p in core_of(tmp_path / "out", "math").parameters if p.score is None}
    assert unscored == {
        name
        for name in (p.name for p in core_of(tmp_path / "out", "math").parameters)
        if "norm" in name or name.endswith(".bias") or "embed" in name
    }
    done(*command, "--min-elements", 1000)
    core = core_of(tmp_path / "out", "math")
    assert all((p.score is None) == (p.num_elements < 1000) for p in core.parameters)
    assert "no such components" in refused(*command, "--exclude", "query")


# ---- select, import, export


def test_select_is_what_score_would_have_selected(three, tmp_path):
    base, tuned = three
    for name, ratio in (("small", 0.05), ("large", 0.3)):
        done("score", base, *options(tuned), "--method", "l2", "--ratio", ratio, "--out", tmp_path / name)
    inputs = [tmp_path / "small" / f"{task}.core.json" for task in tuned]
    done("select", *inputs, "--ratio", 0.3, "--out", tmp_path / "again")
    for task in tuned:
        name = f"{task}.core.json"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()


def test_a_list_goes_out_and_comes_back(identified, tiny, tmp_path):
    out, _ = identified
    done("export", out / "math.core.json", "--to", "authors", "--out", tmp_path / "out" / "math.json")
    listed = json.loads((tmp_path / "out" / "math.json").read_text())
    ours = core_of(out, "math")
    assert [row["parameter"] for row in listed] == [p.name for p in ours.core]
    assert set(listed[0]) == {
        "parameter", "combined_score", "l2_delta", "fisher_info", "l2_norm_score", "fisher_norm_score", "rank"
    }  # fmt: skip
    done(
        "import", tmp_path / "out" / "math.json", "--from", "authors", "--model", tiny("qwen2"),
        "--out", tmp_path / "back" / "maths.core.json",
    )  # fmt: skip
    back = core_of(tmp_path / "back", "maths")
    assert [(p.name, p.score, p.component) for p in back.core] == [(p.name, p.score, p.component) for p in ours.core]
    assert len(back.parameters) == len(ours.parameters)


def test_select_writes_into_a_directory(identified, tmp_path, monkeypatch):
    out, _ = identified
    monkeypatch.chdir(tmp_path)
    message = refused("select", out / "math.core.json", "--ratio", 0.1, "--out", "wider.core.json")
    assert "--out wider.core.json: expected a directory; the files in it are named TASK.core.json" in message
    assert list(tmp_path.iterdir()) == []


def test_select_does_not_replace_what_it_reads(identified):
    out, _ = identified
    before = files(out)
    cores = [out / f"{task}.core.json" for task in ("math", "law")]
    message = refused("select", *cores, "--ratio", 0.1, "--out", out)
    told = f"what would be written is an input as well; name another --out: - {cores[0]} - {cores[1]}"
    assert told in message
    assert files(out) == before


# ---- what comes after


def test_core_files_go_into_map(identified, tiny, tmp_path):
    out, _ = identified
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"Text number {i} tells of {i * i} things and of one more." for i in range(24)))
    done(
        "map", "--src", tiny("qwen2"), "--dst", tiny("qwen3"), "--core", out / "math.core.json", "--probe", texts,
        "--out", tmp_path / "map", "--no-cache",
    )  # fmt: skip
    assert core_of(tmp_path / "map", "math").transferred_from is not None


def test_what_was_written_can_be_inspected(identified):
    out, _ = identified
    deltas = read_any(out / "deltas.json", DeltaFile)
    largest = max(deltas.parameters, key=lambda p: max(p.norms))
    assert f"{max(largest.norms):.3g}" in done("inspect", out / "deltas.json").stdout
    record = read_any(out / "warm_start/law/1/warm_start.json", WarmStartFile)
    shown = done("inspect", out / "warm_start/law/1/warm_start.json").stdout
    assert f"loss of 2 steps: {record.losses[0]:.4g} → {record.losses[-1]:.4g}" in shown
    assert "█▁" in shown or "▁█" in shown
    fisher = read_any(out / "fisher/math/2/fisher.json", FisherFile)
    most = max(fisher.parameters, key=lambda p: p.value)
    shown = done("inspect", out / "fisher/math/2/fisher.json").stdout
    assert most.name in shown
    assert f"{most.value:.4g}" in shown
    for name in ("stability.json", "math.core.json"):
        assert "math" in done("inspect", out / name).stdout


# ---- bad input


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_nothing_to_score_is_told(tiny, tmp_path):
    message = refused("score", tiny("llama"), "--out", tmp_path / "out")
    assert "holds no finished warm start" in message


def test_lf_without_tasks_is_told(three, tmp_path):
    base, tuned = three
    assert "lf needs each task's examples" in refused("score", base, *options(tuned), "--out", tmp_path / "out")


def test_tasks_that_score_lacks_are_told(three, tmp_path):
    base, tuned = three
    tasks = write_tasks(tmp_path / "tasks", {"math": 4})
    message = refused("score", base, *options(tuned), "--tasks", tasks, "--out", tmp_path / "out")
    assert "lacks tasks to be scored: - code - law" in message


def test_tuned_names_that_tasks_lack_are_told(tiny, tasks, tmp_path):
    message = refused(
        "identify", tiny("llama"), "--tasks", tasks, "--tuned", f"maths={tiny('llama')}", "--out", tmp_path / "out"
    )
    assert "lacks tasks that --tuned names: maths (it has math, code, law)" in message


def test_a_model_of_another_architecture_is_told_in_one_line(tiny, tmp_path):
    """And one that differs in its shapes alone, in the same message."""
    base, other, wider = tiny("llama"), tiny("qwen2"), tiny("llama", intermediate_size=64)
    tuned = options({"math": other, "law": wider})
    message = refused("score", base, *tuned, "--method", "cs", "--out", tmp_path / "out")
    told = f"- math: {other} looks like another model: qwen2 with 5 layers (62 tensors), the base is llama with 4 (39)"
    assert told in message
    assert "math: lacks" not in message
    assert "law: model.layers.0.mlp.gate_proj.weight is [64, 48], in the base [80, 48]" in message


def test_other_settings_in_a_used_directory_are_refused_with_what_differs(tiny, tasks, tmp_path):
    out = tmp_path / "out"
    done("warm-start", tiny("llama"), "--tasks", tasks, *FAST, "--out", out)
    before = files(out)
    message = refused("warm-start", tiny("llama"), "--tasks", tasks, "--batch-size", 4, "--epochs", 2, "--out", out)
    assert "holds warm starts that were made otherwise" in message
    assert "math: epochs 1 there, 2 now" in message
    assert "math: learning_rate 0.001 there, 2e-05 now" in message
    assert files(out) == before


def test_other_data_than_it_was_warm_started_with_is_refused(tiny, tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    done("warm-start", tiny("llama"), "--tasks", tasks, *FAST, "--out", tmp_path / "out")
    write_tasks(tmp_path / "tasks", {**SIZES, "code": 5})
    message = refused("score", tiny("llama"), "--tasks", tasks, "--out", tmp_path / "out")
    assert "code: other examples in" in message
    assert "math: other" not in message


def test_a_damaged_delta_is_told(tiny, tasks, tmp_path):
    out = tmp_path / "out"
    done("warm-start", tiny("llama"), "--tasks", tasks, *FAST, "--out", out)
    shard = out / "warm_start" / "math" / "delta-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    message = refused("score", tiny("llama"), "--tasks", tasks, "--out", out)
    assert "delta-00001.safetensors: cut short or damaged" in message


def test_a_disk_without_room_is_refused_before_training(tiny, tasks, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    message = refused("identify", tiny("llama"), "--tasks", tasks, "--out", tmp_path / "out")
    assert "1,000 bytes are free, but the deltas of 3 warm starts need" in message
    assert "--delta-dtype bfloat16 needs half" in message
