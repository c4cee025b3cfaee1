from contextlib import ExitStack

import pytest
import torch

from tests.engine.made_up import base_of, settings
from tests.tiny_gguf import write_gguf
from tests.tiny_models import FAMILIES as TINY
from tests.tiny_models import REPRESENTATIVES, build_config, build_model, save_model
from trace_transfer.engine import loading
from trace_transfer.engine.deepspeed_json import configuration
from trace_transfer.engine.distributed import collect_garbage, open_ranks
from trace_transfer.engine.engine import fill_partitioned
from trace_transfer.engine.slices import gathered, shapes_of

FAMILIES = ("qwen2", "phi3", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_weights_and_the_exact_ones(tiny, family, capfd):
    start = base_of(tiny(family))
    exact, rounded = start.load(torch.float32), start.load(torch.bfloat16)
    assert {name: tuple(p.shape) for name, p in exact.named_parameters()} == dict(start.inventory.shapes)
    assert exact.config.use_cache is False
    found = dict(start.values(start.inventory.shapes, torch.float32))
    assert found.keys() == start.inventory.shapes.keys()
    for (name, parameter), low in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(found[name], parameter), name
        assert torch.equal(low, parameter.bfloat16()), name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("gpt_oss", torch.float32),
        *((one, torch.bfloat16) for one in REPRESENTATIVES),
        *(pytest.param(one, torch.bfloat16, marks=pytest.mark.slow) for one in TINY if one not in REPRESENTATIVES),
    ],
)
def test_partitioned_is_the_same_model(tiny, family, dtype):
    """Tensors, buffers and what it computes, to the bit."""
    start = base_of(tiny(family))
    whole, model = start.load(dtype).eval(), start.skeleton(dtype).eval()
    if family == "qwen3_moe":  # its experts are 20 wide, and grouped products take rows of whole 16 bytes only
        for one in (whole, model):
            one.set_experts_implementation("eager")
    for parameter in whole.parameters():
        # What is read lies in the mapped file, at addresses that are no multiple of 16 bytes, and there MKL's product
        # of a matrix and a vector sums in another order: `shared_expert_gate` of Qwen2-MoE has one row, such a vector.
        parameter.data = parameter.data.clone()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.state_dict().keys() == whole.state_dict().keys()
    with open_ranks() as ranks:
        config = configuration(settings(zero=3), ranks, dtype, start.inventory.num_elements)
        fill_partitioned(model, start.values(start.inventory.shapes, dtype), config, ranks)
        assert {parameter.numel() for parameter in model.parameters()} == {0}
        assert shapes_of(model) == start.inventory.shapes
        buffers = dict(whole.named_buffers())
        for name, buffer in model.named_buffers():
            assert buffer.dtype == buffers.pop(name).dtype, name
            assert torch.equal(buffer, whole.get_buffer(name)), name
        assert buffers == {}
        with ExitStack() as together, torch.no_grad():
            for name, parameter in model.named_parameters():
                together.enter_context(gathered(parameter))
                assert torch.equal(parameter, whole.get_parameter(name)), name
            ids = torch.arange(1, 40)[None]
            assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    collect_garbage()


LOADED = {
    "gpt2": {},  # tied, with biases
    "mixtral": {"num_local_experts": 3, "head_dim": 8},  # fused when they are loaded
    "deepseek_v3": {  # a buffer that is saved, and stays float32
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "num_key_value_heads": 6, "num_hidden_layers": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "together"), [(torch.float32, 1), (torch.float32, 5_000), (torch.bfloat16, 2**26)])
@pytest.mark.parametrize("family", LOADED)
def test_some_at_a_time_are_the_same_model(tmp_path, family, dtype, together, monkeypatch):
    monkeypatch.setattr(loading, "TOGETHER", together)
    model = build_model(build_config(family, **LOADED[family]))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data.normal_()
    start = base_of(save_model(model, tmp_path / family, None))
    whole, skeleton = start.load(dtype), start.skeleton(dtype)
    for name, value in start.values(start.inventory.shapes, dtype):
        assert value.dtype == dtype, name
        assert torch.equal(value, whole.get_parameter(name).to(dtype)), name
    for name, buffer in whole.named_buffers():
        assert skeleton.get_buffer(name).dtype == buffer.dtype, name
        assert torch.equal(skeleton.get_buffer(name), buffer), name


def test_gguf(tmp_path):
    model = build_model(build_config("llama"))
    start = base_of(write_gguf(model, tmp_path / "tiny.gguf"))
    loaded, exact = start.load(torch.float32), dict(start.values(start.inventory.shapes, torch.float32))
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
        assert torch.equal(exact[name], parameter), name
