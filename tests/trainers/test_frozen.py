"""A model in one's own loop: frozen, proved, saved, made a patch, and ordinary again."""

import copy

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model

import trace_transfer as tt
from tests.core_files import core_of
from tests.trainers.cells import load
from tests.tuned_models import weights
from trace_transfer.cli import main
from trace_transfer.trainers.frozen import WrappedModelError

CORES = {
    "llama": {
        "model.embed_tokens.weight": ((3, 140), (200, 290)),
        "model.layers.1.self_attn.q_proj.weight": ((5, 6), (9, 20)),
        "model.layers.0.input_layernorm.weight": ((1, 2), (8, 31)), "model.layers.2.mlp.up_proj.weight": None,
    },
    "qwen2": {
        "model.embed_tokens.weight": ((3, 140), (200, 290)), "model.layers.1.self_attn.q_proj.bias": ((2, 9),),
        "model.norm.weight": None,
    },
    "gpt2": {"transformer.wte.weight": ((0, 7), (50, 300)), "transformer.h.1.ln_1.weight": None},
    "mixtral": {"model.layers.1.mlp.experts.gate_up_proj": ((1, 3),), "model.norm.weight": None},
}  # fmt: skip


def core(tiny, tmp_path, family):
    return core_of(tiny(family), tmp_path / "math.core.json", CORES[family])


def steps(model, number=2, forward=None):
    """Some steps of AdamW; returns the losses."""
    generator, losses = torch.Generator().manual_seed(0), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(number):
        tokens = torch.randint(0, 300, (2, 12), generator=generator)
        loss = (model if forward is None else forward)(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", CORES)
def test_names_are_ordinary_at_any_moment(tiny, tmp_path, family):
    """Saved, loaded, copied and merged: the same values under the same names, tied ones once."""
    model, ordinary = load(tiny(family)), load(tiny(family))
    before = state_of(ordinary)
    trained = tt.freeze_except(model, core(tiny, tmp_path, family))
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    steps(model)
    state = state_of(model)
    assert state.keys() == before.keys()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    tied = set(ordinary.state_dict()) - {name for name, _ in ordinary.named_parameters()}
    assert changed - tied == set(CORES[family])
    model.save_pretrained(tmp_path / "saved")
    assert weights(tmp_path / "saved").keys() == weights(tiny(family)).keys()
    again = load(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    assert again.config.architectures == ordinary.config.architectures
    fresh = load(tiny(family))
    with tt.freeze_except(fresh, core(tiny, tmp_path, family)) as other:
        fresh.load_state_dict(state)
        assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in state.items())
        other.verify()
    model.eval()
    twin = copy.deepcopy(model)
    tokens = torch.arange(12)[None]
    logits = model(input_ids=tokens).logits
    assert torch.equal(twin(input_ids=tokens).logits, logits)
    trained.verify()
    trained.merge()
    assert dict(model.named_parameters()).keys() == dict(ordinary.named_parameters()).keys()
    assert type(model) is type(ordinary) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(input_ids=tokens).logits, logits)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    trained.verify()
    for parameter in twin.parameters():  # a copy is a model of its own
        parameter.data.zero_()
    assert torch.equal(model(input_ids=tokens).logits, logits)


def test_rows_alone_have_gradients_and_state(tiny, tmp_path, capsys):
    model = load(tiny("llama"))
    trained = tt.freeze_except(model, core(tiny, tmp_path, "llama"))
    sizes = sorted(tuple(p.shape) for p in model.parameters() if p.requires_grad)
    assert sizes == [(12, 48), (24,), (80, 48), (227, 48)]
    steps(model)
    assert sorted(tuple(p.grad.shape) for p in model.parameters() if p.grad is not None) == sizes
    trained.print_trainable_parameters()
    count = 12 * 48 + 24 + 80 * 48 + 227 * 48
    total = sum(p.numel() for p in load(tiny("llama")).parameters())
    said = f"trainable params: {count:,} || all params: {total:,} || trainable%: {100 * count / total:.4f}\n"
    assert capsys.readouterr().out == said


@pytest.mark.filterwarnings("ignore::FutureWarning")  # a new name, which older transformers do not know
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_gradient_checkpointing_changes_no_bit(tiny, tmp_path, family):
    found = []
    for reentrant in (None, True):
        model = load(tiny(family))
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        tt.freeze_except(model, core(tiny, tmp_path, family))
        found.append((steps(model), state_of(model)))
    (losses, state), (again, others) = found
    assert losses == again and all(torch.equal(value, others[name]) for name, value in state.items())


