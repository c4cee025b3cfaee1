"""`TASK.core.json`: the scores of a model's tensors for a task, and which of them are core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from trace_transfer.core_sets.masks import METADATA, Chosen, content_sha256, encoded, read_chosen
from trace_transfer.errors import ArtefactError
from trace_transfer.files import replacing, write_text
from trace_transfer.models.sources import AXES, Ranges, numel, part_numel
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.records import TASK, ModelIdentity, Name, Range, Strict, to_json

Unit = Literal["tensors", "elements", "rows", "parameters"]  # what a ratio counts
EXCLUDED = "excluded"  # the component of what a family's rules leave out


class TensorPart(Strict):
    """A tensor, or the part of it in ranges of rows (dimension 0), columns (1) or depth (2), end exclusive."""

    name: Name
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    depth: tuple[Range, ...] | None = None

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        for dim, (word, ranges) in enumerate(zip(AXES, self.place[1:], strict=True)):
            for start, stop in ranges or ():
                if dim >= len(self.shape) or not 0 <= start < stop <= self.shape[dim]:
                    raise ValueError(f"{self.name}: {word} [{start}, {stop}] do not fit shape {list(self.shape)}")
        return self

    @property
    def place(self) -> tuple[str, Ranges | None, Ranges | None, Ranges | None]:
        """Name, rows, columns and depth: what tells it from the other entries of its file."""
        return self.name, self.rows, self.columns, self.depth

    @property
    def label(self) -> str:
        """Name and ranges of it, the first two of each: `mlp.up_proj.weight [rows 0:4, 8:12, …]`."""
        text = self.name
        for word, ranges in zip(AXES, self.place[1:], strict=True):
            if ranges:
                shown = ", ".join(f"{start}:{stop}" for start, stop in ranges[:2])
                text += f" [{word} {shown}{', …' if len(ranges) > 2 else ''}]"
        return text

    @property
    def num_elements(self) -> int:
        return part_numel(self.shape, self.rows, self.columns, self.depth)


class CoreTensor(TensorPart):
    """One scored tensor, or the part of a fused one; the parts of one tensor are disjoint.

    `component` and `layer` say what it is by its family's rules; a fused (or shared) tensor is of several, `a+b`.
    `terms` are what the score was made of. `chosen` counts its core parameters, where they are chosen one by one."""

    component: str | None = None
    layer: int | None = None
    score: float | None = Field(default=None, allow_inf_nan=False)
    terms: dict[str, float] | None = None
    core: bool = Field(default=False, strict=True)
    chosen: int | None = Field(default=None, ge=1, strict=True)
    sources: tuple[str, ...] | None = Field(default=None, alias="from")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _core_is_scored(self) -> Self:
        if self.core and self.score is None:
            raise ValueError(f"{self.name}: core, but without a score")
        if self.chosen is not None and not (self.core and self.chosen <= self.num_elements):
            raise ValueError(f"{self.name}: {self.chosen} chosen, of a tensor that is not core or has fewer parameters")
        return self

    @property
    def num_core(self) -> int:
        return (self.num_elements if self.chosen is None else self.chosen) if self.core else 0


class Method(BaseModel):
    """How scores and core set were made; a method may add what it needs to be made again."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name
    ratio: float = Field(gt=0, le=1)
    unit: Unit = "tensors"


class Transfer(Strict):
    """Where a translated core set came from."""

    model: ModelIdentity
    core_sha256: str
    layer_match_sha256: str
    rules: tuple[str, ...]
    carry: Literal["core", "scores"]


