"""On a GPU what a CPU gives: `map`, Fisher information, scores, training. `make gpu`; on CPUs in small.

The device `cpu` runs the same code in the ordinary tests; `cuda` is left out where there is none.
"""

from threading import Event

import pytest
import torch

from tests.evaluation_files import loaded, write_suite
from tests.gpu import measuring
from tests.patch_files import state_of
from tests.stream_files import write_stream
from trace_transfer.data.examples import Example
from trace_transfer.data.probe import ProbeSet, plan_rows
from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import load_suite
from trace_transfer.families.model_handle import load_tokenizer, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.fisher import fisher_information
from trace_transfer.identification.gradients import BaseGradients
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.patch.patches import Patch
from trace_transfer.progress import Silent
from trace_transfer.stopping import StopRequested, StopSignal
from trace_transfer.training.settings import StreamSettings
from trace_transfer.training.streaming import plan_stream, run_stream
from trace_transfer.transfer.probing import read_grams
from trace_transfer.transfer.settings import MapSettings
from trace_transfer.transfer.similarity import debiased_cka

GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
)
DEVICES = ["cpu", GPU]
TEXTS = tuple(
    f"The {number}th of many short texts says that {number} and {number} is {2 * number}." for number in range(40)
)


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def similarity(models, device, dtype):
    opened = [open_model(model, load_families()) for model in models]
    rows = plan_rows(ProbeSet("test", TEXTS), *(load_tokenizer(one.source) for one in opened), num_minibatches=2)
    settings = MapSettings(batch_size=8, cache=None)
    source, target = (
        read_grams(one, open_checkpoint(one.source), rows, reading, settings, device, dtype, Silent(), Event()).stacks[
            "stream"
        ]
        for one, reading in zip(opened, (rows.source, rows.target), strict=True)
    )
    return debiased_cka(source, target)


@pytest.mark.parametrize("device", DEVICES)
def test_map(tiny, device):
    """The same similarities in float32, and nearly the same in bfloat16."""
    models = tiny("llama"), tiny("qwen3")
    expected = similarity(models, "cpu", torch.float32)
    assert torch.allclose(similarity(models, device, torch.float32), expected, atol=1e-4)
    assert torch.allclose(similarity(models, device, torch.bfloat16), expected, atol=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_fisher(tiny, device):
    model, _ = loaded(tiny("qwen3"))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 400, (4, 24), generator=generator).tolist()
    examples = [Example(f"text:{number}", tuple(row), tuple(row)) for number, row in enumerate(rows)]
    expected = fisher_information(model, examples, layer_path="model.layers")
    found = fisher_information(model.to(device), examples, layer_path="model.layers", streamed=True)
    assert found.values.keys() == expected.values.keys()
    for name, value in expected.values.items():
        assert found.values[name] == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("device", [GPU])
def test_gradients_at_the_base(tiny, device):
    base = open_model(tiny("qwen2"), load_families())
    examples = [Example(str(seed), ids, ids) for seed in range(3) if (ids := tuple(range(seed + 1, 30, seed + 1)))]
    expected, found = (
        {one.name: one for one in BaseGradients(base, open_checkpoint(base.source), [examples], place).tensors()}
        for place in ("cpu", device)
    )
    for name, one in expected.items():
        for ours, theirs in ((found[name].mean, one.mean), (found[name].square, one.square)):
            assert torch.allclose(ours.cpu(), theirs, rtol=1e-2, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_scores(tiny, tmp_path, device):
    suite = load_suite(write_suite(tmp_path / "suite"))
    expected, found = (
        evaluate(
            plan_evaluation(tiny("llama"), suite, EvaluateSettings.of(device=place, dtype="float32", **more)),
            tmp_path / name, Silent(),
        ).scores
        for name, place, more in (
            ("one", "cpu", {}), ("other", device, {"batch_size": "auto", "backend_arguments": {"parallelize": True}})
        )
    )  # fmt: skip
    for one, other in zip(expected, found, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-4)


TRAININGS = [
    ("cpu", "trace", 0),
    *(
        pytest.param("cuda", method, zero, marks=GPU.marks)
        for method, zero in (("trace", 0), ("trace", 1), ("trace", 2), ("trace", 3), ("full", 0), ("lora", 2))
    ),
]  # fmt: skip


def planned(model, stream, out, **more):
    settings = StreamSettings.of(epochs=2, batch_size=2, micro_batch_size=2, checkpoint_minutes=0, **more)
    return plan_stream(model, stream, settings=settings, rules=(), out=out)


@pytest.mark.parametrize(("device", "method", "zero"), TRAININGS)
def test_training(tiny, tmp_path, device, method, zero):
    """Tensors and rows: what is frozen keeps its bits, and a stopped training goes on to the same end."""
    model = tiny("llama")
    stream = write_stream(tmp_path / "data", model, 4, {"math": 6, "law": 6})
    straight = planned(model, stream, tmp_path / "straight", method=method, zero=zero)
    assert straight.precision == ("bfloat16" if device == "cuda" else "float32")
    done = run_stream(straight, Silent(), StopSignal())
    assert done.verification.ok and not done.verification.unmoved
    stop = StopSignal()

    class Stopping(Silent):
        def note(self, message):
            stop.requested = True

        def task(self, description, total):
            stop.requested = stop.requested or description.startswith("training")
            return super().task(description, total)

    with pytest.raises(StopRequested, match="the same command goes on"):
        run_stream(planned(model, stream, tmp_path / "stopped", method=method, zero=zero), Stopping(), stop)
    run_stream(planned(model, stream, tmp_path / "stopped", method=method, zero=zero), Silent(), StopSignal())
    for task in ("math", "law"):
        one, other = (Patch.open(tmp_path / name / f"{task}.patch.safetensors") for name in ("straight", "stopped"))
        state = [state_of(model).apply(patch) for patch in (one, other)]
        for name in state[0].patched:
            values = [each.value(name).float() for each in state]
            assert torch.equal(*values) if device == "cpu" else torch.allclose(*values, atol=1e-3)


@pytest.mark.slow
def test_the_benchmark(tmp_path, monkeypatch, capsys):
    """All of it, in small, on a CPU: a child for each training."""
    monkeypatch.setattr("sys.argv", ["measuring", "--device", "cpu", "--small"])
    measuring.main()
    said = capsys.readouterr().out
    for told in ("GB/s from the host", "map, one model", "CKA in bfloat16", "Fisher information", "masked", "LoRA"):
        assert told in said
