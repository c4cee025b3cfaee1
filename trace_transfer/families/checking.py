"""Rules against models: whether a family's rules fit a config, and a first rules file for an unknown architecture.

Reads configs only: a given model's, or the default one that transformers has for each `model_type`. A draft holds what
the nearest family knows by name and a list of what is left. It says nothing about what a name means in the new model:
the check judges whether it covers the model, the model's code whether it is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trace_transfer.errors import RulesError
from trace_transfer.families.application import apply_family
from trace_transfer.families.language import NUMBER, SECTIONS, Family, Member, display_path
from trace_transfer.families.registry import FamilyRegistry, load_families
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.models.sources import AXES, Inventory, ModelSource, load_config, numel, read_inventory

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_family(family: Family, name: str, config: PretrainedConfig | None) -> str:
    """Apply a family's rules to the model of a config (None if transformers has none of that name), and say in one
    line what they cover; a ModelError where no model can be built."""
    if config is None:
        raise RulesError(
            f"{family.location}: the installed transformers has no model_type '{name}'; correct 'model_types:', or "
            "install a transformers that has it"
        )
    where = f"{family.location.path.name} ({family.name})"
    inventory = read_inventory(config)
    anatomy = apply_family(family, inventory)
    excluded = f", {len(anatomy.excluded)} excluded" if anatomy.excluded else ""
    return (
        f"{where} fits {name}: {len(inventory.shapes)} tensors in {len(anatomy.units)} parts, {anatomy.num_layers} "
        f"layers{excluded}"
    )


def planned_checks(
    registry: FamilyRegistry, files: Collection[Path], model: str | None
) -> list[tuple[Family, str, PretrainedConfig | None]]:
    """Which families of these files (none: of all) are checked against which configs; each is for `check_family`."""
    from transformers import CONFIG_MAPPING, AutoConfig

    families = [family for family in registry.families.values() if not files or family.location.path in files]
    if model is None:
        return [
            (family, kind, AutoConfig.for_model(kind) if kind in CONFIG_MAPPING else None)
            for family in families
            for kind in family.model_types
        ]
    config = load_config(ModelSource.parse(model))
    fitting = [family for family in families if config.model_type in family.model_types]
    if not fitting:
        registry.for_model_type(config.model_type)
        raise RulesError(f"none of the files to check is for model_type '{config.model_type}' (of {model})")
    return [(family, model, config) for family in fitting]


Known = Mapping[str, list[tuple[str, Member]]]  # name → its components, and how it is a member of each


class Draft(NamedTuple):
    """A rules file in the making, from the family whose names are most like the model's; `known` are names that it has
    as well, `todo` the others, each with its shape and a hint."""

    text: str
    nearest: str
    known: tuple[str, ...]
    todo: tuple[str, ...]


def write_draft(
    model: str, registry: FamilyRegistry, out: Path | None = None, force: bool = False
) -> tuple[str, str, bool]:
    """Draft rules for a model, write them and check them, with the options of `rules draft`.

    Returns how much of it is known and left to do; what came of checking it; whether it fits."""
    config = load_config(ModelSource.parse(model))
    kind = config.model_type
    path = out or Path(f"{kind}.yaml")
    known = registry.by_model_type.get(kind)
    if known is not None:
        says, fits = _verdict(lambda: check_family(known, model, config))
        if fits:
            where = display_path(known.location.path)
            raise RulesError(f"{where} has rules for model_type '{kind}' already, and they fit: {says}")
    if path.exists() and not force:
        raise RulesError(f"{path} exists; name another file with --out, or replace it with --force")
    draft = draft_family(read_inventory(config), [one for one in registry.families.values() if one is not known])
    prepare_directory(path.parent)
    write_text(path, draft.text)
    says, fits = _verdict(lambda: check_family(load_families(path).families[kind], model, config))
    counts = f"{len(draft.known)} names as there, {len(draft.todo)} left to do"
    return f"{display_path(path)}: nearest family {draft.nearest}; {counts}", says, fits


def _verdict(check: Callable[[], str]) -> tuple[str, bool]:
    try:
        return f"OK {check()}", True
    except RulesError as error:
        return str(error), False


def draft_family(inventory: Inventory, families: Sequence[Family]) -> Draft:
    """Copy what the nearest family has of a model's names, and list the others."""
    kind, path = inventory.model_type, _layer_path(inventory)
    shapes, some = _names(inventory, path)

    def likeness(family: Family) -> tuple[float, float, str]:
        own, known = shapes.keys(), _known(family).keys()
        return len(own & known) / len(own | known), SequenceMatcher(None, kind, family.name).ratio(), family.name

    nearest, *others = sorted(families, key=likeness, reverse=True)
    known = {name: found for name, found in _known(nearest).items() if name in shapes}
    members = [(component, member) for found in known.values() for component, member in found]
    hints = [f"{name} {list(shape)}{_hint(name, others, known)}" for name, shape in shapes.items() if name not in known]
    text = [
        f"# {kind}: a draft. What is here has the name that it has in {nearest.name}, the nearest family; whether it",
        "# does the same, the model's code tells.",
        f"family: {kind}", f"model_types: [{kind}]", f"layer: {path}.{{layer}}",
    ]  # fmt: skip
    if nearest.sizes and any(member.part or member.head for _, member in members):
        sizes = ((size.name, ", ".join(choice.text for choice in size.choices)) for size in nearest.sizes)
        text += ["sizes:", *(f"  {name}: [{choices}]" for name, choices in sizes)]
    for title, components in SECTIONS.items():
        lines = []
        for component in components:
            written = [f"    - {_text(one, one.pattern in some)}" for where, one in members if where == component]
            lines += [f"  {component}:", *written] if written else []
        text += [f"{title}:", *lines] if lines else [f"{title}: {{}}"]
    if hints:
        text += ["# TODO: these are in no component. Add each to one, or exclude it with a reason."]
        text += [f"#   {hint}" for hint in hints]
    return Draft("\n".join(text) + "\n", nearest.name, tuple(known), tuple(hints))


