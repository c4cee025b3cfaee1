"""A draft as YAML: every line with the reason for it, and a list of what is left to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trace_transfer.models import AXES
from trace_transfer.rules.components import OUTSIDE_COMPONENTS
from trace_transfer.rules.expressions import Expression
from trace_transfer.rules.tables import Part

MAX_WIDTH = 120
GUESS = "# guess"


@dataclass(frozen=True)
class DraftLine:
    """A member of a component. `shown` is the role if it must be said; part, shared and head are as in `tables.Member`.

    `sure` means that a known family, or the model itself, has the name so and nothing speaks against it.
    """

    component: str
    pattern: str
    optional: bool
    role: str
    shown: str | None
    why: str
    sure: bool
    place: int
    part: Part | None = None
    shared: bool = False
    head: Expression | Literal[False] | None = None

    @property
    def name(self) -> str:
        return self.pattern + ("?" if self.optional else "")

    def __str__(self) -> str:
        extras = [f"role: {self.shown}"] if self.shown else []
        if self.part is not None:
            extras.insert(0, f"{AXES[self.part.dim]}: {_range(self.part)}")
        if self.shared:
            extras.append("shared: true")
        if self.head is not None:
            extras.append(f"head: {self.head.text if self.head else 'false'}")
        name = f'"{self.name}"' if (extras and self.optional) or "{" in self.name else self.name
        return "{" + ", ".join([f"name: {name}", *extras]) + "}" if extras else name


def _range(part: Part) -> str:
    if part.every is None:
        return f"[{part.start.text}, {part.stop.text}]"
    return f"{{every: {part.every.text}, from: {part.start.text}, to: {part.stop.text}}}"


@dataclass(frozen=True)
class Draft:
    """A rules file in the making. `todo` are the names, as the file has them, that are in no component."""

    text: str
    nearest: str | None
    lines: tuple[DraftLine, ...]
    todo: tuple[str, ...]

    @property
    def guesses(self) -> tuple[DraftLine, ...]:
        return tuple(line for line in self.lines if not line.sure)


def draft_text(
    kind: str,
    nearest: str | None,
    layer_path: str,
    lines: Sequence[DraftLine],
    sizes: Mapping[str, Sequence[str]],
    excluded: Iterable[tuple[str, str]],
    todo: Sequence[tuple[str, tuple[int, ...]]],
    stopped: str | None,
) -> Draft:
    """Lay the file out in the order of the shipped ones."""
    out = [
        f"# {kind}: a draft, made from names, shapes and the order in which modules are called, after the known family",
        f"# {nearest}. Look at each `guess`, in the model's code if need be; what fits is not yet what is right.",
    ]
    if stopped:
        out.append(f"# The pass that shows the order ended early ({' '.join(stopped.split())[:60]}).")
    out += [f"family: {kind}", f"model_types: [{kind}]", f"layer: {layer_path}.{{layer}}"]
    if sizes:
        out.append("sizes:")
        out += [f"  {name}: {_choices(choices)}" for name, choices in sizes.items()]
    outside = [line for line in lines if line.component in OUTSIDE_COMPONENTS]
    for title, group in (("components", [line for line in lines if line not in outside]), ("outside", outside)):
        out.append(f"{title}:" if group else f"{title}: {{}}")
        for component in dict.fromkeys(line.component for line in group):
            out.append(f"  {component}:")
            for line in group:
                if line.component == component:
                    out += _member(line)
    modules = list(excluded)
    if modules:
        out.append("exclude:")
        out += [f"  - {{module: {name}, reason: {reason}}}  {GUESS}" for name, reason in modules]
    if todo:
        out += ["# TODO: these are in no component. Add each to one, or exclude it with a reason."]
        out += [f"#   {name} {list(shape)}" for name, shape in todo]
    return Draft("\n".join(out) + "\n", nearest, tuple(lines), tuple(name for name, _ in todo))


def _choices(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else "[" + ", ".join(choices) + "]"


def _member(line: DraftLine) -> list[str]:
    text = f"    - {line}"
    if line.sure:
        with_why = f"{text}  # {line.why}"
        return [with_why] if len(with_why) <= MAX_WIDTH else [f"    # {line.why}", text]
    return [f"    {GUESS}: {line.component}, because {line.why}", text]
