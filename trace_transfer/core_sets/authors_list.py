"""Lists of scored tensors as the authors' scripts write them: JSON, read into our terms and written from them.

Three forms: `lf` (combined_score and its terms), `cs` (specificity_score) and the `l2` that their script falls back to
(delta). A full list ranks every tensor of a model, a selected one holds only the core set; they look alike, so the
number of names decides. Their specificity_score is the mean *cosine*, low for what is specific: our score is 1 − it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError, create_model

from trace_transfer.core_sets.core_file import CoreTensor
from trace_transfer.core_sets.core_set import CoreSet
from trace_transfer.errors import ArtefactError, listing
from trace_transfer.text_formats import kind_of, read_json

LF_TERMS = ("l2_delta", "fisher_info", "l2_norm_score", "fisher_norm_score")
# Method → the field of its score, and the fields of its terms.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lf": ("combined_score", LF_TERMS),
    "cs": ("specificity_score", ()),
    "l2": ("delta", ()),
}


def _rows_of(score_key: str, term_keys: tuple[str, ...]) -> TypeAdapter[Any]:
    number: Any = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    fields: dict[str, Any] = dict.fromkeys((score_key, *term_keys), number)
    fields |= {"parameter": Annotated[str, Field(min_length=1)], "rank": Annotated[int, Field(ge=1, strict=True)]}
    row: Any = create_model("Row", **fields)
    return TypeAdapter(list[row])


ROWS = {method: _rows_of(*keys) for method, keys in FORMS.items()}


class ListedTensor(NamedTuple):
    """One entry: larger scores are more important, whatever the list has; terms as the scoring methods name them."""

    name: str
    score: float
    terms: dict[str, float]


def read_authors_list(path: Path | str) -> tuple[str, list[ListedTensor]]:
    """Read a list: its method and its entries, best first.

    Raises:
        ArtefactError: not there, not a JSON list of one of the three forms, or with missing, repeated, non-finite or
            contradictory values; all of one kind are named.
    """
    file = Path(path)
    rows = read_json(file, ArtefactError)
    if not isinstance(rows, list):
        raise ArtefactError(f"{file}: expected a JSON list of tensors, found {kind_of(rows)}")
    if not rows:
        raise ArtefactError(f"{file}: the list is empty")
    method = _method_of(file, rows[0] if isinstance(rows[0], dict) else {})
    score_key, _ = FORMS[method]
    try:
        ROWS[method].validate_python(rows)
    except ValidationError as error:
        _refuse(file, [_problem(one) for one in error.errors()])
    _refuse(file, _repeated(rows, "parameter") + _repeated(rows, "rank"))
    entries = [_entry(row, method) for row in sorted(rows, key=lambda row: row["rank"])]
    for better, worse in pairwise(entries):
        if better.score < worse.score:
            order = "rising" if method == "cs" else "falling"
            raise ArtefactError(
                f"{file}: {better.name} has the better rank, but {worse.name} the better {score_key}; expected "
                f"{order} scores"
            )
    return method, entries


def core_tensors(
    entries: Sequence[ListedTensor], shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, str] | None = None
) -> tuple[CoreTensor, ...]:
    """All tensors of a model, those listed first and with their scores.

    Fewer names than the model has are a selected list: all of them are core. Of a full list none is; it has yet to be
    selected from.

    Args:
        shapes: the model's tensors in model order.
        told: what is known of names that are none of them.

    Raises:
        ArtefactError: a list with names that the model lacks; all are named.
    """
    lost = [entry.name for entry in entries if entry.name not in shapes]
    _refuse("the list is of another model", [f"{name}: {(told or {}).get(name, 'no such parameter')}" for name in lost])
    selected = len(entries) < len(shapes)
    listed = [
        CoreTensor(name=e.name, shape=shapes[e.name], score=e.score, terms=e.terms or None, core=selected)
        for e in entries
    ]
    known = {e.name for e in entries}
    return (*listed, *(CoreTensor(name=name, shape=shape) for name, shape in shapes.items() if name not in known))


def write_authors_list(core_set: CoreSet) -> str:
    """The text of the authors' list of a core set.

    Raises:
        ArtefactError: several core files, a method that the list has no form for, a core file that lacks the terms of
            its scores, or parts of tensors, which the list cannot name.
    """
    if len(core_set.cores) > 1:
        raise ArtefactError(f"a list of the authors' form is of one task; {len(core_set.cores)} core files were given")
    core = core_set.cores[0]
    method = core.method.name
    if method not in FORMS:
        raise ArtefactError(f"scores of method '{method}': the authors' list has forms for {', '.join(FORMS)} only")
    scored = [(p.score, p) for p in core.core if p.score is not None]
    listed = [p for _, p in scored]
    where = f"core file of {core.task}"
    parts = [p.name for p in listed if p.rows or p.columns or p.depth]
    _refuse(f"{where}: the authors' list names whole tensors, not parts", list(dict.fromkeys(parts)))
    _, term_keys = FORMS[method]
    lacking = [
        f"{p.name}: no {', '.join(missing)}"
        for p in listed
        if (missing := [k for k in term_keys if k not in _terms(p)])
    ]
    _refuse(f"{where}: the terms of its scores were not kept; score again, with alpha below 1", lacking)
    ranked = sorted(scored, key=lambda one: -one[0])
    rows = [_row(p, score, method, rank) for rank, (score, p) in enumerate(ranked, 1)]
    return json.dumps(rows, indent=4) + "\n"


def _method_of(file: Path, first: Mapping[str, Any]) -> str:
    """The form of the first entry; all others are held to it."""
    found = [method for method, (score_key, _) in FORMS.items() if score_key in first]
    if len(found) == 1:
        return found[0]
    expected = " or ".join(score_key for score_key, _ in FORMS.values())
    tasks = [key for key in first if key.endswith("_specificity_score")]
    if tasks:
        raise ArtefactError(
            f"{file}: the list of all tasks ({', '.join(tasks)}); give a task's own list, with {expected}"
        )
    raise ArtefactError(f"{file}: its first entry has {', '.join(first) or 'no fields'}, expected one of {expected}")


def _problem(error: Any) -> str:
    number, *key = error["loc"]
    if not key:
        return f"entry {number + 1}: not an object, but {error['input']!r:.40}"
    if error["type"] == "missing":
        return f"entry {number + 1}: no {key[0]}"
    return f"entry {number + 1}: {key[0]} is {error['input']!r:.40}: {error['msg']}"


def _repeated(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    counts = Counter(row[key] for row in rows)
    return [f"{key} {value} is listed {count} times" for value, count in counts.items() if count > 1]


def _refuse(where: Path | str, problems: Sequence[str]) -> None:
    if problems:
        raise ArtefactError(f"{where}:\n" + listing(problems))


def _entry(row: Mapping[str, Any], method: str) -> ListedTensor:
    score_key, term_keys = FORMS[method]
    value = float(row[score_key])
    if method == "cs":
        return ListedTensor(row["parameter"], 1.0 - value, {"mean_cosine": value})
    terms = {key: float(row[key]) for key in term_keys} if method == "lf" else {"l2_delta": value}
    return ListedTensor(row["parameter"], value, terms)


def _row(tensor: CoreTensor, score: float, method: str, rank: int) -> dict[str, Any]:
    score_key, term_keys = FORMS[method]
    terms = _terms(tensor)
    if method == "cs":
        return {"parameter": tensor.name, "rank": rank, score_key: terms.get("mean_cosine", 1.0 - score)}
    return {"parameter": tensor.name, score_key: score, **{key: terms[key] for key in term_keys}, "rank": rank}


def _terms(tensor: CoreTensor) -> dict[str, float]:
    return tensor.terms or {}