def _layer_path(inventory: Inventory) -> str:
    """The module path below which names go on with 0, 1, 2 …: of as many as the config says, with most elements."""
    found: dict[str, Counter[int]] = {}
    for name, shape in inventory.shapes.items():
        if match := re.search(r"\.(0|[1-9][0-9]*)\.", name):
            found.setdefault(name[: match.start()], Counter())[int(match[1])] += numel(shape)
    wanted = getattr(inventory.config.get_text_config(), "num_hidden_layers", None)
    paths = [path for path, layers in found.items() if sorted(layers) == list(range(len(layers)))]
    if not paths:
        raise RulesError(
            f"no rules can be drafted for {inventory.model_type}: none of its tensors stands in a list of layers "
            "0, 1, 2 …"
        )
    return max(paths, key=lambda path: (len(found[path]) == wanted, found[path].total()))


def _names(inventory: Inventory, layer_path: str) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Names as a rules file has them with their shapes, and those that not every layer has."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers: dict[str, set[str]] = {}
    for name in (*inventory.shapes, *inventory.tied):
        match = re.fullmatch(re.escape(layer_path) + r"\.([0-9]+)\.(.+)", name)
        parts = (match[2] if match else name).split(".")
        pattern = ".".join(NUMBER if part.isdecimal() else part for part in parts)
        shapes.setdefault(pattern, inventory.shapes[inventory.tied.get(name, name)])
        if match:
            layers.setdefault(pattern, set()).add(match[1])
    most = max(map(len, layers.values()))
    return shapes, {name for name, found in layers.items() if len(found) < most}


def _known(family: Family) -> Known:
    found: dict[str, list[tuple[str, Member]]] = {}
    for component in (*family.components.values(), *family.outside.values()):
        for member in component.members:
            found.setdefault(member.pattern, []).append((component.name, member))
    return found


def _hint(name: str, others: Sequence[Family], known: Known) -> str:
    """Where a name may belong: by another family that has it, or one like it; else by what stands beside it."""
    tail = name.partition(".")[2]
    for family in others:
        for pattern, found in _known(family).items():
            if pattern == name or ("." in tail and pattern.partition(".")[2] == tail):
                return f": {' and '.join(one for one, _ in found)}? {family.name} has {pattern} there"
    module = name.rpartition(".")[0]
    beside = [one for other, found in known.items() for one, _ in found if module and other.startswith(module + ".")]
    return f": one of {', '.join(dict.fromkeys(beside))}? These are beside it" if beside else ""


def _text(member: Member, optional: bool) -> str:
    entry: dict[str, str] = {"name": member.pattern + "?" * optional}
    if member.part is not None:
        span = member.part.span
        start, stop, every = (one and one.text for one in (span.start, span.stop, span.every))
        cut = f"{{every: {every}, from: {start}, to: {stop}}}" if every else f"[{start}, {stop}]"
        entry[AXES[member.part.dim]] = cut
    head = None if member.head is None else member.head.text if member.head else "false"
    more = {"role": member.said_role, "shared": "true" if member.shared else None, "head": head}
    entry |= {key: value for key, value in more.items() if value is not None}
    if "{" in entry["name"] or (optional and len(entry) > 1):
        entry["name"] = f'"{entry["name"]}"'
    items = ", ".join(f"{key}: {value}" for key, value in entry.items())
    return entry["name"] if len(entry) == 1 else f"{{{items}}}"
