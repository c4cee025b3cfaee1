"""What the real trainers train with a text of ours: their own code, run on a model; never a copy of it.

They are installed without what they depend on (`make install`), which would be other versions of half of our own
libraries. Axolotl and peft are imported as they are. Of LLaMA-Factory the modules of its freeze tuning are loaded
past the `__init__` of their packages, which imports a trl of years ago; of ms-swift the one module that freezes, with
stand-ins for its logger, which needs modelscope, and for a function that is not called.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import types
import warnings
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import yaml
from torch import nn


def directory_of(package: str) -> Path:
    """Where a trainer is installed; a test that needs it fails without it."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed: run `make install`"
    return Path(next(iter(spec.submodule_search_locations)))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def axolotl(model: nn.Module, text: str) -> set[str]:
    from axolotl.utils.freeze import freeze_layers_except

    freeze_layers_except(model, yaml.safe_load(text)["unfrozen_parameters"])
    return trained(model)


def ms_swift(model: nn.Module, text: str) -> set[str]:
    """As `TunerMixin.prepare_model` does for `tuner_type: full`."""
    settings = yaml.safe_load(text)
    assert settings.pop("tuner_type") == "full"
    code = _swift_code()
    model.requires_grad_(True)
    code.freeze_parameters(model, settings.pop("freeze_parameters_ratio"), [], None)
    assert trained(model) == set()
    code.activate_parameters(model, [], settings.pop("trainable_parameters_regex"))
    assert settings == {}
    return trained(model)


def llama_factory(model: nn.Module, text: str) -> set[str]:
    root = directory_of("llamafactory")
    for package in ("model", "hparams"):
        bare = types.ModuleType(f"llamafactory.{package}")
        bare.__path__ = [str(root / package)]
        sys.modules.setdefault(bare.__name__, bare)
    arguments = importlib.import_module("llamafactory.hparams.finetuning_args").FinetuningArguments
    adapter = importlib.import_module("llamafactory.model.adapter")
    adapter._setup_freeze_tuning(model, arguments(**yaml.safe_load(text)), True, False)
    return trained(model)


def peft(model: nn.Module, text: str) -> set[str]:
    """By what peft itself keeps a record of."""
    from peft import get_peft_model

    namespace: dict[str, Any] = {}
    exec(text, namespace)
    with warnings.catch_warnings():  # peft's and transformers' about each other
        warnings.simplefilter("ignore")
        tuner = get_peft_model(copy.deepcopy(model), namespace["config"], low_cpu_mem_usage=True).base_model
    found = {f"{module}.weight" for module in tuner.targeted_module_names} | set(tuner.targeted_parameter_names)
    for module in namespace["config"].modules_to_save or ():
        found |= {f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()}
    for name, parameter in tuner.model.named_parameters():
        if parameter.requires_grad and name.endswith(".base_layer.bias"):
            found.add(name.replace(".base_layer", ""))
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return found - tied


def _swift_code() -> types.ModuleType:
    directory = directory_of("swift") / "utils"
    package = types.ModuleType("swift_utils_alone")
    package.__path__ = [str(directory)]
    logger = types.ModuleType("swift_utils_alone.logger")
    logger.get_logger = logging.getLogger
    other = types.ModuleType("swift_utils_alone.utils")
    other.deep_getattr = getattr
    for module in (package, logger, other):
        sys.modules[module.__name__] = module
    name = "swift_utils_alone.transformers_utils"
    spec = spec_from_file_location(name, directory / "transformers_utils.py")
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    return code
