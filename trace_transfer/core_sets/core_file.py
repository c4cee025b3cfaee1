"""`TASK.core.json`: the scores of a model's tensors for a task, and which of them are core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from trace_transfer.core_sets.chosen import Beside, Chosen, content_sha256, read_chosen, stored, write_chosen
from trace_transfer.errors import ArtefactError, together
from trace_transfer.files import write_text
from trace_transfer.models.sources import AXES, Ranges, numel, part_numel
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.records import TASK, ModelIdentity, Name, Range, Strict, to_json

Unit = Literal["tensors", "elements", "rows", "parameters"]  # what a ratio counts
SHOWN = 10  # core entries in a notebook
EXCLUDED = "excluded"  # the component of what a family's rules leave out


class CoreTensor(Strict):
    """One scored tensor, or (with `rows`, `columns` or `depth`) the part of a fused one.

    Rows are ranges of dimension 0, columns of dimension 1, depth of dimension 2, end exclusive. The parts of one
    tensor are disjoint. `component` and `layer` say what it is by its family's rules; a fused (or shared) tensor
    is of several, `a+b`. `terms` are what the score was made of. `chosen` is how many of its parameters are core, where
    they are chosen one by one.
    """

    name: Name
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    depth: tuple[Range, ...] | None = None
    component: str | None = None
    layer: int | None = None
    score: float | None = Field(default=None, allow_inf_nan=False)
    terms: dict[str, float] | None = None
    core: bool = Field(default=False, strict=True)
    chosen: int | None = Field(default=None, ge=1, strict=True)
    sources: tuple[str, ...] | None = Field(default=None, alias="from")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        for dim, (word, ranges) in enumerate(zip(AXES, self.place[1:], strict=True)):
            for start, stop in ranges or ():
                if dim >= len(self.shape) or not 0 <= start < stop <= self.shape[dim]:
                    raise ValueError(f"{self.name}: {word} [{start}, {stop}] do not fit shape {list(self.shape)}")
        if self.core and self.score is None:
            raise ValueError(f"{self.name}: core, but without a score")
        if self.chosen is not None and not (self.core and self.chosen <= self.num_elements):
            raise ValueError(f"{self.name}: {self.chosen} chosen, of a tensor that is not core or has fewer parameters")
        return self

    @property
    def num_elements(self) -> int:
        """Elements of the tensor or of its part."""
        return part_numel(self.shape, self.rows, self.columns, self.depth)

    @property
    def num_core(self) -> int:
        """Elements of it that are core."""
        return (self.num_elements if self.chosen is None else self.chosen) if self.core else 0

    @property
    def place(self) -> tuple[str, Ranges | None, Ranges | None, Ranges | None]:
        """Name, rows, columns and depth: what tells it from the other entries of its file."""
        return self.name, self.rows, self.columns, self.depth


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
    """`TASK.core.json`: every scored tensor, best first, and which of them are core.

    With unit `parameters` each tensor is listed with its own score, and `chosen` names the file beside it that says
    which of its parameters are core.
    """

    format: Literal["trace-transfer/core"] = "trace-transfer/core"
    version: Literal[1] = 1
    task: str = Field(pattern=TASK)
    model: ModelIdentity
    method: Method
    parameters: tuple[CoreTensor, ...]
    transferred_from: Transfer | None = None
    chosen: ChosenFile | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    _beside: Beside = PrivateAttr(default_factory=Beside)

    @model_validator(mode="after")
    def _can_be_of_one_model(self) -> Self:
        problems = _contradictions(self.parameters, self.model)
        by_one = self.method.unit == "parameters"
        if by_one != (self.chosen is not None) or any(by_one != (one.chosen is not None) for one in self.core):
            problems.append("'chosen' is of unit 'parameters' alone, and of every core tensor there")
        if problems:
            raise ValueError(together("contradicts itself", problems))
        return self

    def opened(self, file: Path) -> None:
        self._beside = Beside(None, file.parent)

    @property
    def parameters_chosen(self) -> Mapping[str, Chosen]:
        """Tensor → its core parameters, where they are chosen one by one.

        Raises:
            ArtefactError: the file beside it is missing, damaged or of another core set.
        """
        if self.chosen is None:
            return {}
        if self._beside.chosen is None:
            file = self._beside.directory / self.chosen.file
            found = read_chosen(file, self.chosen.sha256, {one.name: one.shape for one in self.core})
            if wrong := [one.name for one in self.core if len(found[one.name].places) != one.chosen]:
                raise ArtefactError(f"{file}: other numbers of parameters than the core file says: {wrong[0]}")
            self._beside.chosen = found
        return self._beside.chosen

    def of_parameters(self, chosen: Mapping[str, Chosen]) -> Self:
        """The same tensors with single parameters as the core set; tensors with a score only."""
        parameters = tuple(
            one.model_copy(update={"core": one.name in chosen, "chosen": len(chosen[one.name].places)})
            if one.name in chosen
            else one.model_copy(update={"core": False, "chosen": None})
            for one in self.parameters
        )
        sha256 = content_sha256(stored(chosen, {one.name: one.shape for one in parameters}))
        file = ChosenFile(file=f"{self.task}.core.{sha256[:12]}.safetensors", sha256=sha256)
        method = self.method.model_copy(update={"unit": "parameters"})
        made = self.model_copy(update={"parameters": parameters, "chosen": file, "method": method})
        made._beside = Beside(chosen)
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
        counted = (
            f"{len(self.core)} of {len(self.parameters)} {'entries' if self.method.unit == 'rows' else 'tensors'} core"
        )
        return f"<CoreFile {self.task}: {counted}, {self.ratio_of_elements:.2%} of the elements, of {self.model.id}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """In a notebook: the core set's best entries."""
        rows = [
            f"<tr><td>{escape(one.name)}</td><td>{_ranges_told(one)}</td><td>{one.num_core:,}</td>"
            f"<td>{one.score:.4g}</td></tr>"
            for one in self.core[:SHOWN]
        ]
        more = f"<p>… and {len(self.core) - SHOWN} more</p>" if len(self.core) > SHOWN else ""
        heading = "<tr><th>tensor</th><th>part</th><th>elements</th><th>score</th></tr>"
        return f"<p>{escape(repr(self)[1:-1])}</p><table>{heading}{''.join(rows)}</table>{more}"

    @property
    def ratio_of_tensors(self) -> float:
        """Core share of the tensors; the parts of a fused tensor count as one entry each."""
        return len(self.core) / len(self.parameters)

    @property
    def ratio_of_elements(self) -> float:
        return sum(p.num_core for p in self.core) / sum(p.num_elements for p in self.parameters)


