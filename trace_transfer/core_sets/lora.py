"""A LoRA configuration for peft: adapters beside the core weights and nowhere else.

What LoRA can take: the weight of a linear layer, an embedding or a `Conv1D` (`target_modules`, as one expression that
matches a module's whole name), any other tensor of two or three dimensions, such as fused experts
(`target_parameters`, whole names). Biases train beside their weights or not at all (`bias: lora_only`). A norm trains
itself, in a copy (`modules_to_save`), if all of its module is core. So the same tensors change as in training the core
set, matrices by a low rank only.

The configuration is applied to the model, without memory for weights, and what trains is read from peft's own result.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_transfer.core_sets.trainer_settings import (
    CoreSet,
    ExportError,
    InexactExportError,
    exact_pattern,
    require_exact,
    require_whole,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def write_peft(core: CoreSet, model: PreTrainedModel, rank: int = 8, alpha: float = 16.0) -> str:
    """A Python file that defines `config`, a `LoraConfig` with `r` and `lora_alpha`.

    Args:
        model: the core set's model, on the meta device; it is not changed.

    Raises:
        ExportError: parts of tensors are core, or peft would train other tensors; all are named.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    require_whole(core, "peft", "an adapter changes all of a tensor")
    inside = dict(model.named_modules())
    modules, parameters, saved, biases = [], [], [], False
    for name in core.names:
        module, _, kind = name.rpartition(".")
        found = inside[module]
        if isinstance(found, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            modules += [module] if kind == "weight" else []
            biases |= kind != "weight"
        elif len(core.shapes[name]) in (2, 3) and module:
            parameters.append(name)
        elif not any(found.children()) and all(parameter.dim() < 2 for parameter in found.parameters()):
            saved.append(module)
    if not modules and not parameters:
        raise ExportError(
            "LoRA needs a matrix to adapt, and this core set has none; `--to axolotl`, `ms-swift` or `trl` train "
            "tensors themselves"
        )
    # For some mixtures of experts peft takes names of modules for those that they had before transformers 5, and adapts
    # the experts of all layers, or refuses: there weights are named as parameters instead.
    embedding = next(name for name, found in inside.items() if found is model.get_input_embeddings())
    kept = [module for module in modules if module == embedding]
    moved = [f"{module}.weight" for module in modules if module not in kept]
    problems = []
    for targets in ((modules, parameters), (kept, [*parameters, *moved])):
        settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, **_target_modules(targets[0], model, embedding)}
        settings |= {"target_parameters": targets[1]} if targets[1] else {}
        settings |= {"modules_to_save": list(dict.fromkeys(saved))} if saved else {}
        settings |= {"bias": "lora_only" if biases else "none", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        try:
            require_exact(core.names, trained_names(model, settings), "peft")
        except InexactExportError as error:
            problems.append(error)
            continue
        about = f"Adapters of rank {rank} beside matrices; norms, where there are any, train in a copy."
        arguments = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
        return f"{core.header('peft', about)}\nfrom peft import LoraConfig\n\nconfig = LoraConfig(\n{arguments})\n"
    raise ExportError(
        "LoRA cannot train exactly this core set (biases train with all adapted weights or with none, what is no "
        "matrix trains with its whole module); `--to axolotl`, `ms-swift` or `trl` train the tensors themselves: "
        f"{problems[0]}"
    )


def _target_modules(modules: Sequence[str], model: Any, embedding: str) -> dict[str, Any]:
    head = model.get_output_embeddings()
    if embedding in modules and head is not None and head.weight is model.get_input_embeddings().weight:
        # Of an expression peft does not see that it means the embedding.
        return {"target_modules": list(modules), "ensure_weight_tying": True}
    return {"target_modules": exact_pattern(modules) if modules else []}


def trained_names(model: PreTrainedModel, settings: Mapping[str, Any]) -> set[str]:
    """The model's own names of what peft trains, or adapts, with a `LoraConfig` of these settings; an
    InexactExportError if it refuses them."""
    from peft import LoraConfig, get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fan_in_fan_out, which it sets itself
            wrapped: Any = get_peft_model(copy.deepcopy(model), LoraConfig(**settings), low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InexactExportError(f"peft refuses these settings for the core set: {error}\n  {settings}") from error
    adapted: nn.Module = wrapped.base_model.model
    return {_own_name(adapted, name) for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def _own_name(model: nn.Module, name: str) -> str:
    """The model's name of what a trained tensor is, or what the adapter that it belongs to changes."""
    for kind in (".lora_A.", ".lora_embedding_A.", ".lora_B.", ".lora_embedding_B."):
        module, found, _ = name.partition(kind)
        if found:
            name = f"{module}.{getattr(model.get_submodule(module), 'parameter_name', 'weight')}"
            break
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
