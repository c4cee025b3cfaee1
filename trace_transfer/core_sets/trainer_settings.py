"""What is exported: a core set among all names of its model, as other trainers' settings, each as its trainer reads it.

Names are those of `named_parameters()`, as trainers match them; a tied tensor has its owner's name only.

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

peft: LoRA can take the weight of a linear layer, an embedding or a `Conv1D` (`target_modules`, as one expression that
matches a module's whole name), and any other tensor of two or three dimensions, such as fused experts
(`target_parameters`, whole names). Biases train beside their weights or not at all (`bias: lora_only`). A norm trains
itself, in a copy (`modules_to_save`), if all of its module is core. So the same tensors change as in training the core
set, matrices by a low rank only. The configuration is applied to the model, without memory for weights, and what trains
is read from peft's own result.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Chosen, Mask, Slice, merged_ranges
from trace_transfer.errors import ArtefactError, TraceTransferError, UserError, listing
from trace_transfer.models.sources import numel
from trace_transfer.records import ModelIdentity
from trace_transfer.text_formats import read_yaml

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

WHOLE_ONLY = "`trace-transfer train` can; `score --unit tensors` finds sets of whole tensors"
UNFROZEN = "unfrozen_parameters"
WITH_ROWS = re.compile(r"^(.+)\[([0-9]*)(?:(:)([0-9]*))?\]$")
LAYER = re.compile(r"(.*?\.)(\d+)(\..*)")
ROWS_HOLD = [
    "Rows: Axolotl zeroes the gradients of the other rows, which weight decay would move all the same: it must be 0,",
    "as below. They do not hold with ZeRO 3 or FSDP, where hooks see no rows: those train the whole tensor.",
]


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
        total = sum(map(numel, self.shapes.values()))
        parts = f" (of {len(self.mask.sliced)} a part)" if self.mask.sliced else ""
        return (
            f"{len(self.names)} of {len(self.shapes)} tensors{parts}, "
            f"{self.mask.numel(self.shapes) / total:.4%} of the parameters"
        )

    def header(self, trainer: str, *more: str) -> str:
        """Lines of comments that say for what model and names a text holds, and more of them."""
        model = self.model
        versions = sorted({core.libraries.get("transformers", "(not recorded)") for core in self.cores})
        revision = f"@{model.revision}" if model.revision else ""
        lines = [
            f"Core set of {'task' if len(self.tasks) == 1 else 'tasks'} {', '.join(self.tasks)} for {trainer}: "
            f"{self.summary}.",
            f"Model: {model.id}{revision} ({model.model_type}, {len(self.shapes)} tensors, names_sha256 "
            f"{model.names_sha256[:16]}).",
            f"Names: named_parameters() of transformers {' or '.join(versions)}, of the bare model: no adapters or "
            "other wrappers around it.",
            *more,
        ]
        return "".join(f"# {line}\n" for line in lines)

    def as_yaml(self, trainer: str, settings: Mapping[str, object], *more: str) -> str:
        import yaml

        return self.header(trainer, *more) + yaml.safe_dump(dict(settings), sort_keys=False, width=1_000_000)


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


# ---- one expression, as such or for ms-swift


def write_regex(core: CoreSet) -> str:
    """One line: the names that match as a whole are the core set."""
    require_whole(core, "a regular expression", "it names whole tensors only")
    pattern = exact_pattern(core.names)
    require_exact(core.names, filter(re.compile(pattern).fullmatch, core.shapes), "regular expressions")
    return pattern + "\n"


def write_ms_swift(core: CoreSet) -> str:
    """The lines of a configuration for `swift sft FILE.yaml` (or its options) that train a core set."""
    require_whole(core, "ms-swift", "it trains whole tensors only")
    pattern = f"^{exact_pattern(core.names)}$"
    require_exact(core.names, filter(re.compile(pattern).search, core.shapes), "ms-swift")
    return core.as_yaml(
        "ms-swift", {"tuner_type": "full", "freeze_parameters_ratio": 1, "trainable_parameters_regex": pattern},
        "Merge it into the file of `swift sft FILE.yaml`, or give each line as an option.",
        "Before version 4 `tuner_type` was called `train_type`.",
    )  # fmt: skip


def exact_pattern(names: Iterable[str]) -> str:
    """A pattern whose `fullmatch` finds these names and no other."""
    numbers: dict[tuple[str, str], list[str]] = {}  # of names that are alike before and after the number
    for name in sorted(names, key=natural_key):
        found = LAYER.fullmatch(name)
        before, number, after = found.groups() if found else (name, "", "")
        numbers.setdefault((before, after), []).append(number)
    branches: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # of those that have the same numbers
    for (before, after), those in numbers.items():
        branches.setdefault((before, tuple(those)), []).append(after)
    return _any_of([
        re.escape(before) + _any_of(those) + _any_of([re.escape(after) for after in afters])
        for (before, those), afters in branches.items()
    ])  # fmt: skip


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
    return core.as_yaml("axolotl", settings, *more)


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
    """The list in an Axolotl configuration, or in what Spectrum wrote; an ArtefactError where there is none, or names
    all entries that are no patterns."""
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
        raise ArtefactError(f"{file}: {UNFROZEN}:\n" + listing(problems))
    return patterns


# ---- LLaMA-Factory


def write_llama_factory(core: CoreSet) -> str:
    """The lines of a LLaMA-Factory configuration that train a core set; an ExportError names what is in the way.

    Of each choice of layers that it has words for, all modules are taken that train nothing but core tensors."""
    require_whole(core, "LLaMA-Factory", "it trains whole modules only")
    stacks = {found[1][:-1] for name in core.shapes if (found := LAYER.match(name))}
    if len(stacks) > 1:
        raise ExportError(
            f"LLaMA-Factory treats models with several stacks of layers ({', '.join(sorted(stacks))}) in its own way. "
            "Use `--to axolotl`, `ms-swift` or `trl`"
        )
    wanted, count = set(core.names), core.model.num_layers
    # Modules of layers, as it collects them: what follows the number of layer 0 or 1.
    parts = [re.split(r"\.[01]\.", name) for name in core.shapes]
    modules = list(dict.fromkeys(part[-1].split(".")[0] for part in parts if len(part) > 1))
    outside = dict.fromkeys(name.split(".")[-2] for name in core.shapes if not LAYER.match(name) and "." in name)

    def found_by(text: str) -> set[str]:
        return {name for name in core.shapes if text in name}

    extra = {module: names for module in outside if (names := found_by(module)) <= wanted}
    of_layer = {(layer, one): found_by(f".{layer}.{one}") for layer in range(count) for one in modules}
    choices: list[tuple[int, range, bool]] = [(0, range(0), False)]  # number, layers, whether with `use_llama_pro`
    choices += [(number, range(count - number, count), False) for number in range(1, count + 1)]
    choices += [(-number, range(number), False) for number in range(count - 1, 0, -1)]
    strides = {number: count // number for number in range(2, count) if count % number == 0}
    choices += [(number, range(stride - 1, count, stride), True) for number, stride in strides.items()]
    best: set[str] = set()
    for number, layers, pro in choices:
        names_of = {module: set[str]().union(*(of_layer[layer, module] for layer in layers)) for module in modules}
        kept = {module: names for module, names in names_of.items() if names and names <= wanted}
        if bool(layers) != bool(kept):  # without modules the layers would have to be "all"
            continue
        trained = set[str]().union(*kept.values(), *extra.values())
        if trained == wanted:
            settings = {
                "finetuning_type": "freeze", "freeze_trainable_layers": number,
                "freeze_trainable_modules": ",".join(kept) or "all",
                **({"freeze_extra_modules": ",".join(extra)} if extra else {}),
                **({"use_llama_pro": True} if pro else {}),
            }  # fmt: skip
            return core.as_yaml("LLaMA-Factory", settings, "Merge it into your configuration.")
        best = max(best, trained, key=len)
    raise ExportError(
        f"LLaMA-Factory cannot train exactly this core set: it trains whole modules ({', '.join(modules)}) of the "
        "first n layers, of the last n, or of n at equal distances, and modules outside the layers "
        f"({', '.join(outside)}); axolotl, ms-swift and trl can be given lists or patterns. Not to be said without "
        "training others:\n" + listing(sorted(wanted - best, key=natural_key))
    )


# ---- peft


def write_peft(core: CoreSet, model: PreTrainedModel, rank: int = 8, alpha: float = 16.0) -> str:
    """A Python file that defines `config`, a `LoraConfig` with `r` and `lora_alpha`.

    The model is that of the core set, on the meta device; it is not changed. An ExportError names all parts of tensors
    that are core, and all other tensors that peft would train."""
    import torch
    from transformers.pytorch_utils import Conv1D

    require_whole(core, "peft", "an adapter changes all of a tensor")
    inside = dict(model.named_modules())
    modules, parameters, saved, biases = [], [], [], False
    for name in core.names:
        module, _, kind = name.rpartition(".")
        found = inside[module]
        if isinstance(found, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            modules += [module] if kind == "weight" else []
            biases |= kind != "weight"
        elif len(core.shapes[name]) in (2, 3) and module:
            parameters.append(name)
        elif not any(found.children()) and all(parameter.dim() < 2 for parameter in found.parameters()):
            saved.append(module)
    if not modules and not parameters:
        raise ExportError(
            "LoRA needs a matrix to adapt, and this core set has none; `--to axolotl`, `ms-swift` or `trl` train "
            "tensors themselves"
        )
    # For some mixtures of experts peft takes names of modules for those that they had before transformers 5, and adapts
    # the experts of all layers, or refuses: there weights are named as parameters instead.
    embedding = next(name for name, found in inside.items() if found is model.get_input_embeddings())
    kept = [module for module in modules if module == embedding]
    moved = [f"{module}.weight" for module in modules if module not in kept]
    problems = []
    for targets in ((modules, parameters), (kept, [*parameters, *moved])):
        settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, **_target_modules(targets[0], model, embedding)}
        settings |= {"target_parameters": targets[1]} if targets[1] else {}
        settings |= {"modules_to_save": list(dict.fromkeys(saved))} if saved else {}
        settings |= {"bias": "lora_only" if biases else "none", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        try:
            require_exact(core.names, trained_names(model, settings), "peft")
        except InexactExportError as error:
            problems.append(error)
            continue
        about = f"Adapters of rank {rank} beside matrices; norms, where there are any, train in a copy."
        arguments = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
        return f"{core.header('peft', about)}\nfrom peft import LoraConfig\n\nconfig = LoraConfig(\n{arguments})\n"
    raise ExportError(
        "LoRA cannot train exactly this core set (biases train with all adapted weights or with none, what is no "
        "matrix trains with its whole module); `--to axolotl`, `ms-swift` or `trl` train the tensors themselves: "
        f"{problems[0]}"
    )


def _target_modules(modules: Sequence[str], model: Any, embedding: str) -> dict[str, Any]:
    head = model.get_output_embeddings()
    if embedding in modules and head is not None and head.weight is model.get_input_embeddings().weight:
        # Of an expression peft does not see that it means the embedding.
        return {"target_modules": list(modules), "ensure_weight_tying": True}
    return {"target_modules": exact_pattern(modules) if modules else []}


def trained_names(model: PreTrainedModel, settings: Mapping[str, Any]) -> set[str]:
    """The model's own names of what peft trains or adapts with these settings; an InexactExportError if it refuses."""
    from peft import LoraConfig, get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fan_in_fan_out, which it sets itself
            wrapped: Any = get_peft_model(copy.deepcopy(model), LoraConfig(**settings), low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InexactExportError(f"peft refuses these settings for the core set: {error}\n  {settings}") from error
    adapted: nn.Module = wrapped.base_model.model
    return {_own_name(adapted, name) for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def _own_name(model: nn.Module, name: str) -> str:
    """The model's name of what a trained tensor is, or what the adapter that it belongs to changes."""
    if found := re.match(r"(.+?)\.lora_(?:embedding_)?[AB]\.", name):
        name = f"{found[1]}.{getattr(model.get_submodule(found[1]), 'parameter_name', 'weight')}"
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
