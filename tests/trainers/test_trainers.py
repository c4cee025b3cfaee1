"""What trainers do beside training: checkpoints, resuming, plugins."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import trace_transfer as tt
from tests.core_files import core_of
from tests.trainers.cells import BATCH, STEPS, batches, in_a_trainer, load

CHOSEN = {
    "model.embed_tokens.weight": ((3, 140), (200, 290)),
    "model.layers.1.self_attn.q_proj.weight": ((5, 6), (9, 20)),
    "model.layers.2.mlp.up_proj.weight": None,
    "model.norm.weight": None,
}
FAMILY = "qwen2"  # its head is the embedding

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and axolotl about themselves


@pytest.fixture
def core(tiny, tmp_path):
    return core_of(tiny(FAMILY), tmp_path / "math.core.json", CHOSEN)


def test_resumed_it_ends_with_the_same_bits(tiny, core, tmp_path):
    """From a checkpoint in the middle, which is an ordinary model."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    _, losses = in_a_trainer(load(tiny(FAMILY)), core, "one", tmp_path / "once", sft=False, **saving)
    checkpoint = tmp_path / "once" / "checkpoint-2"
    ordinary = load(checkpoint).state_dict()
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == load_file(tmp_path / "once" / "model.safetensors").keys()
    assert "lm_head.weight" not in stored and all(torch.equal(value, ordinary[name]) for name, value in stored.items())
    again = {"resume_from_checkpoint": str(checkpoint)}
    trained, resumed = in_a_trainer(load(tiny(FAMILY)), core, "one", tmp_path / "again", sft=False, **again)
    assert resumed == losses and len(losses) == STEPS
    once, other = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "again"))
    assert all(torch.equal(value, other[name]) for name, value in once.items())
    assert trained.task == "math" and (tmp_path / "again" / "math.patch.safetensors").is_file()


def test_a_callback_that_comes_too_late_is_refused(tiny, core, tmp_path):
    trainer = Trainer(load(tiny(FAMILY)), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.train_dataset = [{"input_ids": row, "labels": row} for row in batches().flatten(0, 1)]
    trainer.add_callback(tt.CoreCallback(core))
    with pytest.raises(tt.UserError, match="give it when the trainer is made"):
        trainer.train()


@pytest.mark.parametrize(("strategy", "told"), [("no", "rows of it are core, and it is tied"), ("steps", "FULL_STATE")])
def test_rows_that_fsdp_cannot_train_or_resume_are_refused(tiny, core, strategy, told):
    arguments = SimpleNamespace(fsdp=True, fsdp_config={}, save_only_model=False, save_strategy=strategy)
    with pytest.raises(tt.UserError, match=told):
        tt.CoreCallback(core).on_init_end(arguments, None, None, model=load(tiny(FAMILY)))


def test_the_plugin_for_axolotl(tiny, core, tmp_path):
    """Axolotl's own manager of plugins takes it, its configuration the key, and what it makes trains rows."""
    from axolotl.integrations.base import PluginManager
    from axolotl.integrations.config import merge_input_args
    from axolotl.utils.dict import DictDefault

    manager = PluginManager.get_instance()
    manager.register("trace_transfer.trainers.axolotl.TraceCorePlugin")
    _, configuration = merge_input_args()
    assert configuration.model_fields["trace_core"].is_required()
    cfg = DictDefault({"trace_core": str(core), "base_model": str(tiny(FAMILY))})
    model = load(tiny(FAMILY))
    arguments = TrainingArguments(
        str(tmp_path / "out"), use_cpu=True, report_to="none", per_device_train_batch_size=BATCH, max_steps=2,
        learning_rate=1e-2, weight_decay=0.1,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in batches().flatten(0, 1)]
    callbacks = manager.add_callbacks_pre_trainer(cfg, model)
    Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    before, after = load(tiny(FAMILY)).state_dict(), model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])} - {"lm_head.weight"}
    assert moved == set(CHOSEN)
    changed = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(dim=1).nonzero()
    assert set(changed.flatten().tolist()) <= {*range(3, 140), *range(200, 290)}
    assert (tmp_path / "out" / "math.patch.safetensors").is_file()
