"""Models of which only the config is there."""

from pathlib import Path

from tests.tiny_models import build_config
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import ModelSource, read_inventory


def opened(family: str, **changes: object) -> OpenModel:
    config = build_config(family, **changes)
    return OpenModel(ModelSource(family, Path(family)), config, anatomy_of(read_inventory(config), load_families()))
