"""Lists of tensors that other programs train or score, as core files; those of the authors' scripts are written, too.

Reads: an Axolotl configuration, what Spectrum wrote or a list of the authors' scripts; a model's config.

The authors' lists are JSON of three forms: `lf` (combined_score and its terms), `cs` (specificity_score) and the `l2`
that their script falls back to (delta). A full list ranks every tensor of a model, a selected one holds only the core
set. Their specificity_score is the mean *cosine*, low for what is specific: our score is 1 − it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from trace_transfer.core_sets.core_file import EXCLUDED, CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Slice
from trace_transfer.core_sets.trainer_settings import CoreSet, mask_of_patterns, read_patterns
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import Ranges
from trace_transfer.records import checked, library_versions, require_task
from trace_transfer.text_formats import kind_of, read_json

LF_TERMS = ("l2_delta", "fisher_info", "l2_norm_score", "fisher_norm_score")
# Method → the field of its score, and the fields of its terms.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lf": ("combined_score", LF_TERMS),
    "cs": ("specificity_score", ()),
    "l2": ("delta", ()),
}

# One entry: its name, its score (larger is more important, whatever the list has), and terms as the methods name them.
Entry = tuple[str, float, dict[str, float]]


def read_authors_list(path: Path | str) -> tuple[str, list[Entry]]:
    """Read a list: its method and its entries, best first; an ArtefactError names all values that are wrong."""
    file = Path(path)
    rows = read_json(file, ArtefactError)
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    methods = [method for method, (score_key, _) in FORMS.items() if score_key in first]
    if len(methods) != 1:
        raise ArtefactError(
            f"{file}: expected a JSON list of a task's tensors, each with one of "
            f"{', '.join(key for key, _ in FORMS.values())}; found {', '.join(first) or kind_of(rows)}"
        )
    score_key, term_keys = FORMS[methods[0]]
    number: Any = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    fields: Any = dict.fromkeys((score_key, *term_keys), number)
    fields |= {"parameter": Annotated[str, Field(min_length=1)], "rank": Annotated[int, Field(ge=1, strict=True)]}
    kind: Any = list[create_model("Row", **fields)]  # type: ignore[misc]
    entries = []
    for row in sorted(checked(file, rows, kind, ArtefactError), key=lambda row: row.rank):
        value = float(getattr(row, score_key))
        terms = {key: float(getattr(row, key)) for key in term_keys}
        if methods[0] == "cs":
            entries.append((row.parameter, 1.0 - value, {"mean_cosine": value}))
        else:
            entries.append((row.parameter, value, terms or {"l2_delta": value}))
    return methods[0], entries


def core_tensors(entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> tuple[CoreTensor, ...]:
    """All tensors of a model: those listed first, core, with their scores."""
    lost = [name for name, *_ in entries if name not in shapes]
    _refuse("the list is of another model", [f"{name}: no such parameter" for name in lost])
    listed = {
        name: CoreTensor(name=name, shape=shapes[name], score=score, terms=terms, core=True)
        for name, score, terms in entries
    }
    return (*listed.values(), *(CoreTensor(name=name, shape=shapes[name]) for name in shapes if name not in listed))


def write_authors_list(core_set: CoreSet) -> str:
    """The text of the authors' list of a core set of whole tensors whose scores they have a form for."""
    if len(core_set.cores) > 1:
        raise ArtefactError(f"a list of the authors' form is of one task; {len(core_set.cores)} core files were given")
    core = core_set.cores[0]
    method, where = core.method.name, f"core file of {core.task}"
    if method not in FORMS:
        raise ArtefactError(f"scores of method '{method}': the authors' list has forms for {', '.join(FORMS)} only")
    score_key, term_keys = FORMS[method]
    parts = dict.fromkeys(p.name for p in core.core if any(p.place[1:]))
    _refuse(f"{where}: the authors' list names whole tensors, not parts", list(parts))
    lacking = {p.name: [key for key in term_keys if key not in (p.terms or {})] for p in core.core}
    problems = [f"{name}: no {', '.join(missing)}" for name, missing in lacking.items() if missing]
    _refuse(f"{where}: the terms of its scores were not kept; score again, with alpha below 1", problems)
    rows = []
    scored = [(tensor.score, tensor) for tensor in core.core if tensor.score is not None]
    for rank, (score, tensor) in enumerate(sorted(scored, key=lambda one: -one[0]), 1):
        terms = tensor.terms or {}
        row = {"parameter": tensor.name, score_key: score, **{key: terms[key] for key in term_keys}, "rank": rank}
        if method == "cs":
            row = {"parameter": tensor.name, "rank": rank, score_key: terms.get("mean_cosine", 1.0 - score)}
        rows.append(row)
    return json.dumps(rows, indent=4) + "\n"


