"""The layer-by-layer pass against the ordinary forward pass, for all families; what it reads and what it holds."""

import pytest
import torch

from tests.reference.ordinary_forward import rows_of_all_layers
from tests.tiny_models import FAMILIES, REPRESENTATIVES, TEXTS, build_tokenizer, tokenizer_kind
from tests.tuned_models import damage
from trace_transfer.data.probe import ProbeSet, RowPlan, plan_rows
from trace_transfer.errors import ModelError
from trace_transfer.families.registry import load_families
from trace_transfer.models.checkpoints import SafetensorsCheckpoint, open_checkpoint
from trace_transfer.models.sources import ModelSource, load_config, read_inventory
from trace_transfer.models.stored_weights import read_stored
from trace_transfer.transfer.mapping import plan_map
from trace_transfer.transfer.probing import read_layers
from trace_transfer.transfer.settings import MapSettings

LAYER_PATHS = {kind: family.layer_path for kind, family in load_families().by_model_type.items()}

# Both passes do the same float32 operations on the same weights, but a batch of 5 padded texts and a single one go
# through matrix products of other shapes, which sum in another order: a few ulp (6e-8) per product, on values up to 30
# and three to five layers deep. 2e-5 was measured. Equal shapes give equal bits: `test_one_text_at_a_time`.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def plan_for(family: str, rows: str, texts=TEXTS) -> RowPlan:
    kind = tokenizer_kind(family)
    other = {"prose": "code", "code": "prose"}[kind]
    return plan_rows(ProbeSet("test", tuple(texts)), build_tokenizer(kind), build_tokenizer(other), kind=rows)


def streamed(directory, family, plan, *, attention=None, checkpoint=None, batch_size=5, consume=None, **options):
    config = load_config(ModelSource.parse(directory))
    if attention:
        config._attn_implementation = attention
    found = []
    read_layers(
        config, checkpoint or open_checkpoint(ModelSource.parse(directory)), LAYER_PATHS[family], plan.source,
        plan.texts_R, consume or found.append, name=family, batch_size=batch_size, **options,
    )  # fmt: skip
    return found


def assert_same(found, expected):
    assert [rows.layer for rows in found] == list(range(len(expected)))
    for rows, (stream, update) in zip(found, expected, strict=True):
        assert rows.stream.dtype == rows.update.dtype == torch.float32
        torch.testing.assert_close(rows.stream.double(), stream, **TOLERANCE)
        torch.testing.assert_close(rows.update.double(), update, **TOLERANCE)


@pytest.mark.parametrize(
    ("rows", "dtype", "attention"), [("word", torch.float32, None), ("example", torch.bfloat16, "eager")]
)
@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_equals_the_ordinary_forward_pass(tiny, family, rows, dtype, attention):
    plan = plan_for(family, rows)
    directory = tiny(family, dtype=dtype)
    assert len(list(directory.glob("*.safetensors"))) > 1
    expected = rows_of_all_layers(directory, LAYER_PATHS[family], plan.source, plan.texts_R, attention)
    assert_same(streamed(directory, family, plan, attention=attention), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_text_at_a_time(tiny, family):
    assert set(FAMILIES) == set(LAYER_PATHS) - {"gemma3"}  # the images' tower of that one has no tiny model
    plan = plan_for(family, "boundary")
    directory = tiny(family)
    expected = rows_of_all_layers(directory, LAYER_PATHS[family], plan.source, plan.texts_R)
    found = streamed(directory, family, plan, batch_size=1)
    for rows, (stream, update) in zip(found, expected, strict=True):
        assert torch.equal(rows.stream, stream.float())
        assert torch.equal(rows.update, update.float())


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_each_byte_is_read_once_and_the_head_never(tiny, family):
    directory = tiny(family)
    checkpoint = open_checkpoint(ModelSource.parse(directory))
    streamed(directory, family, plan_for(family, "boundary"), checkpoint=checkpoint, batch_size=2)
    sizes = {key: one.stop - one.start for key, one in read_stored(directory).items()}
    head = sum(size for name, size in sizes.items() if name.startswith(("lm_head", "embed_out")))
    assert checkpoint.bytes_read == sum(sizes.values()) - head
    assert (head == 0) == load_config(ModelSource.parse(directory)).tie_word_embeddings


class CountingCheckpoint(SafetensorsCheckpoint):
    """Notes after each load how many elements of the model's tensors are real, and what was read in which order."""

    def load(self, model, wanted, device, dtype):
        super().load(model, wanted, device, dtype)
        self.model = model
        self.counts = [*getattr(self, "counts", []), real_elements(model)]
        self.reads = [*getattr(self, "reads", []), {name for name, _ in model.named_parameters() if wanted(name)}]


def real_elements(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta)


def test_no_more_than_two_layers_are_in_memory(tiny):
    """One that computes, and the next, which is being read."""
    family, directory = "gpt_oss", tiny("gpt_oss")
    inventory = read_inventory(load_config(ModelSource.parse(directory)))
    checkpoint = CountingCheckpoint(directory)
    between = []
    plan = plan_for(family, "boundary")
    streamed(
        directory, family, plan, checkpoint=checkpoint,
        consume=lambda _: between.append(real_elements(checkpoint.model)),
    )  # fmt: skip
    num_layers = len(between)
    of_layer = [
        sum(torch.Size(s).numel() for n, s in inventory.shapes.items() if n.startswith(f"{LAYER_PATHS[family]}.{i}."))
        for i in range(num_layers)
    ]
    assert all(found <= following for found, following in zip(between, [*of_layer[1:], 0], strict=True))
    for found, one, before in zip(checkpoint.counts[1:], of_layer, [0, *of_layer], strict=False):
        assert one <= found <= one + before
    assert checkpoint.counts[0] < inventory.num_elements - sum(of_layer) + 1
    names = [name for read in checkpoint.reads for name in read]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.2.mlp.up_proj.weight", float("nan"), r"llama: NaN or Inf in 1 tensor; .*:\n  - model.layers.2.mlp.up"),
        # Weights that are finite, but whose products are not.
        ("layers.1.mlp.down_proj.weight", 3e38, r"activations after layer 1, first in text \d+ of the .* --dtype"),
    ],
)
def test_weights_that_cannot_be_used(copy_of, name, value, message):
    directory = copy_of("llama")
    damage(directory, f"model.{name}", value)
    with pytest.raises(ModelError, match=message):
        streamed(directory, "llama", plan_for("llama", "boundary"))


def test_a_tokenizer_of_another_model_is_refused(tiny, copy_of):
    other = copy_of("llama", vocab_size=40)
    with pytest.raises(ModelError, match=r"token id \d+, but its vocabulary has 40 tokens: the tokenizer belongs"):
        plan_map(other, tiny("qwen3"), (), MapSettings())
