"""Patches on disk: what they say of themselves, what is refused, and that nothing is by halves."""

import json
import weakref

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.killed_writes import killed_at_each_operation
from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.errors import ArtefactError, NumericalError
from trace_transfer.patch.model_state import record_patch
from trace_transfer.patch.patches import Patch, PatchEntry, write_patch

SUM = "0" * 64
ENTRIES = (
    PatchEntry("b.weight", (4, 6), Slice(1, ((0, 2), (5, 6))), torch.bfloat16, torch.float32),
    PatchEntry("a.weight", (4, 6), Slice(0, ((1, 2), (3, 4))), torch.float32, torch.float32),
    PatchEntry("c.bias", (3,), None, torch.float16, torch.float16),
    PatchEntry("d.weight", (40, 6), Chosen(np.array([0, 7, 8, 239])), torch.float32, torch.bfloat16),  # places
    PatchEntry("e.weight", (2, 3), Chosen(np.array([1, 4])), torch.float32, torch.float32),  # a bitmap
    PatchEntry("f.experts", (2, 3, 8), Slice(2, ((0, 1), (4, 6))), torch.float32, torch.float32),
)


def values_of(entries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for entry in entries:
        draw = [torch.randn(entry.part_shape, generator=generator) for _ in range(2)]
        yield entry, draw[0].to(entry.before_dtype), draw[1].to(entry.after_dtype)


def write(path, entries=ENTRIES, values=None, **changes):
    given = {"task": "math", "method": "trace", "names_sha256": SUM, **changes}
    return write_patch(path, entries=entries, values=values_of(entries) if values is None else values, **given)


def test_what_was_written_is_read(tmp_path):
    patch = write(tmp_path / "math.patch.safetensors")
    assert (patch.task, patch.method, patch.names_sha256) == ("math", "trace", SUM)
    assert patch.entries == tuple(sorted(ENTRIES, key=lambda entry: entry.name))
    turned = write(tmp_path / "turned", ENTRIES[::-1], list(values_of(ENTRIES))[::-1])
    assert turned.path.read_bytes() == patch.path.read_bytes()
    back = patch.inverse
    assert back.inverse == patch
    assert dict(patch.mask.parts) == {entry.name: entry.part for entry in ENTRIES}
    assert [entry.num_elements for entry in patch.entries] == [12, 12, 3, 4, 2, 18]
    for entry, before, after in values_of(ENTRIES):
        assert torch.equal(patch.before(entry.name), before) and torch.equal(patch.after(entry.name), after)
        assert torch.equal(back.before(entry.name), after) and torch.equal(back.after(entry.name), before)
        assert (patch.before(entry.name).dtype, back.before(entry.name).dtype) == (before.dtype, after.dtype)
        assert torch.equal(torch.cat(list(patch.blocks(entry.name, "after"))), after)


def test_the_file_as_others_see_it(tmp_path):
    write(tmp_path / "f")
    with safe_open(tmp_path / "f", framework="pt") as opened:
        metadata = opened.metadata()
    assert {key: metadata[key] for key in ("format", "version", "task", "method")} == {
        "format": "trace-transfer/patch", "version": "1", "task": "math", "method": "trace"
    }  # fmt: skip
    assert json.loads(metadata["parameters"]) == [
        {"name": "a.weight", "shape": [4, 6], "rows": [[1, 2], [3, 4]]},
        {"name": "b.weight", "shape": [4, 6], "columns": [[0, 2], [5, 6]]},
        {"name": "c.bias", "shape": [3]},
        {"name": "d.weight", "shape": [40, 6], "chosen": 4},
        {"name": "e.weight", "shape": [2, 3], "chosen": 2},
        {"name": "f.experts", "shape": [2, 3, 8], "depth": [[0, 1], [4, 6]]},
    ]
    tensors = load_file(tmp_path / "f")
    assert tensors["chosen/d.weight"].tolist() == [0, 7, 8, 239] and tensors["chosen/e.weight"].tolist() == [0b10010]


def damaged(path, change):
    """A patch with other metadata or tensors."""
    write(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return path


def changed_parameters(change):
    def apply(metadata, tensors):
        parameters = json.loads(metadata["parameters"])
        change(parameters)
        metadata["parameters"] = json.dumps(parameters)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.update(format="pt"), r"- format: Input should be"),
        (lambda m, t: (m.pop("task"), m.update(version="2")), r"- version: .*- task: Field"),
        (lambda m, t: t.pop("after/c.bias"), r"1 things do not fit its metadata:\n  - after/c.bias: missing"),
        (lambda m, t: t.update({"after/d": torch.zeros(1)}), r"- after/d: not in its metadata"),
        (lambda m, t: t.update({"after/c.bias": torch.zeros(4)}), r"- after/c.bias: shape \[4\], expected \[3\]"),
        (changed_parameters(lambda p: p[0].update(rows=[[3, 4], [1, 2]])), r"rows .*expected ranges in order"),
        (changed_parameters(lambda p: p[0].update(rows=[[0, 1]])), r"after/a.weight: shape \[2, 6\], .* \[1, 6\]"),
        (changed_parameters(lambda p: p[3].update(chosen=3)), r"chosen/d.weight: 4 parameters, expected 3"),
    ],
)
def test_what_is_no_patch(tmp_path, change, message):
    path = damaged(tmp_path / "f", change)
    with pytest.raises(ArtefactError, match=rf"(?s)f: .*{message}"):
        Patch.open(path)


