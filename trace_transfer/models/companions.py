"""What lies beside a model's weights and belongs to it: tokenizer, templates, processors, licences, code that is named.

Whatever is made of a model has all of these, as they are in the base. Not copied are weights in any format with their
indexes, the README (what it says is true of the base alone), adapters, what trainers leave (states, results), hidden
files, and folders but for those below. Code is copied as text; it is never run here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trace_transfer.models.stored_weights import read_leniently

CONFIG = "config.json"  # is written anew
KEPT = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.vocab", "*.bpe", "*.py", "tokenizer*",
    "merges*", "vocab*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
FOLDERS = ("additional_chat_templates", "custom_generate")
LEFT = (
    CONFIG, "*.index.json", "README*", "adapter_*", ".*", "trainer_state.json", "training_args*", "optimizer*",
    "scheduler*", "rng_state*", "*_results.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5",
    "*.msgpack", "*.onnx",
)  # fmt: skip
HAVE_CODE = ("*_config.json", "video_preprocessor_config.json")  # may name code in `auto_map`, as the config itself


def companions(model: Path) -> list[Path]:
    """The files that belong to a model in a directory, sorted."""
    here = [file for file in model.iterdir() if any(fnmatch(file.name, one) for one in KEPT)]
    below = [file for folder in FOLDERS for file in (model / folder).glob("*")]
    return sorted(
        file for file in (*here, *below) if file.is_file() and not any(fnmatch(file.name, one) for one in LEFT)
    )


def copy_companions(model: Path, directory: Path) -> None:
    """Copy them byte for byte; `auto_map` of a JSON file goes where it names code that is not there."""
    for file in companions(model):
        place = directory / file.relative_to(model)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
        if any(fnmatch(file.name, one) for one in HAVE_CODE):
            _leave_out_missing_code(place, model)


def code_that_is_there(auto_map: Any, model: Path) -> Any:
    """The entries of an `auto_map` whose code lies in the model's directory, or is named as `owner/name--file.Class`.

    A value is a reference, or a list of some (of a tokenizer, slow and fast) of which any may be None.
    """
    if not isinstance(auto_map, Mapping):
        return auto_map if _is_there(auto_map, model) else None
    return {name: value for name, value in auto_map.items() if _is_there(value, model)} or None


def _is_there(value: Any, model: Path) -> bool:
    names = value if isinstance(value, list) else [value]
    modules = [name.rpartition(".")[0] for name in names if isinstance(name, str) and "--" not in name]
    return all(module and (model / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def _leave_out_missing_code(file: Path, model: Path) -> None:
    values = read_leniently(file)
    if "auto_map" in values:
        kept = code_that_is_there(values["auto_map"], model)
        if kept != values["auto_map"]:
            values = {key: value for key, value in values.items() if key != "auto_map"} | (
                {"auto_map": kept} if kept else {}
            )
            file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
