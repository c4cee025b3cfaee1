"""`README.md` of what is saved: a model card with where it came from, what was changed, and what was proved.

Reads: what the stages know, the base's own card for its licence, `layer_match.json` beside a core file for the policy.
Gives text with the front matter that the hub reads. What is not known is left out; there is no date and no path, so
that equal runs write equal cards.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
LICENCE = ("license", "license_name", "license_link")
MATCH = "layer_match.json"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})/?$")
# Settings of a training that a reader wants to see, in this order; the others are in `stream.json`.
SHOWN = (
    "method", "epochs", "learning_rate", "learning_rate_of", "schedule", "optimizer", "optimizer_args", "batch_size",
    "max_length", "weight_decay", "no_decay", "warmup", "patience", "keep_best", "precision", "seed",
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
    settings = {name: made.settings[name] for name in SHOWN if made.settings.get(name) is not None}
    if method != "lora":
        settings = {name: value for name, value in settings.items() if not name.startswith("lora")}
    facts = {
        "tasks": list(dict.fromkeys(task for stage in made.stages for task in stage.tasks)),
        "stages": made.stages, "method": method, "origins": made.origins, "settings": settings,
        "proof": made.verification, "undo": shlex.join(stage.patch for stage in made.stages),
        "files": {stage.patch: stage.patch_sha256 for stage in made.stages},
        **_sizes(made.names_sha256, made.shapes),
    }  # fmt: skip
    tags = [TAG, "continual-learning", *(["trace"] if method == "trace" else [])]
    return _card("trained", base, _tuned(base, made.datasets), tags, facts)


def patched_card(state: ModelState) -> dict[str, str]:
    """The card of a model that patches made, or brought back, as a further file of its directory."""
    base, applied = Base.of(state.source), [patch for patch in state.patches if not patch.inverted]
    facts = {
        "tasks": [patch.task for patch in applied or state.patches[::-1]],
        "applied": applied, "patches": state.patches, "num_touched": len(state.patched),
        "undo": shlex.join(patch.path.name for patch in applied),
        "files": {patch.path.name: patch.sha256 for patch in state.patches},
        **_sizes(state.names_sha256, state.shapes),
    }  # fmt: skip
    front = _tuned(base) if applied else _tuned(None)
    return {CARD: _card("patched", base, front, [TAG], facts)}


def cores_card(cores: Sequence[tuple[CoreFile, Path]], source: ModelSource) -> str:
    """The card of core files: which model they are of, how large they are, and how to use them.

    Args:
        source: the model that they are of. Its licence is not theirs, and is not told.
    """
    hub = source.repo if source.directory is None else None
    rows = [(f"`{file.name}`", len(core.core), CoreOrigin.of(core, file).told) for core, file in cores]
    base = Base(source.display_name, hub, source.revision, {})
    front = {"base_model": hub} if hub else {}
    return _card("cores", base, front, [TAG, "core-set"], {"model": cores[0][0].model, "rows": rows})


def _sizes(names_sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "names_sha256": names_sha256, "num_parameters": len(shapes), "num_elements": sum(map(numel, shapes.values())),
    }  # fmt: skip


def _tuned(base: Base | None, datasets: Sequence[str] = ()) -> dict[str, Any]:
    """The front matter of a tuned model; None where it is a base again."""
    known: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base is not None and base.hub:
        known |= {"base_model": base.hub, "base_model_relation": "finetune"}
    if datasets:
        known["datasets"] = list(datasets)
    return {**known, **(base.licence if base is not None else {})}


def _card(kind: str, base: Base, front: Mapping[str, Any], tags: list[str], facts: Mapping[str, Any]) -> str:
    """Front matter and text, read back by the hub's own reader, so that what it cannot read is never written."""
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard.from_template(
        ModelCardData(tags=tags, **front), template_path=str(TEMPLATE), kind=kind, base=base,
        libraries=library_versions(), **facts,
    )  # fmt: skip
    return f"{card}\n"


def _last(name: str) -> str:
    """A model's name without the directories it lies in."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else Path(name).name or name
