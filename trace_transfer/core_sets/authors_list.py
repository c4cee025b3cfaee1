"""Lists of scored tensors as the authors' scripts write them: JSON, read into our terms and written from them.

Three forms: `lf` (combined_score and its terms), `cs` (specificity_score) and the `l2` that their script falls back to
(delta). A full list ranks every tensor of a model, a selected one holds only the core set; they look alike, so the
number of names decides. Their specificity_score is the mean *cosine*, low for what is specific: our score is 1 − it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, create_model

from trace_transfer.core_sets.core_file import CoreTensor
from trace_transfer.core_sets.trainer_settings import CoreSet
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.records import checked
from trace_transfer.text_formats import kind_of, read_json

LF_TERMS = ("l2_delta", "fisher_info", "l2_norm_score", "fisher_norm_score")
# Method → the field of its score, and the fields of its terms.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lf": ("combined_score", LF_TERMS),
    "cs": ("specificity_score", ()),
    "l2": ("delta", ()),
}


class ListedTensor(NamedTuple):
    """One entry: larger scores are more important, whatever the list has; terms as the scoring methods name them."""

    name: str
    score: float
    terms: dict[str, float]


def read_authors_list(path: Path | str) -> tuple[str, list[ListedTensor]]:
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
            entries.append(ListedTensor(row.parameter, 1.0 - value, {"mean_cosine": value}))
        else:
            entries.append(ListedTensor(row.parameter, value, terms or {"l2_delta": value}))
    counts = Counter(entry.name for entry in entries)
    _refuse(file, [f"parameter {name} is listed {count} times" for name, count in counts.items() if count > 1])
    return methods[0], entries


def core_tensors(
    entries: Sequence[ListedTensor], shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str] | None = None
) -> tuple[CoreTensor, ...]:
    """All tensors of a model, those listed first and with their scores.

    Fewer names than the model has are a selected list: all of them are core. Of a full list none is; it has yet to be
    selected from.

    Raises:
        ArtefactError: a list with names that the model lacks; all are named, of an alias of a tied tensor its owner.
    """
    lost = [entry.name for entry in entries if entry.name not in shapes]
    owners = {name: f"tied to {owner}; name that" for name, owner in (tied or {}).items()}
    _refuse("the list is of another model", [f"{name}: {owners.get(name, 'no such parameter')}" for name in lost])
    selected = len(entries) < len(shapes)
    listed = {
        e.name: CoreTensor(name=e.name, shape=shapes[e.name], score=e.score, terms=e.terms or None, core=selected)
        for e in entries
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
