"""A model in training with its layers, and texts: what tests of the cached prefix share."""

import torch
from transformers import AutoModelForCausalLM

from tests.training.made_up import make_task
from trace_transfer.examples import collate, losses
from trace_transfer.models import inventory_of
from trace_transfer.rules.application import anatomy_of
from trace_transfer.rules.registry import load_families
from trace_transfer.training.prefix_store import PrefixCache
from trace_transfer.training.ranks import Ranks

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox")
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FOUR_FILES = {"micro_batch_size": 2, "shard_bytes": 5 << 10}  # of one, one, two and one micro-batches, in llama
ALONE = Ranks(0, 1, torch.device("cpu"))


class Opened:
    """A model in training, its layers, and what its rules say of it."""

    def __init__(self, tiny, family, dtype=torch.float32):
        directory = tiny(family, **(NO_DROPOUT if family == "gpt2" else {}))
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).train()
        self.anatomy = anatomy_of(inventory_of(self.model), load_families(None))
        self.layers = self.model.get_submodule(self.anatomy.layer_path)
        self.head = self.model.get_output_embeddings()
        self.examples = make_task(10, vocabulary=300).examples

    def run(self, batch):
        return self.model(
            input_ids=batch.input_ids_bt, attention_mask=batch.attention_mask_bt, use_cache=False
        ).logits  # fmt: skip

    def train_only(self, names):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)

    def trained_from(self, boundary):
        """Names of all parameters of a layer, and of the final norm."""
        names = [
            unit.name
            for unit in self.anatomy.units
            if unit.component == "norm.final" or (unit.layer == boundary and unit.component != "attention.query")
        ]
        self.train_only(names)
        return names

    def cache(self, directory, boundary, **changes):
        width = self.model.get_input_embeddings().embedding_dim
        given = {"identity": {"model": "a"}, "micro_batch_size": 3, "dtype": self.model.dtype, **changes}
        return PrefixCache(directory, examples=self.examples, boundary=boundary, width=width, **given)

    def loss_and_gradients(self, examples):
        batch = collate(examples)
        loss = losses(self.run(batch), batch.targets_bt).sum()
        self.model.zero_grad()
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
