"""What runs a model: engines beside transformers, a model that is spread, batches that are halved."""

import sys

import pytest
import torch

from tests.evaluation.engines import write_engines
from tests.evaluation_files import FIELDS, GSM8K, QUESTIONS, loaded, run, suite_of, write_records, write_suite
from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.errors import UserError
from trace_transfer.evaluation.backends import ModelInMemory, in_batches, spread
from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation, prepare_suite
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite
from trace_transfer.progress import Silent

SILENT = Silent()
ENGINES = ["vllm", "sglang"]


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Both packages, for the harness' own classes to drive; gone afterwards."""
    monkeypatch.syspath_prepend(write_engines(tmp_path / "engines"))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in ENGINES or name.endswith(("vllm_causallms", "sglang_causallms")):
            del sys.modules[name]


def scored(model, suite, out, **settings):
    return evaluate(plan_evaluation(model, suite, EvaluateSettings.of(dtype="float32", **settings)), out, SILENT)


@pytest.mark.parametrize("backend", ENGINES)
def test_engines_read_what_transformers_reads(tiny, tmp_path, engines, backend):
    """Own evaluations and a stock task, on a base and on a base with a patch, which is written out for the engine."""
    write_records(tmp_path / "suite" / "gsm8k.jsonl", GSM8K)
    file = write_suite(tmp_path / "suite")
    more = "  - {name: gsm8k, kind: harness, task: gsm8k_cot, shots: 1, data: gsm8k.jsonl, max_new_tokens: 6}\n"
    file.write_text(file.read_text() + more)
    suite = load_suite(file)
    base = state_of(tiny("llama", max_position_embeddings=1024, tie_word_embeddings=False))
    patched = base.apply(make_patch(base, tmp_path / "p.patch.safetensors", mask_of(base), 1))
    size = {"vllm": "tensor_parallel_size", "sglang": "tp_size"}[backend]
    memory = {"vllm": "gpu_memory_utilization", "sglang": "mem_fraction_static"}[backend]
    for name, state in (("base", base), ("patched", patched)):
        theirs = scored(state, suite, tmp_path / "hf" / name)
        given = {"backend": backend, "backend_arguments": {size: 2, memory: 0.8}}
        ours = scored(state, suite, tmp_path / backend / name, **given)
        for one, other in zip(theirs.scores, ours.scores, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-5) and one.num_examples == other.num_examples
            places = (tmp_path / kind / name / "samples" / f"{one.name}.jsonl" for kind in ("hf", backend))
            samples = [place.read_text() for place in places]
            if one.kind in ("exact-match", "harness"):  # what is written, to the letter
                assert samples[0] == samples[1] and "output" in samples[0]
        assert ours.libraries[backend] and not (tmp_path / backend / name / "model-for-engine").exists()
        made = sys.modules[backend].LLM.made if backend == "vllm" else sys.modules[backend].Engine.made
        assert len(made) == 1 and made.pop()[1:] == ("float32", 2, 0.8, 1234)


def test_an_engine_in_the_chat_template(tiny, tmp_path, engines):
    model, tokenizer = loaded(tiny("llama", max_position_embeddings=2048))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
    directory = tmp_path / "model"
    tokenizer.chat_template = template
    model.save_pretrained(directory), tokenizer.save_pretrained(directory)
    write_records(tmp_path / "data.jsonl", GSM8K)
    item = {"name": "one", "kind": "harness", "task": "gsm8k_cot", "shots": 1, "template": "chat", "data": "data.jsonl"}
    suite = Suite.of([{**item, "max_new_tokens": 4}], tmp_path, "test")
    found = {}
    for backend in ("hf", *ENGINES):
        scored(directory, suite, tmp_path / backend, backend=backend, limit=2)
        found[backend] = (tmp_path / backend / "samples" / "one.jsonl").read_text()
    assert found["vllm"] == found["hf"] and "<user>Q: There are 15" in found["hf"]
    assert found["sglang"] == found["hf"]


def test_what_is_refused_before_anything_is_loaded(tiny, tmp_path, engines, monkeypatch):
    file = write_suite(tmp_path / "suite")

    def refused(**settings):
        with pytest.raises(UserError, match="cannot be") as caught:
            plan_evaluation(tiny("llama"), load_suite(file), EvaluateSettings.of(**settings))
        return str(caught.value)

    assert "paralelize: no such setting; did you mean parallelize?" in refused(backend_arguments={"paralelize": True})
    told = refused(backend="vllm", backend_arguments={"trust_remote_code": True})
    assert "trust_remote_code: is not to be given here" in told
    assert "device: --backend vllm takes the GPUs" in refused(backend="vllm", device="cuda:1")
    file.write_text(file.read_text().replace("kind: loss,", "kind: loss, metric: token-accuracy,"))
    assert "token-accuracy needs the likeliest token at every place" in refused(backend="sglang")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refused(backend="vllm")
    assert "--backend vllm: not installed here: lm_eval, vllm; pip install 'lm-eval[vllm]'" in told


def test_a_model_on_two_gpus(tiny, tmp_path, monkeypatch):
    """Which layers go where; that hooks of accelerate change nothing is seen on the one device that there is."""
    import accelerate

    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, QUESTIONS, kind="exact-match", fields=FIELDS, max_new_tokens=6)
    before, dispatch, places = run(model, tokenizer, suite), accelerate.dispatch_model, {}

    def on_cpu(model, device_map):
        places.update(device_map)
        dispatch(model, {"": "cpu"}, force_hooks=True)

    monkeypatch.setattr("accelerate.dispatch_model", on_cpu)
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 1 << 40, 1: 1 << 40, "cpu": 1 << 40})
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", lambda limits: dict(limits))
    settings = EvaluateSettings.of(backend_arguments={"parallelize": True})
    spread(model, settings)
    layers = [place for name, place in places.items() if name.startswith("model.layers.")]
    assert set(layers) == {0, 1} and layers == sorted(layers)
    (prepared,) = prepare_suite(suite, settings, tokenizer, model.config)
    assert prepared.run(ModelInMemory(model, tokenizer, settings), lambda: None) == before


def test_batches_are_halved_where_memory_is_too_small():
    ran, most = [], 10
    lengths = [5, 1, 4, 3, 2, 1, 1, 2]

    def step(indices):
        if sum(lengths[index] for index in indices) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        ran.append(indices)

    in_batches(lengths, "auto", step)
    assert sorted(index for batch in ran for index in batch) == list(range(8)) and ran[0][0] == 0
    assert max(map(len, ran)) == 2
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        in_batches(lengths, 8, step)
