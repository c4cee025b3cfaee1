"""From a base model and tasks, or from fine-tuned models, to core files: through the commands that people type."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.commands import done, refused
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
from trace_transfer.identification.fisher import draw
from trace_transfer.identification.records import FisherFile, StabilityFile

FAST = ("--batch-size", 4, "--learning-rate", 1e-3)
TENSORS = ("--unit", "tensors", "--ratio", 0.2)


def core_of(out, task) -> CoreFile:
    return read_any(out / f"{task}.core.json", CoreFile)


def files(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def one_line(result):
    return " ".join(result.stdout.split())


@pytest.fixture(scope="module")
def identified(tiny, tasks, tmp_path_factory):
    """One whole run with two replicates of each task; not to be written to."""
    out = tmp_path_factory.mktemp("identified") / "out"
    return out, done("identify", tiny("qwen2"), "--tasks", tasks, "--replicates", 2, *TENSORS, *FAST, "--out", out)


def options(tuned):
    return [text for task, directory in tuned.items() for text in ("--tuned", f"{task}={directory}")]


# ---- the whole command


def test_a_run_writes_all_that_it_says(identified):
    out, result = identified
    assert {file.name for file in out.iterdir()} == {
        "warm_start", "fisher", "deltas.json", "math.core.json", "code.core.json", "law.core.json", "stability.json",
        "importance.html", "importance.png",
    }  # fmt: skip
    for name in ("math.core.json", "fisher/math/1/fisher.json"):
        assert f"{out / name}" in result.stdout
    assert "training on math/1" in result.stderr and "training on" not in result.stdout
    assert not [*out.rglob("checkpoint"), *out.rglob(".*")]
    for name in ("deltas.json", "warm_start/law/1/warm_start.json", "fisher/math/2/fisher.json", "stability.json"):
        assert "math" in done("inspect", out / name).stdout or "law" in name


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
        assert (core.method.model_extra["replicates"], core.method.model_extra["epochs"]) == (2, 1)


def test_the_functions_do_what_the_commands_do_to_the_byte(identified, tiny, tasks, tmp_path):
    out, _ = identified
    settings = {"replicates": 2, "unit": "tensors", "ratio": 0.2, "batch_size": 4, "learning_rate": 1e-3}
    found = identify(tiny("qwen2"), tasks, out=tmp_path / "out", **settings)
    assert [core.task for core in found.cores] == list(SIZES)
    assert files(tmp_path / "out") == files(out)


def test_what_is_there_is_not_made_again_and_score_is_the_second_half(identified, tiny, tasks, tmp_path):
    out, _ = identified
    before = files(out)
    again = done("identify", tiny("qwen2"), "--tasks", tasks, "--replicates", 2, *TENSORS, *FAST, "--out", out)
    assert "training on" not in again.stderr
    assert again.stderr.count("warm-started before") == 6 and again.stderr.count("fisher.json: made before") == 6
    assert "deltas.json: made before" in again.stderr
    assert files(out) == before
    (tmp_path / "warm_start").symlink_to(out / "warm_start")
    score(tiny("qwen2"), tasks=tasks, out=tmp_path, unit="tensors", ratio=0.2)
    for name in (*(f"{task}.core.json" for task in SIZES), "stability.json", "importance.html"):
        assert (tmp_path / name).read_bytes() == before[name]


def test_a_delta_is_the_kept_model_minus_the_base_and_both_have_the_same_scores(tiny, tasks, tmp_path):
    base, out = tiny("gemma3_text"), tmp_path / "out"
    done("identify", base, "--tasks", tasks, *FAST, "--keep-models", "--out", out)
    tuned = {task: out / "warm_start" / task / "model" for task in SIZES}
    after = AutoModelForCausalLM.from_pretrained(tuned["math"]).named_parameters()
    before = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).named_parameters())
    delta = load_file(out / "warm_start/math/delta-00001.safetensors")
    assert set(delta) == set(before)
    for name, value in after:
        assert torch.equal(delta[name], value - before[name]), name
    assert any(float(one.abs().max()) > 1e-4 for one in delta.values())
    done("score", base, *options(tuned), "--tasks", tasks, "--out", tmp_path / "again")
    for task in SIZES:
        theirs = {p.name: p.score for p in core_of(tmp_path / "again", task).parameters}
        for parameter in core_of(out, task).parameters:
            assert parameter.score == pytest.approx(theirs[parameter.name], rel=1e-3, abs=1e-6)


def test_a_task_that_is_tuned_already_is_not_trained(tiny, tmp_path):
    base, tasks = tiny("llama"), write_tasks(tmp_path / "tasks", {"math": 4, "law": 5})
    tuned = tuned_copy(base, tmp_path / "law", 1)
    done("identify", base, "--tasks", tasks, "--tuned", f"law={tuned}", *FAST, "--out", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out" / "warm_start").iterdir()] == ["math"]
    assert read_any(tmp_path / "out" / "fisher/law/fisher.json", FisherFile).num == 5
    assert core_of(tmp_path / "out", "law").core


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
    """One tensor did not move at all, another one in one task."""
    base, still = tiny("llama", num_hidden_layers=2), [f"model.layers.{index}.mlp.up_proj.weight" for index in (0, 1)]
    tuned = {
        task: tuned_copy(base, tmp_path / task, seed, still=still if task == "code" else still[:1])
        for seed, task in enumerate(SIZES)
    }
    command = ("score", base, *options(tuned), "--profile", profile, "--ratio", 0.2)
    done(*command, "--tasks", tasks, "--out", tmp_path / "lf")
    done(*command, "--method", "cs", "--out", tmp_path / "cs")
    before, after = parameters(base), {task: parameters(path) for task, path in tuned.items()}
    for data in read_tasks(open_model(base, load_families()), tasks, 1024, "cut", 0):
        examples, task = draw(data.examples, 300, 0), data.task
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
            for one in core.parameters:
                if expected.scores[one.name] is None:
                    assert one.score is None
                else:
                    assert one.score == pytest.approx(expected.scores[one.name], rel=1e-4, abs=1e-5)
                for term, value in expected.terms[one.name].items():
                    least = 0 if term in ("l2_delta", "fisher_info") else 1e-5
                    assert one.terms[term] == pytest.approx(value, rel=1e-4, abs=least)


def test_fisher_information_at_the_base(tiny, tasks, tmp_path):
    base = tiny("llama")
    tuned = tuned_copy(base, tmp_path / "math", 1)
    done("score", base, "--tuned", f"math={tuned}", "--tasks", tasks, "--fisher-at", "base", "--out", tmp_path)
    (data, *_) = read_tasks(open_model(base, load_families()), tasks, 1024, "cut", 0)
    found = read_any(tmp_path / "fisher/math/fisher.json", FisherFile)
    assert found.at == "base"
    grads = gradients(base, [[example] for example in data.examples])
    for parameter in found.parameters:
        expected = np.mean([float(one[parameter.name].square().sum()) for one in grads])
        assert parameter.value == pytest.approx(expected, rel=1e-4), parameter.name


@pytest.mark.parametrize(("family", "method"), [("phi3", "lf"), ("gpt2", "cs")])
def test_rows_are_scored_one_by_one_and_fill_their_budget(tiny, tasks, tmp_path, family, method):
    base = tiny(family)
    tuned = {task: tuned_copy(base, tmp_path / task, seed) for seed, task in enumerate(SIZES)}
    command = ("score", base, *options(tuned), "--tasks", tasks, "--method", method, "--ratio", 0.1)
    done(*command, "--unit", "rows", "--out", tmp_path / "rows")
    done(*command, "--out", tmp_path / "tensors")
    core, whole = core_of(tmp_path / "rows", "math"), core_of(tmp_path / "tensors", "math")
    assert len(core.parameters) > 3 * len(whole.parameters)
    assert 0.09 < core.ratio_of_elements <= 0.1
    assert sum(p.num_elements for p in core.parameters) == sum(p.num_elements for p in whole.parameters)
    if method == "lf":  # squares of the parts sum to the square of the whole
        for parameter in whole.parameters:
            parts = [p for p in core.parameters if p.name == parameter.name]
            for term, power in (("l2_delta", 2), ("fisher_info", 1)):
                total = sum(p.num_elements * p.terms[term] ** power for p in parts)
                assert total == pytest.approx(parameter.num_elements * parameter.terms[term] ** power, rel=1e-4)


# ---- stability


def test_stability_puts_overlap_within_beside_overlap_between(identified, tiny, tmp_path):
    out, result = identified
    report = read_any(out / "stability.json", StabilityFile)
    assert [method.method for method in report.methods] == ["lf", "cs", "l2"]
    assert set(report.reliability) == set(SIZES)
    for method in report.methods:
        assert [one.task for one in method.tasks] == list(SIZES)
        assert all(0 <= one.within_tensors <= 1 and 0 <= one.between_tensors <= 1 for one in method.tasks)
    assert "tability" in result.stdout
    (tmp_path / "warm_start").mkdir()
    (tmp_path / "warm_start/math").symlink_to(out / "warm_start/math")  # a single task, without others
    done("score", tiny("qwen2"), "--method", "l2", "--out", tmp_path)
    alone = read_any(tmp_path / "stability.json", StabilityFile)
    assert all(one.clear is None and one.between_tensors is None for m in alone.methods for one in m.tasks)


# ---- fine-tuned models


def test_deltas_of_other_weights_are_read_again(three, tmp_path):
    base, tuned = three
    command = ("score", base, "--method", "l2", "--out", tmp_path / "out")
    done(*command, *options(tuned))
    kept = files(tmp_path / "out")
    other = done(*command, *options({**tuned, "law": tuned_copy(base, tmp_path / "moved", 9)}))
    assert "made before" not in other.stderr
    same = {task: (tmp_path / f"out/{task}.core.json").read_bytes() == kept[f"{task}.core.json"] for task in tuned}
    assert same == {"math": True, "code": True, "law": False}


def test_a_tensor_that_did_not_move_is_listed_without_a_score_and_told(tiny, tmp_path):
    base, name = tiny("llama"), "model.layers.1.mlp.up_proj.weight"
    tuned = {task: tuned_copy(base, tmp_path / task, seed, still=[name]) for seed, task in enumerate(("a", "b", "c"))}
    command = ("score", base, *options(tuned), "--method", "cs", "--out", tmp_path / "out")
    assert f"did not move at all: {name}" in one_line(done(*command))
    assert [p.name for p in core_of(tmp_path / "out", "a").parameters if p.score is None] == [name]
    done(*command, "--zero-delta", "cosine-0")
    assert {p.name: p.score for p in core_of(tmp_path / "out", "a").parameters}[name] == 1.0


def test_what_makes_a_core_set_doubtful_is_told(three, tmp_path):
    base, _ = three
    half = tuned_copy(base, tmp_path / "half", 0, dtype=torch.bfloat16, scale=0)
    rounded = tuned_copy(half, tmp_path / "rounded", 1, dtype=torch.bfloat16, scale=1e-5)
    norms = tuned_copy(base, tmp_path / "norms", 1, still=[name for name in weights(base) if "norm" not in name])
    for start, tuned, told in (
        (half, rounded, "saved in 16 bits"),
        (base, norms, "core sets of very few parameters (a 0."),
    ):
        command = ("score", start, "--tuned", f"a={tuned}", "--method", "l2", "--out", tmp_path / "out")
        assert told in one_line(done(*command, "--unit", "tensors"))
    assert "very few parameters" not in done(*command, "--exclude", "norm").stdout


def test_components_and_small_tensors_can_be_left_out(three, tmp_path):
    base, tuned = three
    command = ("score", base, *options(tuned), "--method", "l2", "--out", tmp_path / "out", "--min-elements", 3000)
    done(*command, "--exclude", "norm", "--exclude", "bias", "--exclude", "head", "--exclude", "embedding")
    for one in core_of(tmp_path / "out", "math").parameters:
        excluded = "norm" in one.name or one.name.endswith(".bias") or "embed" in one.name
        assert (one.score is None) == (excluded or one.num_elements < 3000)


def test_select_is_what_score_would_have_selected(three, tmp_path):
    base, tuned = three
    for name, ratio in (("small", 0.05), ("large", 0.3)):
        done("score", base, *options(tuned), "--method", "l2", "--ratio", ratio, "--out", tmp_path / name)
    inputs = [tmp_path / "small" / f"{task}.core.json" for task in tuned]
    done("select", *inputs, "--ratio", 0.3, "--out", tmp_path / "again")
    for task in tuned:
        name = f"{task}.core.json"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
    assert "cannot be selected from by rows" in refused("select", *inputs, "--unit", "rows", "--out", tmp_path / "no")
