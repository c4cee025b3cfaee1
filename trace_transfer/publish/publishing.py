"""What of a finished run goes to the hub: a model with its record and patches, or core files with a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.models.sources import ModelSource
from trace_transfer.publish.hub import Destination, push_files, push_folder
from trace_transfer.publish.model_card import CARD, MATCH, cores_card
from trace_transfer.records import read_artefact

RECORDS = ("stream.json", "verification.json")
FOLDER = "trace-transfer"


def publish_stream(to: Destination, out: Path, model: Path, patches: Sequence[Path]) -> str:
    """Send a stream's model, and into a folder of the same repository its record and proof, and its patches unless they
    are larger than the model; returns the address.

    Args:
        out: the directory of the stream.
    """
    url = push_folder(to, model, "Model")
    files = [out / name for name in RECORDS]
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if sum(patch.stat().st_size for patch in patches) <= size:
        files += patches
    push_files(to, {f"{FOLDER}/{file.name}": file for file in files}, "How it was made, and patches to undo it")
    return url


def publish_patched(to: Destination, model: Path, patches: Sequence[Path]) -> str:
    """Send a model that patches made, and the patches; returns the address."""
    url = push_folder(to, model, "Model")
    push_files(to, {f"{FOLDER}/{patch.name}": patch for patch in patches}, "Patches to undo it")
    return url


def publish_cores(to: Destination, files: Sequence[Path], source: ModelSource) -> str:
    """Send the core files among what a command wrote, the layer match, and a card; returns the address.

    Args:
        source: the model that they are of.
    """
    cores = [(read_artefact(file, CoreFile), file) for file in files if file.name.endswith(".core.json")]
    sent: dict[str, Path | str] = {CARD: cores_card(cores, source)}
    sent |= {file.name: file for _, file in cores}
    sent |= {file.name: file for file in files if file.name == MATCH}
    return push_files(to, sent, "Core sets")