@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_compiled_it_trains_as_well(tiny, tmp_path):
    plain, compiled = load(tiny("llama")), load(tiny("llama"))
    tt.freeze_except(plain, core(tiny, tmp_path, "llama"))
    trained = tt.freeze_except(compiled, core(tiny, tmp_path, "llama"))
    torch._dynamo.reset()
    graphs = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    assert steps(compiled, forward=graphs) == pytest.approx(steps(plain), rel=1e-6)
    assert set(graphs.state_dict()) == {f"_orig_mod.{name}" for name in load(tiny("llama")).state_dict()}
    trained.verify()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_patch_makes_the_trained_model_of_the_base(tiny, tmp_path, dtype):
    """A base in bfloat16, trained as it is or in float32."""
    base = tiny("llama", dtype=torch.bfloat16)
    file = core_of(base, tmp_path / "math.core.json", CORES["llama"])
    model, patch = load(base, dtype), tmp_path / "math.patch.safetensors"
    with tt.freeze_except(model, file) as trained:
        steps(model)
        trained.save_patch(patch)
    ran = CliRunner().invoke(main, ["patch", "apply", str(base), str(patch), "--out", str(tmp_path / "tuned")])
    assert ran.exit_code == 0, ran.output
    tuned = load(tmp_path / "tuned", dtype).state_dict()
    assert all(torch.equal(value, tuned[name]) for name, value in model.state_dict().items())
    arguments = ["verify", str(base), str(tmp_path / "tuned"), "--core", str(file), "--patch", str(patch)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with tt.freeze_except(load(base), file) as trained:
        steps(trained.model)
        trained.save_patch(tmp_path / "small.patch.safetensors", dtype=torch.bfloat16)
    smaller = (tmp_path / "small.patch.safetensors").stat().st_size / patch.stat().st_size
    assert smaller < 0.75 if dtype == torch.float32 else smaller == pytest.approx(1)


def test_what_moved_is_named(tiny, tmp_path):
    model = load(tiny("llama"))
    trained = tt.freeze_except(model, core(tiny, tmp_path, "llama"))
    model.get_parameter("lm_head.weight").requires_grad_(True)
    with pytest.raises(tt.FrozenMovedError, match=r"\n  - lm_head.weight: not core, and requires a gradient$"):
        trained.verify()
    steps(model)
    with torch.no_grad():
        model.model.embed_tokens.parametrizations.weight.original[150] += 1  # row 150 is not core
        model.model.layers[3].mlp.up_proj.weight[0, 0] = -0.0 if model.model.layers[3].mlp.up_proj.weight[0, 0] else 1
    moved = r"embed_tokens.weight: rows that .*\n.*layers.3.mlp.up_proj.weight: not .*\n.*lm_head.weight: not [^\n]*$"
    with pytest.raises(tt.FrozenMovedError, match=moved):
        trained.verify()


@pytest.mark.filterwarnings("ignore")  # of peft about itself
def test_what_cannot_be_frozen_is_refused(tiny, tmp_path):
    file = core(tiny, tmp_path, "llama")
    adapted = get_peft_model(load(tiny("llama")), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(WrappedModelError, match=r"PeftModel has the model already"):
        tt.freeze_except(adapted, file)
    with pytest.raises(tt.UserError, match=r"is of .*llama \(39 tensors\), and the model is a Qwen2ForC"):
        tt.freeze_except(load(tiny("qwen2")), file)
    model = load(tiny("llama"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WrappedModelError, match="an optimizer was made before the model was frozen"):
        tt.freeze_except(model, file)
    del optimizer
    trained = tt.freeze_except(model, file)
    with pytest.raises(WrappedModelError, match="Spliced has the model already"):
        tt.freeze_except(model, file)
    trained.merge()
    tt.freeze_except(model, file).merge()


@pytest.fixture
def group():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_what_fsdp_has_is_refused_and_what_it_gets_later_is_trained(tiny, tmp_path, group):
    from torch.distributed.fsdp import fully_shard

    file, mesh = core(tiny, tmp_path, "llama"), torch.distributed.init_device_mesh("cpu", (1,))
    with pytest.raises(WrappedModelError, match="FSDPModule has the model already: freeze the plain one"):
        tt.freeze_except(fully_shard(load(tiny("llama")), mesh=mesh), file)
    trained = tt.freeze_except(load(tiny("llama")), file)
    for layer in trained.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(trained.model, mesh=mesh)
    steps(trained.model)
    trained.verify()
    with pytest.raises(tt.UserError, match="FSDP or ZeRO 3 hold the model in parts"):
        trained.merge()
    frozen = trained.model.model.layers[3].mlp.up_proj.weight
    frozen.requires_grad_(True)
    with torch.no_grad():
        frozen.to_local()[0] += 1
    with pytest.raises(tt.FrozenMovedError, match=r"layers.3.mlp.up_proj.weight: not core, and moved"):
        trained.verify()
