"""Other trainers' settings that name tensors, each as its trainer reads them.

Axolotl (`axolotl/utils/freeze.py`), whose lists Spectrum writes, too: of an entry of `unfrozen_parameters` a `[a:b]` at
the end is a range of rows; in the rest a dot means a dot; it is matched at the beginning of a name (`re.match`) and is
open at the end. A hook zeroes the gradients of the other rows; if any pattern with rows matches a tensor, then its rows
alone train, whatever other patterns say.

ms-swift (`swift/utils/transformers_utils.py`): `freeze_parameters_ratio: 1` freezes all tensors, then those in whose
name `trainable_parameters_regex` is found anywhere (`re.search`) train.

LLaMA-Factory (`llamafactory/model/adapter.py`): `freeze_trainable_layers: n` are the last n layers, -n the first; with
`use_llama_pro` n layers at equal distances. A tensor trains if `.LAYER.MODULE` of any of those layers and of
`freeze_trainable_modules` (the part of a name after the layer's number) stands anywhere in its name, or any of
`freeze_extra_modules` (modules outside the layers) does. Most core sets cannot be said so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trace_transfer.core_sets.core_set import (
    CoreSet,
    ExportError,
    natural_key,
    require_exact,
    require_whole,
    with_header,
)
from trace_transfer.core_sets.masks import Mask, Slice, merged_ranges
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.text_formats import read_yaml

UNFROZEN = "unfrozen_parameters"
WITH_ROWS = re.compile(r"^(.+)\[([0-9]*)(?:(:)([0-9]*))?\]$")
LAYER = re.compile(r"(.*?\.)(\d+)(\..*)")
ROWS_HOLD = [
    "Rows: Axolotl zeroes the gradients of the other rows, which weight decay would move all the same: it must be 0,",
    "as below. They do not hold with ZeRO 3 or FSDP, where hooks see no rows: those train the whole tensor.",
]


# ---- one expression, as such or for ms-swift


def write_regex(core: CoreSet) -> str:
    """One line: the names that match as a whole are the core set."""
    require_whole(core, "a regular expression", "it names whole tensors only")
    return exact_pattern(core.names, core.shapes) + "\n"


def write_ms_swift(core: CoreSet) -> str:
    """The lines of a configuration for `swift sft FILE.yaml` (or its options) that train a core set."""
    require_whole(core, "ms-swift", "it trains whole tensors only")
    pattern = f"^{exact_pattern(core.names, core.shapes)}$"
    require_exact(core.names, filter(re.compile(pattern).search, core.shapes), "ms-swift")
    return with_header(
        core, "ms-swift", {"tuner_type": "full", "freeze_parameters_ratio": 1, "trainable_parameters_regex": pattern},
        "Merge it into the file of `swift sft FILE.yaml`, or give each line as an option.",
        "Before version 4 `tuner_type` was called `train_type`.",
    )  # fmt: skip


def exact_pattern(names: Collection[str], among: Iterable[str]) -> str:
    """A pattern whose `fullmatch` finds these names and no other; tries it on all names that it may meet."""
    numbers: dict[tuple[str, str], list[str]] = {}  # of names that are alike before and after the number
    for name in sorted(names, key=natural_key):
        found = LAYER.fullmatch(name)
        before, number, after = found.groups() if found else (name, "", "")
        numbers.setdefault((before, after), []).append(number)
    branches: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # of those that have the same numbers
    for (before, after), those in numbers.items():
        branches.setdefault((before, tuple(those)), []).append(after)
    pattern = _any_of([
        re.escape(before) + _any_of(those) + _any_of([re.escape(after) for after in afters])
        for (before, those), afters in branches.items()
    ])  # fmt: skip
    compiled = re.compile(pattern)
    require_exact(names, filter(compiled.fullmatch, {*among, *names}), "regular expressions")
    return pattern


def _any_of(branches: Sequence[str]) -> str:
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


# ---- Axolotl


@dataclass(frozen=True)
class Pattern:
    """One entry of a list: what it matches, and which rows of that (`stop` None is the last)."""

    text: str
    regex: re.Pattern[str]
    rows: tuple[int, int | None] | None

    @classmethod
    def parse(cls, text: object) -> Pattern:
        """As `LayerNamePattern` of Axolotl; a ValueError where it is none."""
        if not isinstance(text, str) or not text:
            raise ValueError("not a name or pattern")
        name, rows = text, None
        if found := WITH_ROWS.match(text):
            name, start, colon, stop = found.groups()
            first = int(start or 0)
            rows = (first, int(stop) if stop else first + 1 if start and not colon else None)
            if stop and first >= int(stop):
                raise ValueError(f"its rows [{start}:{stop}] end before they begin")
        try:
            return cls(text, re.compile(re.sub(r"\.(?!\+)", r"\\.", name)), rows)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error


def write_axolotl(core: CoreSet) -> str:
    """The lines of an Axolotl configuration that train a core set; rows of tensors are said, columns cannot be."""
    require_whole(core, "axolotl", "its lists have ranges of rows only", but=(0,))
    patterns = []
    for name in core.names:
        part, whole = core.mask.parts[name], "^" + ".".join(map(re.escape, name.split("."))) + "$"
        rows = [f"[{start}:{stop}]" for start, stop in part.ranges] if isinstance(part, Slice) else [""]
        patterns += [whole + one for one in rows]
    trained = mask_of_patterns([Pattern.parse(one) for one in patterns], core.shapes)
    require_exact(map(str, core.mask.parts.items()), map(str, trained.parts.items()), "axolotl")
    settings = {**({"weight_decay": 0.0} if core.mask.sliced else {}), UNFROZEN: patterns}
    more = ["Merge it into your configuration, without `adapter`.", *(ROWS_HOLD if core.mask.sliced else [])]
    return with_header(core, "axolotl", settings, *more)


def mask_of_patterns(
    patterns: Sequence[Pattern], shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str] | None = None
) -> Mask:
    """What Axolotl would train with a list; an ArtefactError names patterns that match nothing (of an alias of a tied
    tensor its owner), and rows that a tensor does not have."""
    problems = []
    for pattern in patterns:
        if not any(map(pattern.regex.match, shapes)):
            owner = next((owner for alias, owner in (tied or {}).items() if pattern.regex.match(alias)), None)
            why = f"tied to {owner}; name that" if owner else f"matches none of the {len(shapes)} names"
            problems.append(f"{pattern.text}: {why}")
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
            f"patterns of {UNFROZEN} that do not fit the model (Axolotl matches names of named_parameters() from their "
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
    found = data.get(UNFROZEN) if isinstance(data, dict) else None
    if not isinstance(found, list) or not found:
        raise ArtefactError(f"{file}: expected `{UNFROZEN}:` with a list of names or patterns; found none")
    problems, patterns = [], []
    for index, one in enumerate(found, 1):
        try:
            patterns.append(Pattern.parse(one))
        except ValueError as error:
            problems.append(f"entry {index}, {one!r:.80}: {error}")
    if problems:
        raise ArtefactError(f"{file}:\n" + listing(problems))
    return patterns


# ---- LLaMA-Factory


@dataclass(frozen=True)
class Freezing:
    """`freeze_trainable_layers`, `_modules` (none with no layers alone), `freeze_extra_modules` and `use_llama_pro`."""

    layers: int
    modules: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    pro: bool = False

    def layer_ids(self, num_layers: int) -> Sequence[int]:
        if self.pro:
            stride = num_layers // self.layers
            return range(stride - 1, num_layers, stride)
        return range(max(0, num_layers - self.layers), num_layers) if self.layers > 0 else range(-self.layers)

    def trained(self, names: Iterable[str], num_layers: int) -> set[str]:
        """What would train, as LLaMA-Factory finds it."""
        needles = [f".{layer}.{module}" for module in self.modules for layer in self.layer_ids(num_layers)]
        needles += self.extra
        return {name for name in names if any(needle in name for needle in needles)}

    @property
    def settings(self) -> dict[str, object]:
        found: dict[str, object] = {"finetuning_type": "freeze", "freeze_trainable_layers": self.layers}
        found["freeze_trainable_modules"] = ",".join(self.modules) or "all"
        if self.extra:
            found["freeze_extra_modules"] = ",".join(self.extra)
        return {**found, "use_llama_pro": True} if self.pro else found


def write_llama_factory(core: CoreSet) -> str:
    """The lines of a LLaMA-Factory configuration that train a core set; an ExportError names what is in the way."""
    require_whole(core, "LLaMA-Factory", "it trains whole modules only")
    stacks = {found[1][:-1] for name in core.shapes if (found := LAYER.match(name))}
    if len(stacks) > 1:
        raise ExportError(
            f"LLaMA-Factory treats models with several stacks of layers ({', '.join(sorted(stacks))}) in its own way. "
            "Use `--to axolotl`, `ms-swift` or `trl`"
        )
    best: set[str] = set()
    for freezing in _within(core):
        trained = freezing.trained(core.shapes, core.model.num_layers)
        if trained == set(core.names):
            return with_header(core, "LLaMA-Factory", freezing.settings, "Merge it into your configuration.")
        best = max(best, trained, key=len)
    left = sorted(set(core.names) - best, key=natural_key)
    raise ExportError(
        "LLaMA-Factory cannot train exactly this core set: it trains whole modules "
        f"({', '.join(_modules(core))}) of the first n layers, of the last n, or of n at equal distances, and modules "
        f"outside the layers ({', '.join(_outside(core))}); axolotl, ms-swift and trl can be given lists or patterns. "
        "Not to be said without training others:\n" + listing(left)
    )


def _modules(core: CoreSet) -> list[str]:
    """As LLaMA-Factory collects them: what follows the number of layer 0 or 1."""
    parts = [re.split(r"\.[01]\.", name) for name in core.shapes]
    return list(dict.fromkeys(part[-1].split(".")[0] for part in parts if len(part) > 1))


def _outside(core: CoreSet) -> list[str]:
    names = [name for name in core.shapes if not LAYER.match(name) and "." in name]
    return list(dict.fromkeys(name.split(".")[-2] for name in names))


def _within(core: CoreSet) -> Iterator[Freezing]:
    """For each set of layers that it has words for, with all modules that train nothing but core tensors."""
    num_layers, wanted = core.model.num_layers, set(core.names)
    extra = tuple(module for module in _outside(core) if {name for name in core.shapes if module in name} <= wanted)
    hits = {
        (layer, module): {name for name in core.shapes if f".{layer}.{module}" in name}
        for layer in range(num_layers)
        for module in _modules(core)
    }
    counts = [0, *range(1, num_layers + 1), *range(-num_layers + 1, 0)]
    evenly = [count for count in range(2, num_layers) if num_layers % count == 0]
    for choice in [*(Freezing(count) for count in counts), *(Freezing(count, pro=True) for count in evenly)]:
        ids = choice.layer_ids(num_layers)
        found = {module: set[str]().union(*(hits[layer, module] for layer in ids)) for module in _modules(core)}
        modules = tuple(module for module, names in found.items() if names and names <= wanted)
        if bool(ids) == bool(modules):  # without modules the layers would have to be "all"
            yield replace(choice, modules=modules, extra=extra)
