"""What is exported: the core set of one or several core files of one model, among all names of that model.

Names are those of `named_parameters()`, as trainers match them; a tied tensor has its owner's name only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Mask, Part
from trace_transfer.errors import TraceTransferError, UserError, listing
from trace_transfer.models.sources import AXES, numel
from trace_transfer.records import ModelIdentity

WHOLE_ONLY = "`trace-transfer train` can; `score --unit tensors` finds sets of whole tensors"


class ExportError(UserError):
    """A core set that a trainer's settings cannot say exactly."""


class InexactExportError(TraceTransferError):
    """What was written would not train the core set: a mistake of this package's, or another version of the trainer."""


@dataclass(frozen=True)
class CoreSet:
    """What any of some core files trains, among all tensors of their model.

    Attributes:
        files: as messages call them.
        shapes: all tensors of the model, layer by layer.
        transformers: the version whose names they are, if the files say so.
    """

    files: tuple[str, ...]
    cores: tuple[CoreFile, ...]
    shapes: Mapping[str, tuple[int, ...]]
    mask: Mask
    transformers: str | None

    @classmethod
    def of(cls, files: Mapping[str, CoreFile], shapes: Mapping[str, tuple[int, ...]]) -> CoreSet:
        """The union of core files.

        Args:
            files: by what messages call them.
            shapes: all tensors of the model.

        Raises:
            UserError: files of several models, or core sets that cannot be trained together.
        """
        models = {core.model.names_sha256: file for file, core in files.items()}
        if len(models) > 1:
            raise UserError(f"core files of several models cannot be exported as one: {', '.join(models.values())}")
        masks = [Mask.of_core(core, shapes, {}, file) for file, core in files.items()]
        mask = masks[0]
        for other in masks[1:]:
            mask = mask | other
        versions = {core.libraries.get("transformers") for core in files.values()}
        ordered = {name: shapes[name] for name in sorted(shapes, key=natural_key)}
        return cls(tuple(files), tuple(files.values()), ordered, mask, versions.pop() if len(versions) == 1 else None)

    @property
    def model(self) -> ModelIdentity:
        return self.cores[0].model

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(core.task for core in self.cores))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors that train, whole or in part, layer by layer."""
        return tuple(name for name in self.shapes if self.mask.trains(name))

    @property
    def summary(self) -> str:
        """How much of the model it is."""
        total = sum(map(numel, self.shapes.values()))
        parts = f" (of {len(self.mask.sliced)} a part)" if self.mask.sliced else ""
        return (
            f"{len(self.names)} of {len(self.shapes)} tensors{parts}, "
            f"{self.mask.numel(self.shapes) / total:.4%} of the elements"
        )

    def header(self, trainer: str) -> list[str]:
        """Lines that say for what model and names a text holds, to stand in it as comments."""
        model = self.model
        revision = f"@{model.revision}" if model.revision else ""
        version = f"transformers {self.transformers}" if self.transformers else "a version of transformers not recorded"
        return [
            f"Core set of {'task' if len(self.tasks) == 1 else 'tasks'} {', '.join(self.tasks)} for {trainer}: "
            f"{self.summary}.",
            f"Model: {model.id}{revision} ({model.model_type}, {len(self.shapes)} tensors, names_sha256 "
            f"{model.names_sha256[:16]}).",
            f"Names: named_parameters() of {version}, of the bare model: no adapters or other wrappers around it.",
        ]


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names with numbers in them by the numbers: layer 2 before layer 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def require_whole(core: CoreSet, trainer: str, reason: str, but: Sequence[int] = ()) -> None:
    """Refuse parts of tensors, all at once.

    Args:
        reason: why the trainer cannot have them, and what to do.
        but: dimensions along which it can have parts.

    Raises:
        ExportError: there are others.
    """
    sliced = core.mask.sliced
    refused = [
        _part(name, part)
        for name in core.names
        if (part := sliced.get(name)) is not None and (isinstance(part, Chosen) or part.dim not in but)
    ]
    if refused:
        raise ExportError(f"{trainer} cannot train these parts of tensors: {reason}:\n" + listing(refused))


def _part(name: str, part: Part) -> str:
    """`NAME: rows 0-575, 1152-1727`."""
    if isinstance(part, Chosen):
        return f"{name}: {part}"
    ranges = ", ".join(f"{start}-{stop - 1}" for start, stop in part.ranges[:5])
    more = f" and {len(part.ranges) - 5} ranges more" if len(part.ranges) > 5 else ""
    return f"{name}: {AXES[part.dim]} {ranges}{more}"


def require_exact(wanted: Iterable[str], found: Iterable[str], trainer: str) -> None:
    """Compare the core set with what a text would train, by the trainer's own way of matching.

    Raises:
        InexactExportError: they differ; both differences are listed.
    """
    expected, got = set(wanted), set(found)
    problems = [f"{name}: core, but would not train" for name in sorted(expected - got, key=natural_key)]
    problems += [f"{name}: not core, but would train" for name in sorted(got - expected, key=natural_key)]
    if problems:
        raise InexactExportError(f"the text for {trainer} is not exact; nothing was written:\n" + listing(problems))
