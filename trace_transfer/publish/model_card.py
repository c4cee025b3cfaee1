"""`README.md` of what is saved: a model card with where it came from, what was changed, and what was proved.

What is not known is left out; there is no date and no path, so that equal runs write equal cards.
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
from trace_transfer.records import library_versions

if TYPE_CHECKING:
    from trace_transfer.patch.model_state import ModelState
    from trace_transfer.patch.records import Verification
    from trace_transfer.training.settings import StreamFile

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
    """The model that another one was made from, as far as it is known."""

    name: str  # for people; a directory's last part, no path
    hub: str | None  # its name on the hub, if it is known to be from there
    commit: str | None
    licence: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()  # what its files hold that the model built from its config lacks

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

    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
    except (ValueError, YAMLError):
        return {}
    return {name: value for name in LICENCE if isinstance(value := getattr(data, name, None), str)}


@dataclass(frozen=True)
class CoreOrigin:
    """Where a core set came from, and the hash of its file."""

    core: CoreFile
    sha256: str

    @property
    def told(self) -> str:
        core, came = self.core, "made for this base"
        if (transfer := core.transferred_from) is not None:
            name = transfer.model.id if transfer.model.id.count("/") == 1 else Path(transfer.model.id).name
            came = f"carried over from `{name}` ({transfer.model.family}; {transfer.carry})"
        return (
            f"score `{core.method.name}`, ratio {core.method.ratio:g} of {core.method.unit}: "
            f"{core.ratio_of_tensors:.2%} of the entries, {core.ratio_of_elements:.3%} of the parameters; {came}"
        )


def trained_card(
    base_model: ModelSource, shapes: Mapping[str, tuple[int, ...]], stream: StreamFile, proof: Verification,
    origins: Mapping[str, CoreOrigin] | None = None, datasets: Sequence[str] = (),
) -> str:  # fmt: skip
    """The card of a stream's last model; `origins`: task → where its core set came from, for methods with core sets."""
    base, method, names = Base.of(base_model), str(stream.settings["method"]), stream.model.names_sha256
    shown = [name for name in SHOWN if method == "lora" or not name.startswith("lora")]
    settings = {name: value for name in shown if (value := stream.settings.get(name)) is not None}
    facts = {
        "tasks": list(dict.fromkeys(task for stage in stream.stages for task in stage.tasks)),
        "stages": stream.stages, "method": method, "origins": origins or {}, "settings": settings, "proof": proof,
        "undo": shlex.join(stage.patch for stage in stream.stages),
        "files": {stage.patch: stage.patch_sha256 for stage in stream.stages},
    }  # fmt: skip
    tags = [TAG, "continual-learning", *(["trace"] if method == "trace" else [])]
    return _tuned_card("trained", base, tags, names, shapes, facts, datasets)


def patched_card(state: ModelState) -> dict[str, str]:
    """The card of a model that patches made, or brought back, as a further file of its directory."""
    base, applied = Base.of(state.source), [patch for patch in state.patches if not patch.inverted]
    facts = {
        "tasks": [patch.task for patch in applied or state.patches[::-1]],
        "applied": applied, "patches": state.patches, "num_touched": len(state.patched),
        "undo": shlex.join(patch.path.name for patch in applied),
        "files": {patch.path.name: patch.sha256 for patch in state.patches},
    }  # fmt: skip
    return {CARD: _tuned_card("patched", base, [TAG], state.names_sha256, state.shapes, facts, is_base=not applied)}


def cores_card(cores: Sequence[tuple[CoreFile, Path]], source: ModelSource) -> str:
    """The card of core files; the licence of their model is not theirs."""
    hub = source.repo if source.directory is None else None
    rows = [(f"`{file.name}`", len(core.core), CoreOrigin(core, sha256_file(file)).told) for core, file in cores]
    front = {"base_model": hub} if hub else {}
    facts = {"model": cores[0][0].model, "rows": rows}
    return _card("cores", Base(source.display_name, hub, source.revision), front, [TAG, "core-set"], facts)


def _tuned_card(
    kind: str, base: Base, tags: list[str], names_sha256: str, shapes: Mapping[str, tuple[int, ...]],
    facts: Mapping[str, Any], datasets: Sequence[str] = (), is_base: bool = False,
) -> str:  # fmt: skip
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base.hub and not is_base:
        front |= {"base_model": base.hub, "base_model_relation": "finetune"}
    front |= {**({"datasets": list(datasets)} if datasets else {}), **({} if is_base else base.licence)}
    sizes = {"num_parameters": len(shapes), "num_elements": sum(map(numel, shapes.values()))}
    return _card(kind, base, front, tags, {**facts, **sizes, "names_sha256": names_sha256})


def _card(kind: str, base: Base, front: Mapping[str, Any], tags: list[str], facts: Mapping[str, Any]) -> str:
    """Front matter and text, through the hub's own reader, so that what it cannot read is never written."""
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard.from_template(
        ModelCardData(tags=tags, **front), template_path=str(TEMPLATE), kind=kind, base=base,
        libraries=library_versions(), **facts,
    )  # fmt: skip
    return f"{card}\n"
