"""A draft written to a file and checked: model and known families → a rules file, and what is left to do in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trace_transfer.errors import RulesError
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.models import ModelSource, load_config
from trace_transfer.rules.checking import PlannedCheck
from trace_transfer.rules.draft_text import GUESS, Draft
from trace_transfer.rules.drafting import draft_family
from trace_transfer.rules.observing import observe
from trace_transfer.rules.registry import FamilyRegistry, load_families
from trace_transfer.rules.tables import display_path


@dataclass(frozen=True)
class WrittenDraft:
    """A draft on disk: what came of checking it, and whether it fits."""

    path: Path
    draft: Draft
    verdict: str
    fits: bool

    @property
    def summary(self) -> str:
        """How much of it is known, guessed and left to do."""
        text = self.path.read_text(encoding="utf-8").splitlines()
        guessed = [number + 1 for number, line in enumerate(text) if GUESS in line]
        where = f" (below lines {', '.join(map(str, guessed))})" if guessed else ""
        num = len(self.draft.lines)
        return (
            f"{display_path(self.path)}: nearest family {self.draft.nearest}; {num} lines, "
            f"{num - len(self.draft.guesses)} as known, {len(self.draft.guesses)} guessed{where}, "
            f"{len(self.draft.todo)} names left to do"
        )


def write_draft(
    model: str, registry: FamilyRegistry, out: Path | None = None, force: bool = False, anyway: bool = False
) -> WrittenDraft:
    """Draft rules for a model (a directory, GGUF file or hub name), write them and check them.

    Args:
        out: the file; None is MODEL_TYPE.yaml in the working directory.
        force: replace it if it exists.
        anyway: draft even if there are rules for the model's `model_type`.

    Raises:
        RulesError: the file exists, or rules for the model do; or the model has no list of layers.
        ModelError: the model has no usable config.
    """
    config = load_config(ModelSource.parse(model))
    kind = config.model_type
    path = out or Path(f"{kind}.yaml")
    known = registry.by_model_type.get(kind)
    if known is not None and not anyway:
        found, fits = _verdict(PlannedCheck(known, model, config))
        where = display_path(known.location.path)
        says = f"{where} has rules for model_type '{kind}' already, and they fit: {found}" if fits else found
        raise RulesError(f"{says}\nNothing is drafted; --anyway drafts all the same")
    if path.exists() and not force:
        raise RulesError(f"{path} exists; name another file with --out, or replace it with --force")
    others = {name: family for name, family in registry.families.items() if family is not known}
    draft = draft_family(observe(config), FamilyRegistry(others, {}))
    prepare_directory(path.parent)
    write_text(path, draft.text)
    return WrittenDraft(path, draft, *_verdict(PlannedCheck(load_families(path).families[kind], model, config)))


def _verdict(check: PlannedCheck) -> tuple[str, bool]:
    try:
        return f"OK {check.run()}", True
    except RulesError as error:
        return str(error), False
