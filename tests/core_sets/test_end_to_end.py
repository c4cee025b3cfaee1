"""Small models trained by the trainers themselves with what was exported: the core set moved, and nothing else."""

import json
import runpy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.core_files import core_of
from tests.tiny_models import TEXTS
from trace_transfer.core_sets.exporting import export_core
from trace_transfer.core_sets.importing import import_patterns
from trace_transfer.patch.patches import Patch
from trace_transfer.records import to_json


def loaded(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def moved(before, after):
    """Names of tensors that differ in any bit."""
    one, other = dict(before.named_parameters()), dict(after.named_parameters())
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of transformers and trl about themselves
def test_the_program_for_trl_runs(tiny, tmp_path):
    base = tiny("qwen3")
    rows = {
        "model.embed_tokens.weight": ((0, 100), (200, 250)), "model.layers.2.mlp.down_proj.weight": None,
        "model.layers.1.self_attn.q_norm.weight": ((3, 9),),
    }  # fmt: skip
    core = core_of(base, tmp_path / "math.core.json", rows)
    program, data = tmp_path / "math.py", tmp_path / "data.jsonl"
    program.write_text(export_core([core], "trl")[1], encoding="utf-8")
    texts = [{"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]} for text in TEXTS]
    data.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    runpy.run_path(str(program))["main"](str(data), str(tmp_path / "out"))
    assert moved(loaded(base), loaded(tmp_path / "out")) == set(rows)
    patch = Patch.open(tmp_path / "out" / "math.patch.safetensors")
    assert set(patch.mask.parts) == set(rows) and len(patch.mask.sliced) == 2


CHOSEN = {
    "qwen2": [f"model.layers.1.self_attn.{one}_proj.{kind}" for one in "qkv" for kind in ("weight", "bias")],
    "gpt2": ["transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias", "transformer.wte.weight",
             "transformer.h.2.ln_1.weight", "transformer.h.2.ln_1.bias"],
}  # fmt: skip


@pytest.mark.parametrize("family", CHOSEN)
def test_merged_adapters_have_changed_the_core_set(tiny, tmp_path, family):
    """gpt2: the head is tied to the embedding, and its adapter to the embedding's."""
    from peft import get_peft_model

    base = tiny(family)
    core = core_of(base, tmp_path / "math.core.json", CHOSEN[family])
    namespace = {}
    exec(export_core([core], "peft", rank=2, alpha=4)[1], namespace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's and transformers', about each other
        torch.manual_seed(0)
        model = get_peft_model(loaded(base), namespace["config"])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(2):
            tokens = torch.randint(0, 300, (2, 12))
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        merged = model.merge_and_unload()
    assert moved(loaded(base), merged) == set(CHOSEN[family])
    assert {adapter.r["default"] for adapter in model.modules() if hasattr(adapter, "lora_A")} <= {2}


def test_a_list_that_was_exported_comes_back(tiny, tmp_path):
    base = tiny("phi3")
    rows = {"lm_head.weight": ((0, 2), (5, 512)), "model.layers.1.mlp.gate_up_proj.weight": ((0, 80),),
            "model.layers.1.input_layernorm.weight": None}  # fmt: skip
    exported, text = export_core([core_of(base, tmp_path / "math.core.json", rows)], "axolotl")
    (tmp_path / "list.yaml").write_text(text, encoding="utf-8")
    back = import_patterns(tmp_path / "list.yaml", base, "math")
    (tmp_path / "back.core.json").write_text(to_json(back), encoding="utf-8")
    again, other = export_core([tmp_path / "back.core.json"], "axolotl")
    assert again.mask == exported.mask
    body = [line for line in text.splitlines() if not line.startswith("#")]
    assert body == [line for line in other.splitlines() if not line.startswith("#")]
