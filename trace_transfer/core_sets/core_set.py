"""What is exported: the core set of one or several core files of one model, among all names of that model.

Names are those of `named_parameters()`, as trainers match them; a tied tensor has its owner's name only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Chosen, Mask
from trace_transfer.errors import TraceTransferError, UserError, listing
from trace_transfer.models.sources import numel
from trace_transfer.records import ModelIdentity

WHOLE_ONLY = "`trace-transfer train` can; `score --unit tensors` finds sets of whole tensors"


class ExportError(UserError):
    """A core set that a trainer's settings cannot say exactly."""


class InexactExportError(TraceTransferError):
    """What was written would not train the core set: a mistake of this package's, or another version of the trainer."""


@dataclass(frozen=True)
class CoreSet:
    """What any of some core files trains, among the shapes of all tensors of their model, layer by layer."""

    files: tuple[str, ...]
    cores: tuple[CoreFile, ...]
    shapes: Mapping[str, tuple[int, ...]]
    mask: Mask

    @classmethod
    def of(cls, files: Mapping[str, CoreFile], shapes: Mapping[str, tuple[int, ...]]) -> CoreSet:
        """The union of core files, by what messages call them; of files of several models a UserError."""
        models = {core.model.names_sha256: file for file, core in files.items()}
        if len(models) > 1:
            raise UserError(f"core files of several models cannot be exported as one: {', '.join(models.values())}")
        mask = reduce(or_, (Mask.of_core(core, shapes, {}, file) for file, core in files.items()))
        ordered = {name: shapes[name] for name in sorted(shapes, key=natural_key)}
        return cls(tuple(files), tuple(files.values()), ordered, mask)

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
        model, versions = self.model, {core.libraries.get("transformers") for core in self.cores}
        revision = f"@{model.revision}" if model.revision else ""
        known = versions.pop() if len(versions) == 1 else None
        version = f"transformers {known}" if known else "a version of transformers not recorded"
        return [
            f"Core set of {'task' if len(self.tasks) == 1 else 'tasks'} {', '.join(self.tasks)} for {trainer}: "
            f"{self.summary}.",
            f"Model: {model.id}{revision} ({model.model_type}, {len(self.shapes)} tensors, names_sha256 "
            f"{model.names_sha256[:16]}).",
            f"Names: named_parameters() of {version}, of the bare model: no adapters or other wrappers around it.",
        ]


def commented(core: CoreSet, trainer: str, *more: str) -> str:
    """The header as lines of comments, with more of them."""
    return "".join(f"# {line}\n" for line in (*core.header(trainer), *more))


def with_header(core: CoreSet, trainer: str, settings: Mapping[str, object], *more: str) -> str:
    """Settings as YAML, below the header and more lines of comments."""
    import yaml

    return commented(core, trainer, *more) + yaml.safe_dump(dict(settings), sort_keys=False, width=1_000_000)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names with numbers in them by the numbers: layer 2 before layer 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def require_whole(core: CoreSet, trainer: str, reason: str, but: Sequence[int] = ()) -> None:
    """Refuse parts of tensors but along some dimensions: an ExportError names all, and the reason."""
    refused = [
        f"{name}: {part}"
        for name in core.names
        if (part := core.mask.parts[name]) is not None and (isinstance(part, Chosen) or part.dim not in but)
    ]
    if refused:
        message = f"{trainer} cannot train these parts of tensors: {reason}; {WHOLE_ONLY}:\n"
        raise ExportError(message + listing(refused))


def require_exact(wanted: Iterable[str], found: Iterable[str], trainer: str) -> None:
    """Compare the core set with what a text would train: an InexactExportError lists both differences."""
    expected, got = set(wanted), set(found)
    problems = [f"{name}: core, but would not train" for name in sorted(expected - got, key=natural_key)]
    problems += [f"{name}: not core, but would train" for name in sorted(got - expected, key=natural_key)]
    if problems:
        raise InexactExportError(f"the text for {trainer} is not exact; nothing was written:\n" + listing(problems))
