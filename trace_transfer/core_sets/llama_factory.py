"""LLaMA-Factory's freeze tuning: whole modules of the first or last layers, or of every n-th one.

How LLaMA-Factory reads it (`llamafactory/model/adapter.py`): `freeze_trainable_layers: n` are the last n layers, -n the
first; with `use_llama_pro` n layers at equal distances. A tensor trains if `.LAYER.MODULE` of any of those layers
and of `freeze_trainable_modules` (the part of a name after the layer's number) stands anywhere in its name, or any of
`freeze_extra_modules` (modules outside the layers) does. Most core sets cannot be said so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from trace_transfer.core_sets.core_set import (
    WHOLE_ONLY,
    CoreSet,
    ExportError,
    natural_key,
    require_exact,
    require_whole,
)
from trace_transfer.errors import listing

NUMBERED = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Freezing:
    """LLaMA-Factory's settings.

    Attributes:
        layers: of `freeze_trainable_layers`.
        modules: of `freeze_trainable_modules`; none is only possible with no layers.
        extra: of `freeze_extra_modules`.
        pro: `use_llama_pro`.
    """

    layers: int
    modules: tuple[str, ...]
    extra: tuple[str, ...] = ()
    pro: bool = False

    def layer_ids(self, num_layers: int) -> Iterable[int]:
        if self.pro:
            stride = num_layers // self.layers
            return range(stride - 1, num_layers + stride - 1, stride)
        return range(max(0, num_layers - self.layers), num_layers) if self.layers > 0 else range(-self.layers)

    def trained(self, names: Iterable[str], num_layers: int) -> list[str]:
        """What would train, name by name, as LLaMA-Factory finds it."""
        needles = [f".{layer}.{module}" for module in self.modules for layer in self.layer_ids(num_layers)]
        needles += self.extra
        return [name for name in names if any(needle in name for needle in needles)]

    @property
    def settings(self) -> dict[str, object]:
        found: dict[str, object] = {"finetuning_type": "freeze", "freeze_trainable_layers": self.layers}
        found["freeze_trainable_modules"] = ",".join(self.modules) or "all"
        if self.extra:
            found["freeze_extra_modules"] = ",".join(self.extra)
        return {**found, "use_llama_pro": True} if self.pro else found


def write_llama_factory(core: CoreSet) -> str:
    """The lines of a LLaMA-Factory configuration that train a core set, where there are any.

    Raises:
        ExportError: parts of tensors are core, or no settings train exactly the core set; names what of it would not
            train alone.
    """
    import yaml

    require_whole(core, "LLaMA-Factory", f"it trains whole modules only; {WHOLE_ONLY}")
    names, num_layers = _Names(tuple(core.shapes)), core.model.num_layers
    stacks = {name[: found.start()] for name in core.shapes if (found := NUMBERED.search(name))}
    if len(stacks) > 1:
        raise ExportError(
            f"LLaMA-Factory treats models with several stacks of layers ({', '.join(sorted(stacks))}) in its own way: "
            "what it freezes of them cannot be told from a core file. Use `--to axolotl`, `ms-swift` or `trl`"
        )
    freezing = next(_exact(core.names, names, num_layers), None)
    if freezing is None:
        raise ExportError(_why_not(core, names, num_layers))
    require_exact(core.names, freezing.trained(core.shapes, num_layers), "LLaMA-Factory")
    header = [*core.header("LLaMA-Factory"), "Merge it into your configuration."]
    return "".join(f"# {line}\n" for line in header) + yaml.safe_dump(freezing.settings, sort_keys=False)


class _Names:
    """The names of a model, by what a module of theirs can be called."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """As LLaMA-Factory collects them: what follows the number of layer 0 or 1."""
        found: dict[str, None] = {}
        for name in self.names:
            number = next((one for one in (".0.", ".1.") if one in name), None)
            if number is not None:
                found[name.split(number)[-1].split(".")[0]] = None
        return tuple(found)

    @cached_property
    def extra(self) -> Mapping[str, tuple[str, ...]]:
        """Each module outside the layers → all names that it stands in."""
        outside = [name for name in self.names if not NUMBERED.search(name) and name.count(".")]
        modules = dict.fromkeys(name.split(".")[-2] for name in outside)
        return {module: tuple(name for name in self.names if module in name) for module in modules}

    @cached_property
    def of_layer(self) -> Mapping[tuple[int, str], tuple[str, ...]]:
        """(layer, module) → the names in which `.LAYER.MODULE` stands."""
        found: dict[tuple[int, str], list[str]] = {}
        for name in self.names:
            for one in re.finditer(r"\.(\d+)(?=\.(.*))", name):
                for module in self.modules:
                    if one[2].startswith(module):
                        found.setdefault((int(one[1]), module), []).append(name)
        return {key: tuple(names) for key, names in found.items()}


def _choices(num_layers: int) -> Iterator[Freezing]:
    """All sets of layers that LLaMA-Factory has words for, each once."""
    yield Freezing(0, ())
    for count in range(1, num_layers + 1):
        yield Freezing(count, ())
        if count < num_layers:
            yield Freezing(-count, ())
        if 1 < count < num_layers and num_layers % count == 0:
            yield Freezing(count, (), pro=True)


def _largest_within(wanted: Collection[str], names: _Names, num_layers: int) -> Iterator[tuple[Freezing, set[str]]]:
    """For each set of layers all modules that train nothing but core tensors, and what they train."""
    core = set(wanted)
    extra = tuple(module for module, found in names.extra.items() if core.issuperset(found))
    outside = {name for module in extra for name in names.extra[module]}
    for choice in _choices(num_layers):
        ids = list(choice.layer_ids(num_layers))
        hits = {m: [name for layer in ids for name in names.of_layer.get((layer, m), ())] for m in names.modules}
        modules = tuple(module for module, found in hits.items() if found and core.issuperset(found))
        if bool(ids) == bool(modules):  # without modules the layers would have to be "all"
            inside = {name for module in modules for name in hits[module]}
            yield Freezing(choice.layers, modules, extra, choice.pro), inside | outside


def _exact(wanted: Collection[str], names: _Names, num_layers: int) -> Iterator[Freezing]:
    return (found for found, trained in _largest_within(wanted, names, num_layers) if trained == set(wanted))


def _why_not(core: CoreSet, names: _Names, num_layers: int) -> str:
    best = max((trained for _, trained in _largest_within(core.names, names, num_layers)), key=len)
    left = sorted(set(core.names) - best, key=natural_key)
    return (
        "LLaMA-Factory cannot train exactly this core set. It freezes all but whole modules "
        f"({', '.join(names.modules)}) of the first n layers, of the last n, or of n at equal distances, and modules "
        f"outside the layers ({', '.join(names.extra)}) whose name stands in no other tensor's. It would need a "
        "list or pattern of tensor names (hiyouga/LLaMA-Factory#8834), as axolotl, ms-swift and trl can be given. "
        "Not to be said without training others:\n" + listing(left)
    )
