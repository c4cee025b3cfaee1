"""What JSON and YAML may say here, and each kind of text that is refused: with its line, and at once."""

import json
import os
import time

import pytest

from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.formats import read_any
from trace_transfer.text_formats import (
    MalformedTextError,
    json_lines,
    parse_json,
    parse_yaml,
    read_json,
    read_json_object,
    read_tensor_header,
    read_yaml,
)

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" * 64 + "]" * 64, None),
        ('"\\ud83d\\ude00"', "😀"),
        ('"12345678901234567890123"', "12345678901234567890123"),
        ("[9223372036854775807, -9223372036854775807, 1e300]", [(1 << 63) - 1, 1 - (1 << 63), 1e300]),
        ('{"x": {"a": 1}, "y": {"a": 1}}', {"x": {"a": 1}, "y": {"a": 1}}),
    ],
)
def test_json_as_it_is(text, value):
    assert parse_json(text) == (json.loads(text) if value is None else value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1: it is empty"),
        ('{"a": 1,\n "a": 2}', "line 2, column 2: the key 'a' stands here a second time"),
        ('[{"a": {"b": 1, "\\u0062": 2}}]', "line 1, column 17: the key 'b' stands here a second time"),
        ("[1, NaN]", "line 1, column 5: NaN is no finite number"),
        ("[1e999]", "line 1, column 2: 1e999 is no finite number"),
        ("[" * 100_000, "line 1, column 65: nested deeper than 64 levels"),
        (f"[{'9' * 5000}]", "a number of 5000 digits is too large"),
        ("9223372036854775808", "9223372036854775808 is too large"),
        ('["\\ud800"]', r"half a surrogate pair, \\ud800"),
        ('{"\\u0000": 1}', "a text with a NUL character"),
        ('{"a": 1,}', "neither comments nor a comma"),
    ],
)
def test_json_that_is_refused(text, said):
    start = time.perf_counter()
    with pytest.raises(MalformedTextError, match=said):
        parse_json(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("data: 2026-02-30", {"data": "2026-02-30"}),
        ("{1: a, yes: b, ~: c}", {"1": "a", "yes": "b", "~": "c"}),
        ("x: &d {a: 1}\ny: {<<: *d, b: 2}", {"x": {"a": 1}, "y": {"a": 1, "b": 2}}),
        ("- &a b\n- *a", ["b", "b"]),
    ],
)
def test_yaml_as_it_is(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "its aliases, written out, are more than 1,000,000 entries"),
        (MERGES, "its aliases, written out, are more than 1,000,000 entries"),
        ("a: &x [*x]", "an alias stands within what it is an alias of"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: the key 'c' stands here a second time"),
        ("[[1]: 2]", "a list as a key, expected a text"),
        ("a: !!timestamp 2026-02-30", "the tag !!timestamp cannot stand here"),
        ("a: !!python/name:os.system x", "the tag !!python/name:os.system cannot stand here"),
        ("a: !!map x", "the tag !!map does not fit what it stands at"),
        ("a: .nan", ".nan is no finite number"),
        (f"a: {'9' * 5000}", "a number of 5000 digits is too large"),
        ('a: "\\0"', "a text with a NUL character"),
        ('a: "\\ud800"', r"half a surrogate pair, \\ud800"),
        ("[" * 10_000, "nested deeper than 64 levels"),
        ("a:\n  - \x01", r"line 2, column 5: the character '\\x01' cannot stand in YAML"),
        ("a: *b", "found undefined alias 'b'"),
    ],
)
def test_yaml_that_is_refused(text, said):
    start = time.perf_counter()
    with pytest.raises(MalformedTextError, match=said):
        parse_yaml(text)
    assert time.perf_counter() - start < 5


def test_lines_one_by_one():
    found = list(json_lines('{"a": "\u2028"}\n\n{"a": 1, "a": 2}\n[' + "\n3"))
    assert [number for number, _ in found] == [1, 3, 4, 5]
    assert [value for _, value in found if not isinstance(value, MalformedTextError)] == [{"a": "\u2028"}, 3]


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("{}".encode("utf-16"), "it looks like UTF-16; save it as UTF-8"),
        (b"{}\x00", r"binary \(a NUL byte at 2\)"),
    ],
)
def test_files_that_are_no_text(tmp_path, read, content, said):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=said):
        read(file, ArtefactError)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file(tmp_path, read):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(UserError, match="it is a pipe or a device"):
        read(type(tmp_path)("/dev/zero"))
    with pytest.raises(UserError, match="embedded null byte"):
        read(tmp_path / "a\0b")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 5 << 30)  # a hole
    with pytest.raises(UserError, match="are the most that is read"):
        read(tmp_path / "large")


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(file) == read_yaml(file) == {"a": 1}


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"\xff",
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
    ],
)  # fmt: skip
def test_a_damaged_tensor_header(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="its safetensors header is damaged"):
        read_tensor_header(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": []}', "no 'format'"),
        ('{"format": {"a": 1}}', "format {'a': 1}, expected"),
        ('{"format": "trace-transfer/core"}', "no 'version', expected 1"),
        ('{"format": "trace-transfer/core", "version": true}', "version True, expected 1"),
        ('{"format": "trace-transfer/core", "version": 2}', "version: Input should be 1"),
    ],
)
def test_an_artefact_without_format_or_version(tmp_path, text, said):
    file = tmp_path / "a.core.json"
    file.write_text(text)
    with pytest.raises(ArtefactError, match=said):
        read_any(file)
