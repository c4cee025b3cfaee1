"""Files as a careless hand, a failing disk or a hostile mind leaves them: what one seed makes of a file's bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

Place = tuple[Any, Any]  # a dict or a list, and a key or a number in it

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e308, -0.0, 2**40, 2**63 - 1, 10**30, float("nan"), float("inf"), "", " ",
    "1", "x", "x" * 5000, "../../x", "/dev/null", "a\nb", "\x1b[31m\u202e[bold]{}", "\x00", "\ud800", "{0}", "%s",
    "null", [], {}, [[]], [None], {"": 1}, {"name": "x"}, [{"name": "x"}], [[[[[[[[1]]]]]]]], ["x", "x"],
)  # fmt: skip


def mutated(content: bytes, form: str, seed: int) -> bytes:
    """A file's bytes, changed in one way or two; the same for the same seed.

    Args:
        form: `json`, `yaml`, `safetensors`, or `text` for what is changed byte by byte alone.
    """
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2))):
        if form == "text" or rng.random() < 0.25:
            content = rng.choice(BYTES)(content, rng)
        else:
            content = _of_values(content, form, rng)
    return content


def _of_values(content: bytes, form: str, rng: random.Random) -> bytes:
    try:
        head, value = _parsed(content, form)
    except (ValueError, RecursionError):  # a byte of it was changed before
        return content
    value = _changed(value, rng)
    if form == "yaml":
        try:
            return yaml.dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
        except yaml.YAMLError:
            return content
    text = json.dumps(value).encode()
    if form == "json":
        return text
    length = len(text) if rng.random() < 0.8 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**40, 2**64 - 1))
    return length.to_bytes(8, "little") + text + head


def _parsed(content: bytes, form: str) -> tuple[bytes, Any]:
    """The data behind a safetensors header, and what the file says."""
    if form == "yaml":
        try:
            return b"", yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise ValueError from error
    if form == "json":
        return b"", json.loads(content)
    stop = 8 + int.from_bytes(content[:8], "little")
    return content[stop:], json.loads(content[8:stop])


def _changed(value: Any, rng: random.Random) -> Any:
    whole = [copy.deepcopy(value)]
    places = list(_places(whole))
    owner, key = rng.choice(places[1:] or places)
    found = owner[key]
    kind = rng.choice(("value", "value", "drop", "nest", "swap", "key", "more", "text"))
    if kind == "drop" and owner is not whole:
        del owner[key]
    elif kind == "nest":
        owner[key] = rng.choice(([found], {"value": found}))
    elif kind == "swap":
        other, place = rng.choice(places)
        owner[key] = copy.deepcopy(other[place])
    elif kind == "key" and isinstance(owner, dict):
        owner[rng.choice(("", "x", "name", f"{key}s", "\x1b[1m", "__class__", "version"))] = owner.pop(key)
    elif kind == "more" and isinstance(found, list):
        found.append(rng.choice(VALUES))
    elif kind == "more" and isinstance(found, dict):
        found["x"] = rng.choice(VALUES)
    elif kind == "text":
        owner[key] = str(found)
    else:
        owner[key] = rng.choice(VALUES)
    return whole[0]


def _places(owner: Any) -> Iterator[Place]:
    for key, value in list(owner.items() if isinstance(owner, dict) else enumerate(owner)):
        yield owner, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _replaced(content: bytes, rng: random.Random) -> bytes:
    """Some bytes, or none, in the place of some, or none."""
    start = _place(content, rng)
    more = rng.choice((b"", bytes([rng.randrange(256)]), b"\xff", b"\x00", b"{", b"]", b'"', b"\n", b",", b"9" * 400,
                       b"[" * 3000, b"\x1b[2J"))  # fmt: skip
    return content[:start] + more + content[start + rng.choice((0, 1, 1, 20)) :]


def _a_key_twice(content: bytes, rng: random.Random) -> bytes:
    """The beginning of an object (or a line) again."""
    start = content.find(b"{") + 1
    entry = content[start : content.find(b",", start) + 1]
    return content[:start] + entry + content[start:] if start and entry else content + content


def _utf_16(content: bytes, rng: random.Random) -> bytes:
    return content.decode("latin-1").encode("utf-16")


def _another(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b"0"))


BYTES = (_cut, _replaced, _replaced, _replaced, _a_key_twice, _utf_16, _another)
