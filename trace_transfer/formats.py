"""Every format of a JSON file that this package writes: what `inspect` draws and `tt.read` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.evaluation.records import EvaluationFile, ScoreMatrix
from trace_transfer.identification.records import DeltaFile, FisherFile, StabilityFile, WarmStartFile
from trace_transfer.patch.records import Verification
from trace_transfer.records import Strict, read_artefact
from trace_transfer.reporting.records import RunFile, StepFile, Summary
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.training.records import StreamFile
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch

ARTEFACTS: dict[str, type[Strict]] = {
    kind.model_fields["format"].default: kind
    for kind in (
        CoreFile, LayerMatch, CorrespondenceFile, WarmStartFile, DeltaFile, FisherFile, StabilityFile, StreamFile,
        Verification, EvaluationFile, ScoreMatrix, RepresentationFile, StepFile, RunFile, Summary,
    )
}  # fmt: skip


def read_any(file: Path | str, kind: type[Strict] | None = None) -> Any:
    """Read a file of any of our formats, or of one of them; raises as `read_artefact`, and of a class of no format."""
    if kind is not None and kind not in ARTEFACTS.values():
        raise UserError(f"kind: found {kind!r:.80}, expected a class of trace_transfer.formats such as CoreFile")
    return read_artefact(file, kind or ARTEFACTS.values())
