"""What is written for each trainer: its settings, its header, and what is refused with which words."""

import csv
import io
import re

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from tests.core_sets.full_size import core_file, core_set, model_of, names_of
from trace_transfer.core_sets import trainer_settings
from trace_transfer.core_sets.exporting import COLUMNS, FORMATS, write_csv, write_trl
from trace_transfer.core_sets.masks import Slice
from trace_transfer.core_sets.trainer_settings import (
    CoreSet,
    ExportError,
    InexactExportError,
    exact_pattern,
    write_axolotl,
    write_llama_factory,
    write_ms_swift,
    write_peft,
)
from trace_transfer.errors import UserError
from trace_transfer.models.sources import inventory_of

Q, DOWN, NORM = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.10.mlp.down_proj.weight",
    "model.layers.2.input_layernorm.weight",
)
LLAMA = "llama-3-8b"


def test_axolotl():
    text = write_axolotl(core_set(LLAMA, {DOWN: None, Q: ((0, 128), (256, 384)), NORM: None}))
    assert yaml.safe_load(text) == {
        "weight_decay": 0.0,
        "unfrozen_parameters": [
            r"^model.layers.1.self_attn.q_proj.weight$[0:128]",
            r"^model.layers.1.self_attn.q_proj.weight$[256:384]",
            r"^model.layers.2.input_layernorm.weight$",
            r"^model.layers.10.mlp.down_proj.weight$",
        ],
    }
    assert "ZeRO 3 or FSDP" in text
    whole = write_axolotl(core_set(LLAMA, [Q]))
    assert yaml.safe_load(whole) == {"unfrozen_parameters": [f"^{Q}$"]}
    assert "ZeRO" not in whole


def test_ms_swift():
    text = write_ms_swift(core_set(LLAMA, [Q, DOWN]))
    assert yaml.safe_load(text) == {
        "tuner_type": "full",
        "freeze_parameters_ratio": 1,
        "trainable_parameters_regex": "^(?:" + "|".join(map(re.escape, (Q, DOWN))) + ")$",
    }


def test_llama_factory():
    chosen = names_of(LLAMA, ".30.mlp.") + names_of(LLAMA, ".31.mlp.") + ["lm_head.weight"]
    assert yaml.safe_load(write_llama_factory(core_set(LLAMA, chosen))) == {
        "finetuning_type": "freeze", "freeze_trainable_layers": 2, "freeze_trainable_modules": "mlp",
        "freeze_extra_modules": "lm_head",
    }  # fmt: skip
    left = rf"without training others:\n  - {re.escape(Q)}\n  - model\.norm\.weight$"
    with pytest.raises(ExportError, match=rf"\(input_layernorm, mlp, .* of the first n layers, .* {left}"):
        write_llama_factory(core_set(LLAMA, [*chosen, Q, "model.norm.weight"]))
    core = core_set(LLAMA, names_of(LLAMA))
    shapes = {**core.shapes, "model.vision_tower.layers.0.mlp.weight": (2, 2)}
    with pytest.raises(ExportError, match=r"several stacks of layers \(model.layers, model.vision_tower.layers\)"):
        write_llama_factory(CoreSet(core.files, core.cores, shapes, core.mask))


@pytest.mark.parametrize("trainer", ["regex", "ms-swift"])
def test_a_pattern_that_finds_other_tensors_is_not_written(trainer, monkeypatch):
    monkeypatch.setattr(trainer_settings, "exact_pattern", lambda names: f"{Q}|{NORM}")
    with pytest.raises(InexactExportError, match=f"(?s){DOWN}: core, but would not.*{NORM}: not core, but would"):
        FORMATS[trainer].write(core_set(LLAMA, [Q, DOWN]))


