"""`README.md` of what is saved: a model card with where it came from, what was changed, and what was proved.

Reads: what the stages know, the base's own card for its licence, `layer_match.json` beside a core file for the policy.
Gives text with the front matter that the hub reads. What is not known is left out; there is no date and no path, so
that equal runs write equal cards.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.files import sha256_file
from trace_transfer.models.sources import ModelSource, download, numel, superfluous_tensors
from trace_transfer.records import library_versions, read_artefact
from trace_transfer.transfer.records import LayerMatch

if TYPE_CHECKING:
    from trace_transfer.core_sets.core_file import Transfer
    from trace_transfer.patch.model_state import ModelState
    from trace_transfer.patch.records import Verification
    from trace_transfer.training.records import StageRecord

CARD = "README.md"
TAG = "trace-transfer"
PAPER = "[TRACE](https://arxiv.org/abs/2605.31025)"
LICENCE = ("license", "license_name", "license_link")
MATCH = "layer_match.json"
MAX_UNREAD = 5
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})/?$")
# Settings of a training that a reader wants to see, in this order; the others are in `stream.json`.
SHOWN = (
    "method", "epochs", "learning_rate", "batch_size", "max_length", "weight_decay", "warmup", "precision", "seed",
    "save_dtype", "lora_rank", "lora_alpha",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The model that another one was made from, as far as it is known.

    Attributes:
        name: for people; a directory's last part, no path.
        hub: its name on the hub, if it is known to be from there; `commit` its revision there.
        licence: the fields of its own card that say so.
        unread: what its files hold that the model built from its config lacks.
    """

    name: str
    hub: str | None
    commit: str | None
    licence: Mapping[str, str]
    unread: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: ModelSource) -> Base:
        place = source.directory or download(source)
        found = _SNAPSHOT.search(place.absolute().as_posix())
        hub, commit = source.repo if source.directory is None else None, source.revision
        if found is not None:
            hub, commit = hub or found[1].replace("--", "/"), found[2]
        unread = superfluous_tensors(replace(source, directory=place))
        return cls(source.display_name, hub, commit, _licence(place / CARD), unread)

    @property
    def told(self) -> str:
        at = f" at revision `{self.commit}`" if self.commit else ""
        return f"[{self.hub}](https://huggingface.co/{self.hub}){at}" if self.hub else f"`{self.name}`{at}"

    @property
    def left_out(self) -> str:
        """What a proof does not speak of; nothing where that is nothing."""
        if not self.unread:
            return ""
        names = ", ".join(f"`{name}`" for name in self.unread[:MAX_UNREAD])
        more = f" and {len(self.unread) - MAX_UNREAD} more" if len(self.unread) > MAX_UNREAD else ""
        return (
            f"\n\nNot compared, and not in this model: {len(self.unread)} of the base's stored tensors, which are not "
            f"in the model that its config makes ({names}{more})."
        )


