"""What `warm-start` and `score` find on the way to a core set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from trace_transfer.errors import ArtefactError
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.progress import Reporter
from trace_transfer.records import TASK, ModelIdentity, Name, Strict, read_artefact, to_json

if TYPE_CHECKING:
    from torch import Tensor

Record = TypeVar("Record", bound=Strict)


def label_of(task: str, replicate: int | None) -> str:
    """`math`, or `math/1` for the first of two replicates."""
    return task if replicate is None else f"{task}/{replicate}"


class DataRecord(Strict):
    """What a task's examples were; `sha256` is of all token ids and labels."""

    sha256: str
    num_records: int
    num_examples: int
    num_cut: int
    num_left_out: int
    num_tokens: int
    num_supervised: int
    template: str
    max_length: int


class WarmStartFile(Strict):
    """`warm_start.json`, written last. `order` is the task's place in `tasks.yaml`; `replicate` counts from 1 where a
    task was warm-started on disjoint parts of its data; `shards` maps each file of the delta to its SHA-256."""

    format: Literal["trace-transfer/warm-start"] = "trace-transfer/warm-start"
    version: Literal[1] = 1
    task: str = Field(pattern=TASK)
    order: int
    replicate: int | None = None
    model: ModelIdentity
    base_fingerprint: str
    config_sha256: str | None = None
    data: DataRecord
    settings: dict[str, Any]
    delta_dtype: Literal["float32", "bfloat16"]
    shards: dict[str, str]
    fingerprint: str
    num_steps: int
    losses: tuple[float, ...]
    libraries: dict[str, str] = Field(default_factory=dict)


class TunedModel(Strict):
    """Whose deltas were taken: a warm start or a model tuned elsewhere; `fingerprint` changes with its weights."""

    task: str = Field(pattern=TASK)
    replicate: int | None = None
    id: Name
    fingerprint: str
    sixteen_bit: bool

    @property
    def label(self) -> str:
        return label_of(self.task, self.replicate)


class DeltaTensor(Strict):
    """Of one tensor: the norm of each delta, how many of its parameters did not move, and the cosine of each pair
    (1, 0), (2, 0), (2, 1), (3, 0), …; null where a delta is zero. `base_norm` is that of the base's values."""

    name: Name
    shape: tuple[int, ...]
    base_norm: float
    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    unchanged: tuple[int, ...]


class DeltaFile(Strict):
    """`deltas.json`: what scores need of several deltas; with `units`, those of heads and neurons lie beside it."""

    format: Literal["trace-transfer/deltas"] = "trace-transfer/deltas"
    version: Literal[1] = 1
    model: ModelIdentity
    base_fingerprint: str
    tuned: tuple[TunedModel, ...]
    parameters: tuple[DeltaTensor, ...]
    units: bool = False
    libraries: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_each_delta(self) -> Self:
        num = len(self.tuned)
        for one in self.parameters:
            if (len(one.norms), len(one.cosines), len(one.unchanged)) != (num, num * (num - 1) // 2, num):
                raise ValueError(f"{one.name}: its norms, cosines and unchanged are not those of {num} models")
        return self


class FisherTensor(Strict):
    """Mean over examples of the squared gradient norm of one tensor (eq. 4, summed over its parameters)."""

    name: Name
    value: float = Field(ge=0, allow_inf_nan=False)


class FisherFile(Strict):
    """`fisher.json`: Fisher information of all tensors for a task; with `units`, that of heads and neurons too.

    `fingerprint` is of the model that it was taken `at`; `fallback` names tensors without a batched form."""

    format: Literal["trace-transfer/fisher"] = "trace-transfer/fisher"
    version: Literal[1] = 1
    task: str = Field(pattern=TASK)
    replicate: int | None = None
    model: ModelIdentity
    at: Literal["tuned", "base"]
    fingerprint: str
    per: Literal["example", "batch"]
    num: int
    data_sha256: str
    parameters: tuple[FisherTensor, ...]
    fallback: tuple[str, ...] = ()
    units: bool = False
    libraries: dict[str, str] = Field(default_factory=dict)


class TaskStability(Strict):
    """Overlap (Jaccard) of a task's core sets from two replicates, and with the other tasks' sets, if there are any;
    `clear` says whether its own is above `highest_between`, the largest with any other task in what the ratio counts.
    """

    task: str
    within_tensors: float
    within_elements: float
    between_tensors: float | None = None
    between_elements: float | None = None
    highest_between: float | None = None
    clear: bool | None = None


class MethodStability(Strict):
    """One method's stability; `chance` is the overlap to be expected of random sets."""

    method: str
    ratio: float
    unit: str
    chance: float
    tasks: tuple[TaskStability, ...]


class StabilityFile(Strict):
    """`stability.json`; `reliability` is, by task, the median over tensors of the cosine of its replicates."""

    format: Literal["trace-transfer/stability"] = "trace-transfer/stability"
    version: Literal[1] = 1
    model: ModelIdentity
    methods: tuple[MethodStability, ...]
    reliability: dict[str, float]
    libraries: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Kept(Generic[Record]):
    """A result, and the tensors of heads and neurons that lie beside it."""

    file: Record
    units: Mapping[str, Tensor]


def made_once(
    place: Path, kind: type[Record], with_units: bool, same: Callable[[Record], bool], make: Callable[[], Kept[Record]],
    reporter: Reporter,
) -> Kept[Record]:  # fmt: skip
    """A result as an earlier run left it; or made and kept, where that is missing, damaged or not the same."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from trace_transfer.models.tensors import write_tensors  # here, as it needs torch

    with suppress(ArtefactError, OSError, SafetensorError):
        record: Record = read_artefact(place, kind)
        if same(record) and (not with_units or getattr(record, "units", False)):
            kept = Kept(record, load_file(beside(place)) if with_units else {})
            reporter.note(f"{place}: made before")
            return kept
    made = make()
    prepare_directory(place.parent)
    if with_units:
        what = f"trace-transfer/{place.stem.rstrip('s')}-units"
        write_tensors(beside(place), made.units, {"format": what, "version": "1"})
    write_text(place, to_json(made.file))
    return made


def beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}.units.safetensors")