def write_core(path: Path, core: CoreFile) -> tuple[Path, ...]:
    """Write a core file, and before it what lies beside it: both or none. What an earlier one had there goes.

    Returns:
        The files.
    """
    beside = None if core.chosen is None else path.with_name(core.chosen.file)
    earlier = _file_beside(path)
    known = beside is not None and beside.exists()
    if beside is not None and not known:
        write_chosen(beside, stored(core.parameters_chosen, {one.name: one.shape for one in core.core}))
    try:
        write_text(path, to_json(core))
    except BaseException:
        if beside is not None and not known:
            beside.unlink(missing_ok=True)
        raise
    if earlier is not None and earlier != beside:
        earlier.unlink(missing_ok=True)
    return (path,) if beside is None else (path, beside)


def _file_beside(path: Path) -> Path | None:
    """What the core file that is there now names, if it is one of ours."""
    try:
        return path.with_name(ChosenFile.model_validate(read_leniently(path).get("chosen")).file)
    except ValidationError:
        return None


def _ranges_told(entry: CoreTensor) -> str:
    """`rows 0-11, 24-35` of an entry, empty for a whole tensor."""
    if entry.chosen is not None:
        return f"{entry.chosen:,} single parameters"
    parts = zip(AXES, entry.place[1:], strict=True)
    return "; ".join(f"{word} {', '.join(f'{a}-{b - 1}' for a, b in ranges)}" for word, ranges in parts if ranges)


def _contradictions(tensors: Sequence[CoreTensor], model: ModelIdentity) -> list[str]:
    """What cannot be so, whatever the model is. A file need not list all tensors: those that are not scored lack."""
    if not tensors:
        return ["no tensors are listed"]
    problems: dict[str, None] = {}  # in order, each once
    seen: set[tuple[Any, ...]] = set()
    shapes: dict[str, tuple[int, ...]] = {}
    covered: dict[str, int] = {}
    for entry in tensors:
        name, shape = entry.name, shapes.setdefault(entry.name, entry.shape)
        if entry.place in seen:
            problems[f"{name} is listed twice"] = None
        elif shape != entry.shape:
            problems[f"{name} is listed with two shapes, {list(shape)} and {list(entry.shape)}"] = None
        seen.add(entry.place)
        covered[name] = covered.get(name, 0) + entry.num_elements
    if not problems:
        problems |= {
            f"{name}: its parts have {count:,} elements together, and its shape {list(shapes[name])} has fewer: they "
            "overlap": None
            for name, count in covered.items()
            if count > numel(shapes[name])
        }
    if len(shapes) > model.num_parameters:
        found = f"{len(shapes):,} tensors are listed"
        problems[f"{found}, and model.num_parameters says that there are {model.num_parameters:,}"] = None
    if (total := sum(map(numel, shapes.values()))) > model.num_elements:
        found = f"the listed tensors have {total:,} elements by their shapes"
        problems[f"{found}, and model.num_elements says that there are {model.num_elements:,}"] = None
    return list(problems)