def _refuse(where: Path | str, problems: Sequence[str]) -> None:
    if problems:
        raise ArtefactError(f"{where}:\n" + listing(problems))


# ---- core files


def import_list(file: Path, model: str | Path, task: str, rules: Sequence[str] = ()) -> CoreFile:
    """A core file from a list of the authors' scripts: all that is listed is core; `select` takes the best of it."""
    require_task(task)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    method, listed = read_authors_list(file)
    tensors = tuple(
        tensor.model_copy(update=_what(opened.anatomy, tensor.name, None)) for tensor in core_tensors(listed, shapes)
    )
    return _core_file(opened, task, tensors, file, name=method, ratio=len(listed) / len(shapes), unit="tensors")


def import_patterns(
    file: Path, model: str | Path, task: str, rules: Sequence[str] = (), made_by: str = "axolotl"
) -> CoreFile:
    """A core file from `unfrozen_parameters`, read as Axolotl reads them; `made_by` is recorded.

    What trains is core, with a score of 1; the rest has none, since the list does not rank it. Where rows of a tensor
    train, its other rows are an entry of their own."""
    require_task(task)
    patterns = read_patterns(file)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    mask = mask_of_patterns(patterns, shapes, opened.anatomy.inventory.tied)
    chosen, left = [], []
    for name, shape in shapes.items():
        part = mask.parts.get(name)
        rows = part.ranges if isinstance(part, Slice) else None
        if mask.trains(name):
            what = _what(opened.anatomy, name, rows)
            chosen.append(CoreTensor(name=name, shape=shape, rows=rows, score=1.0, core=True, **what))
        if rows or not mask.trains(name):
            bounds = [0, *(bound for one in rows or () for bound in one), shape[0]]
            others = rows and tuple(one for one in pairwise(bounds) if one not in rows and one[0] < one[1])
            left.append(CoreTensor(name=name, shape=shape, rows=others, **_what(opened.anatomy, name, others)))
    share = mask.numel(shapes) / opened.anatomy.inventory.num_elements if mask.sliced else len(chosen) / len(shapes)
    unit = "rows" if mask.sliced else "tensors"
    return _core_file(opened, task, [*chosen, *left], file, name="imported", ratio=share, unit=unit, made_by=made_by)


def _core_file(model: OpenModel, task: str, tensors: Sequence[CoreTensor], file: Path, **method: Any) -> CoreFile:
    return CoreFile(
        task=task, model=model.identity, method={**method, "imported_from": file.name},
        parameters=tensors, libraries=library_versions(),
    )  # fmt: skip


def _what(anatomy: Anatomy, name: str, rows: Ranges | None) -> dict[str, Any]:
    """Component and layer of a tensor, or of some rows of it."""

    units = [
        unit
        for unit in anatomy.units_of(name)
        if rows is None or unit.dim != 0 or any(a < d and c < b for a, b in unit.ranges or () for c, d in rows)
    ]
    component = "+".join(dict.fromkeys(unit.component for unit in units)) or EXCLUDED
    return {"component": component, "layer": units[0].layer if units else None}
