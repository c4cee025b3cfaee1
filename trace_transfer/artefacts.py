"""The files that stages hand to each other: typed, self-describing, strict on reading, atomic on writing.

JSON files carry `format` and `version`, the settings that made them, the identity of the models and the versions of
the libraries. Fields are a contract: other tools read them.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trace_transfer.errors import ArtefactError, listing
from trace_transfer.models import part_numel

LIBRARIES = ("trace-transfer", "torch", "transformers", "numpy", "scipy")
TASK = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Range = tuple[int, int]


class Strict(BaseModel):
    """Frozen, and no field that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelIdentity(Strict):
    """Which model a file speaks of; `names_sha256` decides, the rest is for people."""

    id: str
    revision: str | None = None
    family: str
    model_type: str
    num_layers: int = Field(ge=1)
    num_parameters: int = Field(ge=1)
    num_elements: int = Field(ge=1)
    names_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CoreParameter(Strict):
    """One scored parameter, or (with `rows` or `columns`) the part of a fused one.

    Rows are ranges of dimension 0, columns of dimension 1, end exclusive. The parts of one parameter are disjoint.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    score: float | None = Field(default=None, allow_inf_nan=False)
    core: bool = False
    sources: tuple[str, ...] | None = Field(default=None, alias="from")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        for ranges, dim, word in ((self.rows, 0, "rows"), (self.columns, 1, "columns")):
            for start, stop in ranges or ():
                if dim >= len(self.shape) or not 0 <= start < stop <= self.shape[dim]:
                    raise ValueError(f"{self.name}: {word} [{start}, {stop}] do not fit shape {list(self.shape)}")
        if self.core and self.score is None:
            raise ValueError(f"{self.name}: core, but without a score")
        return self

    @property
    def num_elements(self) -> int:
        """Elements of the parameter or of its part."""
        return part_numel(self.shape, self.rows, self.columns)


class Method(BaseModel):
    """How scores and core set were made; a method may add what it needs to be made again."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    ratio: float = Field(gt=0, le=1)
    unit: Literal["tensors", "elements"] = "tensors"


class Transfer(Strict):
    """Where a translated core set came from."""

    model: ModelIdentity
    core_sha256: str
    layer_match_sha256: str
    rules: tuple[str, ...]
    carry: Literal["core", "scores"]


class CoreFile(Strict):
    """`TASK.core.json`: every scored parameter, best first, and which of them are core."""

    format: Literal["trace-transfer/core"] = "trace-transfer/core"
    version: Literal[1] = 1
    task: str = Field(pattern=TASK)
    model: ModelIdentity
    method: Method
    parameters: tuple[CoreParameter, ...]
    transferred_from: Transfer | None = None
    libraries: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if not self.parameters:
            raise ValueError("no parameters are listed")
        seen: set[tuple[Any, ...]] = set()
        for parameter in self.parameters:
            key = (parameter.name, parameter.rows, parameter.columns)
            if key in seen:
                raise ValueError(f"{parameter.name} is listed twice")
            seen.add(key)
        return self

    @property
    def core(self) -> tuple[CoreParameter, ...]:
        return tuple(parameter for parameter in self.parameters if parameter.core)

    @property
    def ratio_of_tensors(self) -> float:
        """Core share of the parameters; the parts of a fused parameter count as one entry each."""
        return len(self.core) / len(self.parameters)

    @property
    def ratio_of_elements(self) -> float:
        return sum(p.num_elements for p in self.core) / sum(p.num_elements for p in self.parameters)


class ProbeRecord(Strict):
    """Which texts, and which rows of them, the layers were compared on."""

    name: str
    sha256: str
    num_texts: int
    rows: Literal["boundary", "word", "example"]
    num_minibatches: int
    num_rows: int
    max_length: int
    seed: int


class LayerPair(Strict):
    """A matched pair; `margin` is how much more alike it is than the runner-up, negative where order overruled it."""

    source: int
    target: int
    similarity: float | None
    margin: float | None = None
    runner_up: int | None = None
    flip_rate: float | None = None