class ChosenFile(Strict):
    """The file beside a core file that holds its single parameters, and the sum of what is in it."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CoreFile(Strict):
    """`TASK.core.json`: every scored tensor, best first, and which of them are core; with unit `parameters` `chosen`
    names the file beside it that says which of their parameters are."""

    format: Literal["trace-transfer/core"] = "trace-transfer/core"
    version: Literal[1] = 1
    task: str = Field(pattern=TASK)
    model: ModelIdentity
    method: Method
    parameters: Annotated[tuple[CoreTensor, ...], Field(min_length=1)]
    transferred_from: Transfer | None = None
    chosen: ChosenFile | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    _chosen: Mapping[str, Chosen] | None = PrivateAttr(None)  # in memory, or where they lie
    _directory: Path = PrivateAttr(default_factory=Path)

    def __eq__(self, other: object) -> bool:
        """Where the chosen parameters lie makes no difference."""
        return isinstance(other, CoreFile) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _single_parameters_are_said(self) -> Self:
        by_one = self.method.unit == "parameters"
        if by_one != (self.chosen is not None) or any(by_one != (one.chosen is not None) for one in self.core):
            raise ValueError("'chosen' is of unit 'parameters' alone, and of every core tensor there")
        return self

    def opened(self, file: Path) -> None:
        self._directory = file.parent

    @property
    def parameters_chosen(self) -> Mapping[str, Chosen]:
        """Tensor → its core parameters, where they are chosen one by one; raises as `read_chosen`."""
        if self.chosen is None:
            return {}
        if self._chosen is None:
            file = self._directory / self.chosen.file
            found = read_chosen(file, self.chosen.sha256, {one.name: one.shape for one in self.core})
            if wrong := [one.name for one in self.core if len(found[one.name].indices) != one.chosen]:
                raise ArtefactError(f"{file}: other numbers of parameters than the core file says: {wrong[0]}")
            self._chosen = found
        return self._chosen

    def of_parameters(self, chosen: Mapping[str, Chosen]) -> Self:
        """The same tensors with single parameters as the core set; tensors with a score only."""
        counts = {name: len(part.indices) for name, part in chosen.items()}
        parameters = tuple(
            one.model_copy(update={"core": one.name in counts, "chosen": counts.get(one.name)})
            for one in self.parameters
        )
        sha256 = content_sha256(_stored(chosen, parameters))
        file = ChosenFile(file=f"{self.task}.core.{sha256[:12]}.safetensors", sha256=sha256)
        method = self.method.model_copy(update={"unit": "parameters"})
        made = self.model_copy(update={"parameters": parameters, "chosen": file, "method": method})
        made._chosen = chosen
        return made

    def plain(self) -> dict[str, Any]:
        """As of any record, with the score of a tensor that has none, and where nothing was transferred from."""
        data = super().plain()
        data["transferred_from"] = data.get("transferred_from")
        for dumped, tensor in zip(data["parameters"], self.parameters, strict=True):
            dumped["score"] = tensor.score
        return data

    @property
    def core(self) -> tuple[CoreTensor, ...]:
        return tuple(tensor for tensor in self.parameters if tensor.core)

    def __repr__(self) -> str:
        counted = "entries" if self.method.unit == "rows" else "tensors"
        return (
            f"<CoreFile {self.task}: {len(self.core)} of {len(self.parameters)} {counted} core, "
            f"{self.ratio_of_elements:.2%} of the parameters, of {self.model.id}>"
        )

    __str__ = __repr__

    @property
    def ratio_of_tensors(self) -> float:
        """Core share of the tensors; the parts of a fused tensor count as one entry each."""
        return len(self.core) / len(self.parameters)

    @property
    def ratio_of_elements(self) -> float:
        return sum(p.num_core for p in self.core) / sum(p.num_elements for p in self.parameters)


def write_core(path: Path, core: CoreFile) -> tuple[Path, ...]:
    """Write a core file, and before it what lies beside it; what an earlier one had there goes. Returns the files."""
    beside = None if core.chosen is None else path.with_name(core.chosen.file)
    earlier = _file_beside(path)
    if beside is not None and not beside.exists():
        from safetensors.numpy import save

        with replacing(beside) as temporary:
            temporary.write_bytes(save(_stored(core.parameters_chosen, core.core), METADATA))
    write_text(path, to_json(core))
    if earlier is not None and earlier != beside:
        earlier.unlink(missing_ok=True)
    return (path,) if beside is None else (path, beside)


def _stored(chosen: Mapping[str, Chosen], tensors: Iterable[CoreTensor]) -> dict[str, Any]:
    shapes = {one.name: one.shape for one in tensors}
    return {name: encoded(part, numel(shapes[name])) for name, part in chosen.items()}


def _file_beside(path: Path) -> Path | None:
    """What the core file that is there now names, if it is one of ours."""
    try:
        return path.with_name(ChosenFile.model_validate(read_leniently(path).get("chosen")).file)
    except ValidationError:
        return None
