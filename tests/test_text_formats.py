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
LADDER = "- &a0 [x]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 99))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"\\ud83d\\ude00"', "😀"),
        ('"12345678901234567890123"', "12345678901234567890123"),
        ("[9223372036854775807, -9223372036854775807, 1e300]", [(1 << 63) - 1, 1 - (1 << 63), 1e300]),
        ('{"x": {"a": 1}, "y": {"a": 1}}', {"x": {"a": 1}, "y": {"a": 1}}),
    ],
)
def test_json_as_it_is(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("data: 2026-02-30", {"data": "2026-02-30"}),
        ("{1: a, yes: b, ~: c}", {"1": "a", "yes": "b", "~": "c"}),
        ("x: &d {a: 1}\ny: {<<: *d, b: 2}", {"x": {"a": 1}, "y": {"a": 1, "b": 2}}),
        ("- &a b\n- *a", ["b", "b"]),
        ("rate: 2e-5", {"rate": 2e-5}),  # as in YAML 1.2, which editors read
        ("[" * 64 + "]" * 64, json.loads("[" * 64 + "]" * 64)),
    ],
)
def test_yaml_as_it_is(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_json, "", "line 1, column 1: it is empty"),
        (parse_json, '{"a": 1,\n "a": 2}', "the key 'a' stands in an object a second time"),
        (parse_json, "[1, NaN]", "NaN is no finite number"),
        (parse_json, "[1e999]", "inf is no finite number"),
        (parse_json, "[" * 100_000, "nested deeper than 64 levels"),
        (parse_json, f"[{'9' * 5000}]", "value has 5000 digits"),
        (parse_json, "9223372036854775808", "9223372036854775808 is too large"),
        (parse_json, '["\\ud800"]', r"half a surrogate pair, '\\ud800'"),
        (parse_json, '{"\\u0000": 1}', "a text with a NUL character"),
        (parse_json, '{"a": 1,}', "line 1, column 9: .*neither comments nor a comma"),
        (parse_yaml, LAUGHS, "its aliases, written out, are more than 1,000,000 entries"),
        (parse_yaml, MERGES, "its aliases, written out, are more than 1,000,000 entries"),
        (parse_yaml, LADDER, "nested deeper than 64 levels"),
        (parse_yaml, "a: 1\nb: {c: 1, c: 2}", "line 2, column 11: the key 'c' stands here a second time"),
        (parse_yaml, "[[1]: 2]", "a list as a key, expected a text"),
        (parse_yaml, "a: !!python/name:os.system x", "line 1, column 4: could not determine a constructor"),
        (parse_yaml, "a: .nan", "nan is no finite number"),
        (parse_yaml, "[" * 10_000, "nested deeper than 64 levels"),
        (parse_yaml, "a: *b", "line 1, column 4: found undefined alias 'b'"),
    ],
)
def test_what_is_refused(parse, text, said):
    start = time.process_time()
    with pytest.raises(MalformedTextError, match=said):
        parse(text)
    assert time.process_time() - start < 5


def test_lines_one_by_one():
    found = list(json_lines('{"a": "\u2028"}\n\n{"a": 1, "a": 2}\n[' + "\n3"))
    assert [number for number, _ in found] == [1, 3, 4, 5]
    assert [value for _, value in found if not isinstance(value, MalformedTextError)] == [{"a": "\u2028"}, 3]


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_that_cannot_be_read(tmp_path, read):
    file = tmp_path / "file"
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ArtefactError, match=r"not UTF-8 text \(byte 3\)"):
        read(file, ArtefactError)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read(file) == read_json_object(file) == {"a": 1}
    os.truncate(file, 5 << 30)  # a hole
    for place, said in ((file, "are the most that is read"), (tmp_path, "Is a dir")):
        with pytest.raises(UserError, match=said):
            read(place)


@pytest.mark.parametrize("header", [b"{", b"[]", b"\xff", b'{"a\\n": {}}'])
def test_a_damaged_tensor_header(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="its safetensors header is damaged"):
        read_tensor_header(file)


def test_an_artefact_without_format_or_of_another_version(tmp_path):
    file = tmp_path / "a.core.json"
    for text, said in (
        ('{"format": []}', "no 'format'"),
        ('{"format": "trace-transfer/core"}', "no 'version', expected 1"),
        ('{"format": "trace-transfer/core", "version": 2}', "version: Input should be 1"),
    ):
        file.write_text(text)
        with pytest.raises(ArtefactError, match=said):
            read_any(file)
