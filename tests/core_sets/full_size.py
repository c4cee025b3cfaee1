"""Real models at their full size, without memory for their weights, and core sets of them that trip trainers up."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.trainer_settings import CoreSet
from trace_transfer.models.sources import Ranges, build_meta_model, inventory_of
from trace_transfer.records import ModelIdentity

CONFIGS = Path(__file__).parents[1] / "configs"
DENSE_FIRST = {"num_hidden_layers": 12, "mlp_only_layers": [0, 1]}
# Name → config: files of real models, and the default configs of transformers, which are real ones, too: phi-3-mini,
# Mixtral-8x7B, GPT-2, gpt-oss; and a mixture of experts whose first layers are dense.
MODELS = {
    **dict.fromkeys(("llama-3-8b", "qwen2.5-14b", "qwen3-32b")),
    "phi3": {}, "mixtral": {}, "gpt2": {}, "gpt_oss": {}, "qwen2_moe": {}, "qwen3_moe": DENSE_FIRST,
}  # fmt: skip
FEATURED = ("llama-3-8b", "qwen2.5-14b", "phi3", "mixtral")


@cache
def model_of(name: str) -> PreTrainedModel:
    """One of the models, with gradients wanted for everything; tests may freeze it, and must not rename anything."""
    fields = MODELS[name]
    config = AutoConfig.from_pretrained(CONFIGS / name) if fields is None else AutoConfig.for_model(name, **fields)
    return build_meta_model(config)


def fresh(name: str) -> PreTrainedModel:
    """The model as it is before a trainer touches it."""
    return model_of(name).requires_grad_(True)


def core_file(name: str, parts: Mapping[str, Ranges | None] | Iterable[str], task: str = "math", **changes) -> CoreFile:
    """A core file of a model; of a part of a tensor its rows, and the rest of them as an entry that is not core."""
    inventory = inventory_of(model_of(name))
    chosen = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(parts)
    assert chosen.keys() <= inventory.shapes.keys()
    parameters = []
    for index, (one, shape) in enumerate(inventory.shapes.items()):
        rows = chosen.get(one)
        score = 1 / (index + 1) if one in chosen else None
        parameters.append(CoreTensor(name=one, shape=shape, rows=rows, score=score, core=one in chosen))
        if rows:
            rest = ((rows[-1][1], shape[0]),)
            parameters.append(CoreTensor(name=one, shape=shape, rows=rest))
    identity = ModelIdentity(
        id=name, family="any", model_type=inventory.model_type,
        num_layers=inventory.config.num_hidden_layers, num_parameters=len(inventory.shapes),
        num_elements=inventory.num_elements, names_sha256=inventory.names_sha256,
    )  # fmt: skip
    fields = {"method": {"name": "lf", "ratio": 0.05}, "libraries": {"transformers": "5.23.0"}, **changes}
    return CoreFile(task=task, model=identity, parameters=parameters, **fields)


def core_set(name: str, parts: Mapping[str, Ranges | None] | Iterable[str]) -> CoreSet:
    """The same as it is exported."""
    return CoreSet.of({"math.core.json": core_file(name, parts)}, inventory_of(model_of(name)).shapes)


def names_of(name: str, *parts: str) -> list[str]:
    """All tensors in whose name each of these parts stands."""
    return [one for one, _ in model_of(name).named_parameters() if all(part in one for part in parts)]


def sparse(name: str) -> list[str]:
    """One tensor of twenty, of any kind."""
    names = names_of(name)
    return random.Random(name).sample(names, len(names) // 20)


def matrices(name: str) -> list[str]:
    """A tenth of the weights that adapters can stand beside."""
    names = [one for one, parameter in model_of(name).named_parameters() if parameter.dim() > 1]
    return random.Random(name).sample(names, len(names) // 10)


def attention_of_layer_1(name: str) -> list[str]:
    """Of layer 1, whose number others begin with; biases and norms of heads with it."""
    return names_of(name, ".1.", "attn.")


def outside(name: str) -> list[str]:
    """What is in no layer: embeddings, the last norm, a head that is not tied."""
    return [one for one in names_of(name) if not any(part.isdecimal() for part in one.split("."))]


SETS = {set_of.__name__: set_of for set_of in (sparse, matrices, attention_of_layer_1, outside, names_of)}