def _licence(card: Path) -> dict[str, str]:
    """What a card says of the licence; nothing where there is no card, or none that can be read."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data
    except (ValueError, YAMLError):
        return {}
    return {name: value for name in LICENCE if isinstance(value := getattr(data, name, None), str)}


@dataclass(frozen=True)
class CoreOrigin:
    """Where a core set came from; `policy` is that of the layer match, if that still lies beside the core file."""

    task: str
    score: str
    ratio: float
    unit: str
    tensors: float
    elements: float
    sha256: str
    transfer: Transfer | None = None
    policy: str | None = None

    @classmethod
    def of(cls, core: CoreFile, file: Path) -> CoreOrigin:
        return cls(
            core.task, core.method.name, core.method.ratio, core.method.unit, core.ratio_of_tensors,
            core.ratio_of_elements, sha256_file(file), core.transferred_from, _policy(core, file.parent / MATCH),
        )  # fmt: skip

    @property
    def told(self) -> str:
        came = "made for this base"
        if (transfer := self.transfer) is not None:
            policy = f", layers matched by `{self.policy}`" if self.policy else ""
            came = f"carried over from `{_last(transfer.model.id)}` ({transfer.model.family}; {transfer.carry}{policy})"
        return (
            f"score `{self.score}`, ratio {self.ratio:g} of {self.unit}: {self.tensors:.2%} of the entries, "
            f"{self.elements:.3%} of the elements; {came}"
        )


def _policy(core: CoreFile, match: Path) -> str | None:
    """Of the very match that a core set was carried along."""
    if core.transferred_from is None or not match.is_file():
        return None
    if sha256_file(match) != core.transferred_from.layer_match_sha256:
        return None
    found: LayerMatch = read_artefact(match, LayerMatch)
    return found.policy


@dataclass(frozen=True)
class Trained:
    """What `train` knows of the model that it made.

    Attributes:
        settings: as recorded.
        origins: task → where its core set came from, for methods with core sets.
        datasets: names of the hub's data sets that were trained on.
    """

    base: ModelSource
    names_sha256: str
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]
    stages: Sequence[StageRecord]
    verification: Verification
    origins: Mapping[str, CoreOrigin] = field(default_factory=dict)
    datasets: Sequence[str] = ()


def trained_card(made: Trained) -> str:
    """The card of a stream's last model."""
    base, method = Base.of(made.base), str(made.settings["method"])
    tasks = list(dict.fromkeys(task for stage in made.stages for task in stage.tasks))
    num_elements = sum(map(numel, made.shapes.values()))
    rows = [
        (str(number), f"`{stage.label}`", f"{stage.num_examples:,}", f"{stage.num_steps:,}",
         _of(stage.num_parameters, len(made.shapes)), _of(stage.num_elements, num_elements))
        for number, stage in enumerate(made.stages, start=1)
    ]  # fmt: skip
    trace = f" Of each task only its core set was trained, as {PAPER} does it." if method == "trace" else ""
    settings = {name: made.settings[name] for name in SHOWN if made.settings.get(name) is not None}
    if method != "lora":
        settings = {name: value for name, value in settings.items() if not name.startswith("lora")}
    parts = [
        f"# {base.name}, tuned on {_list(tasks)}",
        f"{base.told}, fine-tuned with trace-transfer, task after task in this order.{trace}"
        if len(made.stages) > 1 else f"{base.told}, fine-tuned with trace-transfer.{trace}",
        _table(("stage", "trained on", "examples", "steps", "parameters", "elements"), rows),
        *_core_sets(made.origins, method),
        "## Training\n\n" + "\n".join(f"- {name.replace('_', ' ')}: {_value(v)}" for name, v in settings.items()),
        "## What was proved\n\n" + _proved(made.verification) + base.left_out,
        _identity(made.names_sha256, [(stage.patch, stage.patch_sha256) for stage in made.stages]),
        _loading(),
        _reverting([stage.patch for stage in made.stages]),
        _versions(),
    ]  # fmt: skip
    tags = [TAG, "continual-learning", *(["trace"] if method == "trace" else [])]
    return _card(parts, _front(base, "finetune", tags, made.datasets))


def patched_card(state: ModelState) -> dict[str, str]:
    """The card of a model that patches made, or brought back, as a further file of its directory."""
    base = Base.of(state.source)
    num_elements = sum(map(numel, state.shapes.values()))
    rows = [
        (str(number), f"`{patch.task}`", "reverted" if patch.inverted else "applied", patch.method,
         _of(len(patch.entries), len(state.shapes)), _of(sum(e.num_elements for e in patch.entries), num_elements))
        for number, patch in enumerate(state.patches, start=1)
    ]  # fmt: skip
    applied = [patch for patch in state.patches if not patch.inverted]
    reverted = [patch for patch in state.patches if patch.inverted]
    verb = "with what these tasks changed" if applied else "without what these tasks had changed"
    mask = reduce(or_, (patch.mask for patch in state.patches))
    parts = [
        f"# {base.name}, {'tuned on' if applied else 'before'} {_list([p.task for p in applied or reverted[::-1]])}",
        f"{base.told}, {verb}; made with trace-transfer by applying or reverting patches, in this order.",
        _table(("", "task", "patch", "method", "parameters", "elements"), rows),
        "## What was proved\n\n"
        "Before the model was written, each patch was found to begin with exactly the values, bit for bit, that were "
        f"there. {_of(len(mask.parts), len(state.shapes))} of the parameters are touched by patches; all others are "
        f"copied as they are stored.{base.left_out}",
        _identity(state.names_sha256, [(_file(patch.path), patch.sha256) for patch in state.patches]),
        _loading(),
        *([_reverting([_file(patch.path) for patch in applied])] if applied else []),
        _versions(),
    ]
    return {CARD: _card(parts, _front(base if applied else None, "finetune", [TAG], ()))}


