"""Names and shapes of a model that was looked at before, without torch and transformers: these take seconds to import.

They are kept in `names` of the cache directory, for as long as the files of the model's directory are the same.
"""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trace_transfer.errors import TraceTransferError
from trace_transfer.files import sha256_text, write_text
from trace_transfer.models.content import cache_directory
from trace_transfer.models.sources import Inventory, ModelSource, load_inventory
from trace_transfer.progress import quiet_libraries, tell, telling
from trace_transfer.text_formats import read_json_object

MOST = 100  # models that are remembered, the last ones
PLAIN = (bool, int, float, str, type(None))


def read_names(source: ModelSource) -> Inventory:
    """Names and shapes of a model; raises as `load_inventory`. The config holds plain values alone, those of properties
    among them."""
    file = _place(source)
    if file is not None:
        with suppress(TraceTransferError, KeyError, TypeError):
            found = read_json_object(file)
            shapes = {name: tuple(shape) for name, shape in found["shapes"].items()}
            inventory = Inventory(_namespace(found["config"]), shapes, found["tied"])
            for note in found["notes"]:
                tell(note)
            return inventory
    quiet_libraries()
    notes: list[str] = []
    with telling(notes.append):
        inventory = load_inventory(source)
    for note in notes:
        tell(note)
    if file is not None:
        _remember(file, {**asdict(inventory), "config": _plain(inventory.config), "notes": notes})
    return inventory


def _place(source: ModelSource) -> Path | None:
    """Where the names are kept; None for a GGUF file, and for a name on the hub, where files may change unseen."""
    if source.directory is None or source.gguf is not None:
        return None
    stats = [(file.name, file.stat()) for file in sorted(source.directory.iterdir()) if file.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
    made_by = [version(library) for library in ("trace-transfer", "transformers")]
    key = sha256_text(json.dumps([str(source.directory.resolve()), source.name, files, made_by]))
    return cache_directory() / "names" / f"{key[:32]}.json"


def _remember(file: Path, content: dict[str, Any]) -> None:
    with suppress(TraceTransferError, OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content))
        for old in sorted(file.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)[:-MOST]:
            old.unlink()


def _plain(config: Any) -> dict[str, Any]:
    """The values of a config that rules may name, in nested configs, too."""
    found: dict[str, Any] = {}
    for name in sorted({*dir(config), *config.attribute_map}):
        with suppress(Exception), warnings.catch_warnings():  # properties that are deprecated, or do not fit the model
            warnings.simplefilter("ignore")
            value = None if name.startswith("_") else getattr(config, name)
            if isinstance(value, PLAIN):
                found[name] = value
            elif hasattr(value, "attribute_map") and value is not config:
                found[name] = _plain(value)
    return found


def _namespace(values: dict[str, Any]) -> Any:
    return SimpleNamespace(**{k: _namespace(v) if isinstance(v, dict) else v for k, v in values.items()})
