"""The files that stages hand to each other: typed, self-describing, strict on reading, atomic on writing.

JSON files carry `format` and `version`, the settings that made them, the identity of the models and the versions of
the libraries. Fields are a contract: other tools read them.
"""

from trace_transfer.artefacts.base import LIBRARIES, TASK, ModelIdentity, Strict, library_versions, require_task
from trace_transfer.artefacts.core import CoreFile, CoreParameter, Method, Transfer
from trace_transfer.artefacts.identification import (
    DataRecord,
    DeltaFile,
    DeltaParameter,
    FisherFile,
    FisherParameter,
    MethodStability,
    StabilityFile,
    TaskStability,
    TunedModel,
    WarmStartFile,
)
from trace_transfer.artefacts.matching import (
    CorrespondenceFile,
    Depth,
    LayerMatch,
    LayerPair,
    ProbeRecord,
    Stability,
)
from trace_transfer.artefacts.reading import ARTEFACTS, read_artefact, to_json
from trace_transfer.artefacts.stream import StageRecord, StreamFile
from trace_transfer.artefacts.verification import Verification, VerifiedParameter

__all__ = [
    "ARTEFACTS",
    "LIBRARIES",
    "TASK",
    "CoreFile",
    "CoreParameter",
    "CorrespondenceFile",
    "DataRecord",
    "DeltaFile",
    "DeltaParameter",
    "Depth",
    "FisherFile",
    "FisherParameter",
    "LayerMatch",
    "LayerPair",
    "Method",
    "MethodStability",
    "ModelIdentity",
    "ProbeRecord",
    "Stability",
    "StabilityFile",
    "StageRecord",
    "StreamFile",
    "Strict",
    "TaskStability",
    "Transfer",
    "TunedModel",
    "Verification",
    "VerifiedParameter",
    "WarmStartFile",
    "library_versions",
    "read_artefact",
    "require_task",
    "to_json",
]
