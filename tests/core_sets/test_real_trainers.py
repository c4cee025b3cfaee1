"""On models of full size each trainer's own code trains exactly the core set, or the export is refused."""

import pytest

from tests.core_sets import trainers
from tests.core_sets.full_size import FEATURED, SETS, core_set, fresh, model_of, names_of
from trace_transfer.core_sets.exporting import FORMATS
from trace_transfer.core_sets.trainer_settings import ExportError, write_peft


@pytest.mark.parametrize("trainer", ["axolotl", "ms-swift"])
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", FEATURED)
def test_lists_and_patterns_train_the_core_set(name, kind, trainer):
    text = FORMATS[trainer].write(core_set(name, SETS[kind](name)))
    found = getattr(trainers, trainer.replace("-", "_"))(fresh(name), text)
    assert found == set(SETS[kind](name))


@pytest.mark.parametrize("kind", ["matrices", "attention_of_layer_1", "outside"])
@pytest.mark.parametrize("name", [*FEATURED, "qwen2_moe", "qwen3_moe"])
def test_adapters_stand_where_the_core_set_is(name, kind):
    chosen = SETS[kind](name)
    before = list(map(id, fresh(name).parameters()))
    text = write_peft(core_set(name, chosen), model_of(name), rank=4)
    assert trainers.peft(fresh(name), text) == set(chosen)
    assert list(map(id, model_of(name).parameters())) == before


def test_all_of_a_model_with_a_tied_head_and_transposed_weights():
    text = write_peft(core_set("gpt2", names_of("gpt2")), model_of("gpt2"))
    assert "ensure_weight_tying=True" in text
    assert trainers.peft(fresh("gpt2"), text) == set(names_of("gpt2"))


@pytest.mark.parametrize("dense", ["down_proj", "gate_proj"])
def test_a_dense_layer_of_a_mixture_of_experts_is_no_expert(dense):
    """peft takes `down_proj` of such a model for the experts of all layers, as it was before transformers 5.

    `gate_proj` without `up_proj` it refuses, since both were fused there.
    """
    chosen = [f"model.layers.1.mlp.{dense}.weight", "model.layers.5.mlp.experts.gate_up_proj", "lm_head.weight"]
    text = write_peft(core_set("qwen3_moe", chosen), model_of("qwen3_moe"))
    assert trainers.peft(fresh("qwen3_moe"), text) == set(chosen)


@pytest.mark.parametrize(
    ("layers", "modules", "extra"),
    [
        (range(3), ("mlp", "self_attn", "input_layernorm", "post_attention_layernorm"), ()),
        (range(7, 32, 8), ("self_attn",), ("lm_head",)),  # LLaMA Pro's
        ((), (), ("lm_head", "embed_tokens")),
        (range(32), ("post_attention_layernorm",), ("embed_tokens",)),
    ],
)
def test_whole_modules_of_layers_are_what_llama_factory_can(layers, modules, extra):
    chosen = [n for layer in layers for module in modules for n in names_of("llama-3-8b", f".{layer}.{module}.")]
    chosen += [n for module in extra for n in names_of("llama-3-8b", module)]
    text = FORMATS["llama-factory"].write(core_set("llama-3-8b", chosen))
    assert trainers.llama_factory(fresh("llama-3-8b"), text) == set(chosen)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", FEATURED)
def test_llama_factory_trains_the_core_set_or_is_refused(name, kind):
    core = core_set(name, SETS[kind](name))
    if kind == "names_of":
        assert trainers.llama_factory(fresh(name), FORMATS["llama-factory"].write(core)) == set(SETS[kind](name))
    else:
        with pytest.raises(ExportError, match="LLaMA-Factory cannot train exactly this core set"):
            FORMATS["llama-factory"].write(core)