def cores_card(cores: Sequence[tuple[CoreFile, Path]], source: ModelSource) -> str:
    """The card of core files: which model they are of, how large they are, and how to use them.

    Args:
        source: the model that they are of. Its licence is not theirs, and is not told.
    """
    model, hub = cores[0][0].model, source.repo if source.directory is None else None
    base = Base(source.display_name, hub, source.revision, {})
    rows = [(f"`{file.name}`", str(len(core.core)), CoreOrigin.of(core, file).told) for core, file in cores]
    parts = [
        f"# Core sets of {base.name}",
        f"Which parameters of {base.told} a task needs, as {PAPER} finds them, in files of trace-transfer. They fit "
        f"every model with these names and shapes of parameters: {model.family}, {model.num_layers} layers, "
        f"{model.num_parameters} parameters, `names_sha256` `{model.names_sha256}`.",
        _table(("file", "core entries", "how it was made"), rows),
        "## Use\n\n```\ntrace-transfer inspect TASK.core.json\n"
        "trace-transfer map --src THIS_MODEL --dst ANOTHER --core OWNER/NAME:TASK.core.json --out carried\n"
        "trace-transfer train THIS_MODEL --stream stream.yaml\n```\n\n"
        "`OWNER/NAME` is the name of this repository; `stream.yaml` names a core file for each task.",
        _versions(),
    ]
    data = _data(tags=[TAG, "core-set"], **({"base_model": hub} if hub else {}))
    return _card(parts, data)


def _front(base: Base | None, relation: str, tags: list[str], datasets: Sequence[str]) -> Any:
    known: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    if base is not None and base.hub:
        known |= {"base_model": base.hub, "base_model_relation": relation}
    if base is not None:
        known |= base.licence
    if datasets:
        known["datasets"] = list(datasets)
    return _data(**known)


def _data(**known: Any) -> Any:
    from huggingface_hub import ModelCardData

    return ModelCardData(**known)


def _card(parts: Iterable[str], data: Any) -> str:
    """Front matter and text, read back by the hub's own reader, so that what it cannot read is never written."""
    from huggingface_hub import ModelCard

    text = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def _core_sets(origins: Mapping[str, CoreOrigin], method: str) -> list[str]:
    if not origins:
        return []
    control = "" if method == "trace" else f"What was trained is a control, `{method}`, made from these core sets.\n\n"
    lines = [f"- `{task}`: {origin.told}. Core file: SHA-256 `{origin.sha256}`" for task, origin in origins.items()]
    return [f"## Core sets\n\n{control}" + "\n".join(lines)]


def _proved(found: Verification) -> str:
    counts = found.counts
    lines = [f"| {what} | {count.parameters:,} | {count.elements:,} |" for what, count in counts.items()]
    moved = "nothing outside of what was trained moved" if found.ok else "values moved that were not trained"
    return (
        f"The saved model was compared with its base, bit for bit, parameter by parameter: {moved}.\n\n"
        "| | parameters | elements |\n|---|---|---|\n" + "\n".join(lines)
    )


def _identity(names_sha256: str, files: Sequence[tuple[str, str]]) -> str:
    lines = [f"- names and shapes of all parameters: `names_sha256` `{names_sha256}`"]
    lines += [f"- `{name}`: SHA-256 `{sha256}`" for name, sha256 in files]
    return "## Identity\n\n" + "\n".join(lines)


def _loading() -> str:
    return (
        "## Load\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_MODEL", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_MODEL")\n```'
    )


def _reverting(patches: Sequence[str]) -> str:
    return (
        "## Undo\n\nThe patches hold what was there before. With them the model goes back to the base, bit for bit, or "
        "(with the last ones) to the state after an earlier task:\n\n"
        f"```\ntrace-transfer patch revert THIS_MODEL {shlex.join(patches)} --out before\n```"
    )


def _versions() -> str:
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in library_versions().items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.3%})"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _file(path: Path) -> str:
    return path.name


def _last(name: str) -> str:
    """A model's name without the directories it lies in."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else Path(name).name or name