def test_a_patch_cut_anywhere_is_refused(tmp_path):
    data = write(tmp_path / "f").path.read_bytes()
    for keep in (0, 7, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "f").write_bytes(data[:keep])
        with pytest.raises(ArtefactError, match=r"f: not a safetensors file, or cut short or damaged"):
            Patch.open(tmp_path / "f")
    with pytest.raises(ArtefactError, match=r"g: cannot be read: "):
        Patch.open(tmp_path / "g")


def test_a_kill_before_any_operation_leaves_no_patch_by_halves(tmp_path):
    expected = write(tmp_path / "expected").path.read_bytes()
    place = tmp_path / "place"
    place.mkdir()
    kills = 0
    for kills in killed_at_each_operation(lambda: write(place / "f"), place):  # noqa: B007 (used below)
        assert not (place / "f").exists() or (place / "f").read_bytes() == expected
        (place / "f").unlink(missing_ok=True)
    assert kills >= 4
    assert (place / "f").read_bytes() == expected


def test_values_are_written_before_the_next_ones_are_made(tmp_path):
    """A patch of a whole model is never in memory."""
    references = []

    def values():
        for entry in ENTRIES:
            assert all(reference() is None for reference in references)
            made = [torch.zeros(entry.part_shape, dtype=dtype) for dtype in (entry.before_dtype, entry.after_dtype)]
            references.extend(weakref.ref(tensor) for tensor in made)
            yield entry, made.pop(0), made.pop()

    write(tmp_path / "f", values=values())
    assert len(references) == 2 * len(ENTRIES)


def test_recorded_from_what_was_trained(tiny, tmp_path):
    state = state_of(tiny("llama", dtype=torch.bfloat16))
    mask = mask_of(state)
    assert {part.dim for part in mask.sliced.values()} == {0, 1} and len(mask.sliced) < len(mask.parts)
    stored = make_patch(state, tmp_path / "stored", mask, 1)
    wide = make_patch(state, tmp_path / "wide", mask, 1, save_dtype="float32")
    assert stored.mask.parts == wide.mask.parts == mask.parts
    for entry in stored.entries:
        before = entry.part_of(state.value(entry.name))
        assert torch.equal(stored.before(entry.name), before) and torch.equal(wide.before(entry.name), before)
        assert torch.equal(wide.after(entry.name).bfloat16(), stored.after(entry.name))
        assert wide.after(entry.name).dtype == torch.float32
        assert not torch.equal(stored.after(entry.name), before)


def test_a_type_that_does_not_hold_what_was_trained(tiny, tmp_path):
    state = state_of(tiny("llama", dtype=torch.float16))
    value = {"model.norm.weight": torch.full((48,), 1e6)}
    mask = Mask({"model.norm.weight": None})
    with pytest.raises(NumericalError, match=r"model.norm.weight: .* up to 1e\+06 do not fit float16, .* in float32"):
        record_patch(tmp_path / "f", state, mask, value.items(), task="math", method="trace")
    assert list(tmp_path.iterdir()) == []
    record_patch(tmp_path / "f", state, mask, value.items(), task="math", method="trace", save_dtype="float32")