class Stability(Strict):
    """How far the match depends on which texts were read: random halves of the texts, never of the rows.

    `same` and `within_one`: share of layers for which two disjoint halves choose the same layer, or one next to it.
    """

    num_splits: int
    same: float
    within_one: float


class Depth(Strict):
    """Comparison with the match by relative depth alone."""

    agreement: float
    within_one: float
    mean_similarity_gain: float


class LayerMatch(Strict):
    """`layer_match.json`; the whole matrix lies beside it in `similarity.safetensors`."""

    format: Literal["trace-transfer/layer-match"] = "trace-transfer/layer-match"
    version: Literal[1] = 1
    source: ModelIdentity
    target: ModelIdentity
    probe: ProbeRecord
    similarity: str
    representation: str
    transform: str
    policy: str
    chosen_by: Literal["source", "target"]
    pairs: tuple[LayerPair, ...]
    unmatched_sources: tuple[int, ...] = ()
    unmatched_targets: tuple[int, ...] = ()
    degenerate_sources: tuple[int, ...] = ()
    degenerate_targets: tuple[int, ...] = ()
    stability: Stability | None = None
    depth: Depth | None = None
    policy_agreement: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)


class CorrespondenceFile(Strict):
    """`correspondence.json`: every source parameter with its targets or the reason why it has none."""

    format: Literal["trace-transfer/correspondence"] = "trace-transfer/correspondence"
    version: Literal[1] = 1
    source: ModelIdentity
    target: ModelIdentity
    layer_match_sha256: str
    parameters: tuple[dict[str, Any], ...]
    unreached_targets: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    libraries: dict[str, str] = Field(default_factory=dict)


class TunedModel(Strict):
    """A fine-tuned model whose deltas were taken; `fingerprint` changes when its weights do."""

    task: str = Field(pattern=TASK)
    id: str
    fingerprint: str
    sixteen_bit: bool


class DeltaParameter(Strict):
    """Of one parameter: the norm of each task's delta, the cosine of each pair, and how many elements did not move.

    Pairs are (1, 0), (2, 0), (2, 1), (3, 0), …; null where a delta is zero.
    """

    name: str
    shape: tuple[int, ...]
    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    unchanged: tuple[int, ...]


class DeltaFile(Strict):
    """`deltas.json`: what scores need of the deltas of several fine-tuned models."""

    format: Literal["trace-transfer/deltas"] = "trace-transfer/deltas"
    version: Literal[1] = 1
    model: ModelIdentity
    base_fingerprint: str
    tuned: tuple[TunedModel, ...]
    parameters: tuple[DeltaParameter, ...]
    libraries: dict[str, str] = Field(default_factory=dict)


ARTEFACTS: dict[str, type[Strict]] = {
    "trace-transfer/deltas": DeltaFile,
    "trace-transfer/core": CoreFile,
    "trace-transfer/layer-match": LayerMatch,
    "trace-transfer/correspondence": CorrespondenceFile,
}


def library_versions() -> dict[str, str]:
    """Versions of what made a file."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_artefact(path: Path | str, kind: type[Strict] | None = None) -> Any:
    """Read one of our JSON files and check all of it.

    Args:
        kind: the class expected; None takes whichever its `format` names.

    Raises:
        ArtefactError: not there, not JSON, of another format or version, or with wrong or unknown fields (all named).
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{file}: not a JSON file ({error})") from error
    found = data.get("format") if isinstance(data, dict) else None
    expected = kind.model_fields["format"].default if kind else None
    if found not in ARTEFACTS or (kind and found != expected):
        what = f"format {found!r}" if found else "no 'format'"
        raise ArtefactError(f"{file}: {what}, expected {expected or ' or '.join(ARTEFACTS)}")
    try:
        return ARTEFACTS[found].model_validate(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors()]
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        raise ArtefactError(f"{file}: {count}:\n" + listing(problems)) from error


def to_json(artefact: Strict) -> str:
    """The text of an artefact: one line per parameter or pair, so that files can be compared and searched by line."""
    data = artefact.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(artefact, CoreFile):
        data["transferred_from"] = data.get("transferred_from")
        for dumped, parameter in zip(data["parameters"], artefact.parameters, strict=True):
            dumped["score"] = parameter.score
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
