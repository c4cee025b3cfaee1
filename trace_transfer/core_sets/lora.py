"""A LoRA configuration for peft: adapters beside the core weights and nowhere else.

What LoRA can take: the weight of a linear layer, an embedding or a `Conv1D` (`target_modules`, as one expression that
matches a module's whole name), any other tensor of two or three dimensions, such as fused experts
(`target_parameters`, whole names). Biases train beside their weights or not at all (`bias: lora_only`). A norm trains
itself, in a copy (`modules_to_save`), if all of its module is core. So the same tensors change as in training the core
set, matrices by a low rank only.

The configuration is applied to the model, without memory for weights, and what trains is read from peft's own result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trace_transfer.core_sets.core_set import (
    WHOLE_ONLY,
    CoreSet,
    ExportError,
    InexactExportError,
    require_exact,
    require_whole,
)
from trace_transfer.core_sets.patterns import exact_pattern
from trace_transfer.errors import listing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

TRAINER = "peft"
BASE_LAYER, SAVED = ".base_layer", ".modules_to_save.default"


@dataclass(frozen=True)
class _Targets:
    """Names by how LoRA takes them: modules, single parameters, modules whose copy trains; and whether biases train."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    saved: tuple[str, ...]
    biases: bool

    def as_parameters(self, keep: frozenset[str]) -> _Targets:
        """With the weights of modules named as parameters, too, but for some modules."""
        moved = [f"{module}.weight" for module in self.modules if module not in keep]
        kept = tuple(module for module in self.modules if module in keep)
        return _Targets(kept, (*self.parameters, *moved), self.saved, self.biases)


def write_peft(core: CoreSet, model: PreTrainedModel, rank: int = 8, alpha: float = 16.0) -> str:
    """A Python file that defines `config`, a `LoraConfig`.

    Args:
        model: the core set's model, on the meta device; it is not changed.
        rank, alpha: r and lora_alpha of every adapter.

    Raises:
        ExportError: parts of tensors are core, or tensors that LoRA cannot take; all are named.
        InexactExportError: peft would train other tensors.
    """
    require_whole(core, TRAINER, f"an adapter changes all of a tensor; {WHOLE_ONLY}")
    inside = _Inside(model)
    settings = _exact_settings(core, inside, _targets(core, inside), rank, alpha)
    lines = [
        *core.header(TRAINER),
        f"Adapters of rank {rank} beside matrices; norms, where there are any, train in a copy (modules_to_save).",
    ]  # fmt: skip
    arguments = "".join(f"    {key}={_literal(value)},\n" for key, value in settings.items())
    return (
        "".join(f"# {line}\n" for line in lines)
        + f"\nfrom peft import LoraConfig\n\nconfig = LoraConfig(\n{arguments})\n"
    )


class _Inside:
    """What the modules of a model are, by name."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        model: Any = self.model
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        return head is not None and head.weight is embedding.weight

    @cached_property
    def embedding(self) -> str:
        embedding = self.model.get_input_embeddings()
        return next(name for name, module in self.modules.items() if module is embedding)

    def parameters_of(self, module: str) -> list[str]:
        """Names of a module's own tensors and those of what is in it."""
        return [f"{module}.{name}" for name, _ in self.modules[module].named_parameters()]

    def is_norm(self, module: str) -> bool:
        """Whether it is a leaf with vectors only."""
        found = self.modules[module]
        return not any(found.children()) and all(parameter.dim() < 2 for parameter in found.parameters())

    def takes_adapter(self, module: str) -> bool:
        import torch
        from transformers.pytorch_utils import Conv1D

        return isinstance(self.modules[module], (torch.nn.Linear, torch.nn.Embedding, Conv1D))


def _targets(core: CoreSet, inside: _Inside) -> _Targets:
    wanted = set(core.names)
    modules, parameters, saved, biases, refused = [], [], [], [], []
    for name in core.names:
        module, _, kind = name.rpartition(".")
        if kind == "weight" and inside.takes_adapter(module):
            modules.append(module)
        elif kind == "bias" and inside.takes_adapter(module):
            biases.append(name)
        elif len(core.shapes[name]) in (2, 3) and module:
            parameters.append(name)
        elif wanted.issuperset(inside.parameters_of(module)) and inside.is_norm(module):
            saved.append(module)
        else:
            refused.append(f"{name} {list(core.shapes[name])}: neither a matrix nor a norm that is core as a whole")
    beside = {bias for module in modules for bias in inside.parameters_of(module) if bias.endswith(".bias")}
    if biases and (missing := sorted(beside.symmetric_difference(biases))):
        refused += [
            f"{name}: {'core, but its weight is not' if name in biases else 'not core, but biases of other layers are'}"
            for name in missing
        ]
    if refused:
        raise ExportError(
            "LoRA cannot train exactly this core set (biases train with all adapted weights or with none, what is no "
            "matrix trains with its whole module); `--to axolotl`, `ms-swift` or `trl` train the tensors themselves:\n"
            + listing(refused)
        )
    if not modules and not parameters:
        raise ExportError(
            "LoRA needs a matrix to adapt, and this core set has none, only norms; `--to axolotl`, `ms-swift` or `trl` "
            "train them themselves"
        )
    return _Targets(tuple(modules), tuple(parameters), tuple(dict.fromkeys(saved)), bool(biases))


def _exact_settings(core: CoreSet, inside: _Inside, targets: _Targets, rank: int, alpha: float) -> dict[str, Any]:
    """The settings, proved on the model.

    For some mixtures of experts peft takes names of modules for those that they had before transformers 5, and adapts
    the experts of all layers, or refuses: there weights are named as parameters instead.

    Raises:
        InexactExportError: neither trains the core set.
    """
    settings = _settings(targets, inside, rank, alpha)
    try:
        require_exact(core.names, trained_names(inside.model, settings), TRAINER)
    except InexactExportError:
        if not targets.modules:
            raise
        settings = _settings(targets.as_parameters(frozenset({inside.embedding})), inside, rank, alpha)
        require_exact(core.names, trained_names(inside.model, settings), TRAINER)
    return settings


def _settings(targets: _Targets, inside: _Inside, rank: int, alpha: float) -> dict[str, Any]:
    tied = inside.tied and inside.embedding in targets.modules
    modules: str | list[str] = []
    if tied:  # of an expression peft does not see that it means the embedding
        modules = list(targets.modules)
    elif targets.modules:
        modules = exact_pattern(targets.modules, inside.modules)
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": modules}
    if targets.parameters:
        settings["target_parameters"] = list(targets.parameters)
    if targets.saved:
        settings["modules_to_save"] = list(targets.saved)
    return {
        **settings, **({"ensure_weight_tying": True} if tied else {}),
        "bias": "lora_only" if targets.biases else "none", "lora_dropout": 0.0, "task_type": "CAUSAL_LM",
    }  # fmt: skip


def trained_names(model: PreTrainedModel, settings: Mapping[str, Any]) -> set[str]:
    """The model's own names of what peft trains, or adapts, with a `LoraConfig` of these settings.

    Args:
        model: on the meta device; a copy of it is wrapped.

    Raises:
        InexactExportError: peft refuses the settings.
    """
    import copy
    import warnings

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
            parameter = getattr(model.get_submodule(module), "parameter_name", "weight")
            return f"{_unwrapped(module)}.{parameter}"
    return _unwrapped(name)


def _unwrapped(name: str) -> str:
    return f"{name}.".replace(f"{BASE_LAYER}.", ".").replace(f"{SAVED}.", ".").removesuffix(".")


def _literal(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"        {json.dumps(one)},\n" for one in value) + "    ]"
    return repr(value)
