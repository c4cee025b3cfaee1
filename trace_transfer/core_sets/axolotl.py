"""Axolotl's `unfrozen_parameters`, which Spectrum writes too: patterns of names, some with rows.

How Axolotl reads one (`axolotl/utils/freeze.py`): a `[a:b]` at its end is a range of rows; in the rest a dot means a
dot; it is matched at the beginning of a name (`re.match`) and is open at the end. A hook zeroes the gradients of the
other rows; if any pattern with rows matches a tensor, then its rows alone train, whatever other patterns say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_set import WHOLE_ONLY, CoreSet, require_exact, require_whole
from trace_transfer.core_sets.masks import Mask, Part, Slice, merged_ranges
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.text_formats import read_yaml

KEY = "unfrozen_parameters"
WITH_ROWS = re.compile(r"^(.+)\[([0-9]*)(?::([0-9]*))?\]$")
ROWS_HOLD = [
    "Rows: Axolotl zeroes the gradients of the other rows, which weight decay would move all the same: it must be 0,",
    "as below. They do not hold with ZeRO 3 or FSDP, where hooks see no rows: those train the whole tensor.",
]


@dataclass(frozen=True)
class Pattern:
    """One entry of a list: what it matches, and which rows of that (`stop` None is the last)."""

    text: str
    regex: re.Pattern[str]
    rows: tuple[int, int | None] | None

    @property
    def literal(self) -> str | None:
        """The one name that it is meant for, if it has no other special characters than a beginning and an end."""
        name = (WITH_ROWS.sub(r"\1", self.text)).removeprefix("^").removesuffix("$").replace("\\.", ".")
        return name if re.fullmatch(r"[\w.]+", name) else None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """As `LayerNamePattern` of Axolotl.

        Raises:
            ValueError: not a regular expression, or rows that end before they begin.
        """
        found = WITH_ROWS.match(text)
        name: str = text
        rows: tuple[int, int | None] | None = None
        if found:
            name, start, stop = found.groups()
            if stop is None and start:
                rows = (int(start), int(start) + 1)
            else:
                rows = (int(start or 0), int(stop) if stop else None)
            if stop and int(start or 0) >= int(stop):
                raise ValueError(f"its rows [{start}:{stop}] end before they begin")
        try:
            return cls(text, re.compile(re.sub(r"\.(?!\+)", r"\\.", name)), rows)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error


def write_axolotl(core: CoreSet) -> str:
    """The lines of an Axolotl configuration that train a core set; rows of tensors are said, columns cannot be.

    Raises:
        ExportError: some columns of a tensor are core.
    """
    import yaml

    require_whole(core, "axolotl", f"its lists have ranges of rows only; {WHOLE_ONLY}", but=(0,))
    patterns = [pattern for name in core.names for pattern in _patterns(name, core.mask.parts[name])]
    header = [
        *core.header("axolotl"), "Merge it into your configuration, without `adapter`.",
        *(ROWS_HOLD if core.mask.sliced else []),
    ]  # fmt: skip
    settings: dict[str, Any] = {**({"weight_decay": 0.0} if core.mask.sliced else {}), KEY: patterns}
    text = "".join(f"# {line}\n" for line in header) + yaml.safe_dump(settings, sort_keys=False, width=10_000)
    trained = mask_of_patterns([Pattern.parse(one) for one in yaml.safe_load(text)[KEY]], core.shapes)
    require_exact(core.names, trained.parts, "axolotl")
    require_exact(map(str, core.mask.sliced.items()), map(str, trained.sliced.items()), "axolotl")
    return text


def _patterns(name: str, part: Part | None) -> list[str]:
    assert not isinstance(part, Chosen)  # refused above
    whole = "^" + ".".join(map(re.escape, name.split("."))) + "$"
    return [whole] if part is None else [f"{whole}[{start}:{stop}]" for start, stop in part.ranges]


def mask_of_patterns(
    patterns: Sequence[Pattern], shapes: Mapping[str, tuple[int, ...]], known: Mapping[Pattern, str] | None = None
) -> Mask:
    """What Axolotl would train with a list.

    Args:
        known: what is known of patterns that match nothing.

    Raises:
        ArtefactError: patterns that match nothing, or rows that a tensor does not have; all are named.
    """
    problems = [
        f"{pattern.text}: {(known or {}).get(pattern, f'matches none of the {len(shapes)} names')}"
        for pattern in patterns
        if not any(map(pattern.regex.match, shapes))
    ]
    parts: dict[str, Slice | None] = {}
    for name, shape in shapes.items():
        found = [pattern for pattern in patterns if pattern.regex.match(name)]
        size = shape[0] if shape else 0
        ranges = []
        for pattern in found:
            if pattern.rows is not None:
                start, stop = pattern.rows
                ranges.append((start, size if stop is None else stop))
                if not start < ranges[-1][1] <= size:
                    problems.append(f"{pattern.text}: {name} has {size} rows")
        if found:
            rows = merged_ranges(ranges)
            parts[name] = None if not rows or rows == ((0, size),) else Slice(0, rows)
    if problems:
        raise ArtefactError(
            f"patterns of {KEY} that do not fit the model (Axolotl matches names of named_parameters() from their "
            "beginning):\n" + listing(problems)
        )
    return Mask(parts)


def read_patterns(path: Path | str) -> list[Pattern]:
    """The list in an Axolotl configuration, or in what Spectrum wrote.

    Raises:
        ArtefactError: not there, not YAML, without the list, or with entries that are no patterns; all are named.
    """
    file = Path(path)
    data = read_yaml(file, ArtefactError)
    found = data.get(KEY) if isinstance(data, dict) else None
    if not isinstance(found, list) or not found:
        what = f"it has {', '.join(map(str, data))}" if isinstance(data, dict) and KEY not in data else "found none"
        raise ArtefactError(f"{file}: expected `{KEY}:` with a list of names or patterns; {what}")
    problems, patterns = [], []
    for index, one in enumerate(found, 1):
        try:
            patterns.append(Pattern.parse(_text(one)))
        except ValueError as error:
            problems.append(f"entry {index}, {one!r:.80}: {error}")
    if problems:
        raise ArtefactError(f"{file}:\n" + listing(problems))
    return patterns


def _text(entry: Any) -> str:
    if not isinstance(entry, str) or not entry:
        raise ValueError("not a name or pattern")
    return entry