def test_csv():
    core = core_set(LLAMA, {DOWN: None, Q: ((0, 128), (256, 384))})
    rows = list(csv.DictReader(io.StringIO(write_csv(core))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 292  # of one tensor two parts
    first = next(row for row in rows if row["name"] == Q)
    assert {key: first[key] for key in ("task", "rows", "columns", "shape", "elements", "core")} == {
        "task": "math", "rows": "0:128 256:384", "columns": "", "shape": "4096x4096", "elements": str(256 * 4096),
        "core": "1",
    }  # fmt: skip
    assert [row["name"] for row in rows if row["core"] == "1"] == [Q, DOWN]
    assert {row["score"] for row in rows if row["core"] == "0"} == {""}
    assert float(first["score"]) == core.cores[0].core[0].score


def test_peft():
    text = write_peft(core_set(LLAMA, [Q, DOWN, NORM, "model.embed_tokens.weight"]), model_of(LLAMA), 4, 8.0)
    found = {}
    exec(text, found)
    config = found["config"]
    assert (config.r, config.lora_alpha, config.bias, config.task_type) == (4, 8.0, "none", "CAUSAL_LM")
    expected = ("model.embed_tokens", Q.removesuffix(".weight"), DOWN.removesuffix(".weight"))
    assert {name for name, _ in model_of(LLAMA).named_modules() if re.fullmatch(config.target_modules, name)} == {
        *expected
    }
    assert config.modules_to_save == ["model.layers.2.input_layernorm"]


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        (
            "qwen2.5-14b",
            [*names_of("qwen2.5-14b", ".1.self_attn.q_proj"), "model.layers.3.self_attn.k_proj.weight"],
            "model.layers.3.self_attn.k_proj.bias: not core, but would train",
        ),
        ("gpt_oss", names_of("gpt_oss", ".0.self_attn"), "self_attn.sinks: core, but would not train"),
        ("qwen2.5-14b", ["model.layers.1.self_attn.q_proj.bias"], "^LoRA needs a matrix to adapt"),
    ],
)
def test_peft_refuses_what_no_adapter_is(name, chosen, message):
    with pytest.raises(ExportError, match=f"(?s){message}"):
        write_peft(core_set(name, chosen), model_of(name))


def parts_of_two():
    """Rows of one tensor and columns of another."""
    core = core_set(LLAMA, [Q, DOWN, NORM])
    parts = {Q: Slice(0, ((0, 128), (256, 384))), DOWN: Slice(1, ((5, 6),)), NORM: None}
    return CoreSet(core.files, core.cores, core.shapes, type(core.mask)(parts))


@pytest.mark.parametrize("trainer", ["ms-swift", "axolotl", "peft"])
def test_parts_are_refused_all_at_once(trainer):
    parts = [rf"  - {re.escape(Q)}: rows 0-127, 256-383\n"] * (trainer != "axolotl") + [f"  - {DOWN}: columns 5-5$"]
    refusal = r"cannot train these parts of tensors: [^\n]*trace-transfer train[^\n]*:\n" + "".join(parts)
    write = FORMATS[trainer].write or (lambda core: write_peft(core, model_of(LLAMA)))
    with pytest.raises(ExportError, match=refusal):
        write(parts_of_two())


def test_the_program_for_trl_reads_the_core_file():
    text = write_trl(parts_of_two())
    assert 'callbacks=[tt.CoreCallback("math.core.json")]' in text.replace("'", '"')


def test_several_files_are_joined_and_must_be_of_one_model():
    shapes = inventory_of(model_of(LLAMA)).shapes
    one, other = core_file(LLAMA, [Q, NORM]), core_file(LLAMA, {DOWN: None, Q: ((0, 2),)}, task="law")
    core = CoreSet.of({"a": one, "b": other}, shapes)
    assert (core.names, core.tasks, core.mask.sliced) == ((Q, NORM, DOWN), ("math", "law"), {})
    assert "Core set of tasks math, law for x: 3 of 291 tensors, " in core.header("x")
    with pytest.raises(UserError, match="core files of several models cannot be exported as one: a, c"):
        CoreSet.of({"a": one, "c": core_file("phi3", ["lm_head.weight"])}, shapes)


# ---- one expression for exactly some names, proved by trying all names

TOKENS = st.sampled_from(["0", "1", "2", "10", "12", "21", "a", "ab", "a+", "weight", "x-y", "[0:5]", ""])
NAMES = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)


@given(st.sets(NAMES, min_size=1, max_size=25), st.sets(NAMES, max_size=25))
def test_it_matches_what_is_in_the_set(names, others):
    pattern = exact_pattern(names)
    assert {name for name in names | others if re.fullmatch(pattern, name)} == names
