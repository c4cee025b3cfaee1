"""Rules checked against the real parameter names of models: which family against which config, and what came of it.

Reads configs only: a given model's, or the default one that transformers has for each `model_type`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trace_transfer.errors import ModelError, RulesError, first_line, listing
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.application import apply_family
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.families.tables import Family
from trace_transfer.models.sources import ModelSource, load_config, read_inventory

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class UncheckedError(RulesError):
    """There is no model to check rules against."""


@dataclass(frozen=True)
class PlannedCheck:
    """A family and the config to check it against; `config` is None if transformers has none of that `model_type`."""

    family: Family
    name: str
    config: PretrainedConfig | None

    def run(self) -> str:
        """Apply the rules and say in one line what they cover.

        Raises:
            RulesError: they do not fit, or transformers has no such `model_type`.
            UncheckedError: transformers' default config of it builds no model.
        """
        if self.config is None:
            raise RulesError(
                f"{self.family.location}: the installed transformers has no model_type '{self.name}'; correct "
                "'model_types:', or install a transformers that has it"
            )
        try:
            inventory = read_inventory(self.config)
        except ModelError as error:  # a default config that its own model refuses
            raise UncheckedError(
                f"{self.family.location.path.name} ({self.family.name}): no model can be built from the config of "
                f"{self.name} ({first_line(error.__cause__ or error)}); check against a real one with --model"
            ) from error
        anatomy = apply_family(self.family, inventory)
        excluded = f", {len(anatomy.excluded)} excluded" if anatomy.excluded else ""
        kinds = _kinds_of_layers(anatomy)
        several = f" of {len(kinds)} kinds ({' + '.join(map(str, kinds))})" if len(kinds) > 1 else ""
        return (
            f"{self.family.location.path.name} ({self.family.name}) fits {self.name}: {len(inventory.shapes)} "
            f"parameters → {len(anatomy.units)} units, {anatomy.num_layers} layers{several}{excluded}"
        )


def _kinds_of_layers(anatomy: Anatomy) -> list[int]:
    """How many layers there are of each kind, told apart by the rules of their units; the first layer's kind first."""
    rules: dict[int, list[tuple[str, str]]] = {}
    for unit in anatomy.units:
        if unit.layer is not None:
            rules.setdefault(unit.layer, []).append((unit.component, unit.rule))
    kinds = Counter(tuple(rules[layer]) for layer in sorted(rules))
    return list(kinds.values())


def planned_checks(registry: FamilyRegistry, files: Collection[Path], model: str | None) -> list[PlannedCheck]:
    """Which families of these files (none: of all) are checked against which configs.

    Raises:
        RulesError: none of the families is for the model.
        ModelError: the model has no usable config.
    """
    families = [family for family in registry.families.values() if not files or family.location.path in files]
    if model is None:
        return [PlannedCheck(family, kind, _default_config(kind)) for family in families for kind in family.model_types]
    config = load_config(ModelSource.parse(model))
    fitting = [family for family in families if config.model_type in family.model_types]
    if not fitting:
        registry.for_model_type(config.model_type)
        for_types = [f"{one.location.path.name} is for {', '.join(one.model_types)}" for one in families]
        raise RulesError(
            f"none of the files to check is for model_type '{config.model_type}' (of {model}):\n" + listing(for_types)
        )
    return [PlannedCheck(family, model, config) for family in fitting]


def _default_config(model_type: str) -> PretrainedConfig | None:
    from transformers import CONFIG_MAPPING, AutoConfig

    return AutoConfig.for_model(model_type) if model_type in CONFIG_MAPPING else None
