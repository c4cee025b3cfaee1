"""Files as a careless hand, a failing disk or a hostile mind leaves them: what one seed makes of a file's bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3.5, 1e308, 2**63 - 1, 10**30, float("nan"), float("inf"), "", "x" * 5000, "../../x",
    "/dev/null", "a\nb", "\x1b[31m\u202e[bold]{}", "\x00", "\ud800", "%s", [], {}, [None], {"name": "x"},
    [[[[[[[[1]]]]]]]], ["x", "x"],
)  # fmt: skip
BYTES = (b"", b"\x80", b"\x00", b"{", b"]", b'"', b"\n", b",", b"9" * 400, b"[" * 3000, b"\x1b[2J")


def mutated(content: bytes, form: str, seed: int) -> bytes:
    """A file's bytes, changed in one way; the same for the same seed.

    Args:
        form: `json`, `yaml`, `safetensors`, or `text` for what is changed byte by byte alone.
    """
    rng = random.Random(seed)
    if form == "text" or rng.random() < 0.25:
        start = rng.randrange(len(content) + 1)
        rest = b"" if rng.random() < 0.3 else content[start + rng.choice((0, 1, 1, 20)) :]
        return content[:start] + rng.choice(BYTES) + rest
    if form == "yaml":
        text = yaml.dump(_changed(yaml.safe_load(content), rng), allow_unicode=True, sort_keys=False)
        return text.encode("utf-8", "surrogatepass")
    if form == "json":
        return json.dumps(_changed(json.loads(content), rng)).encode()
    stop = 8 + int.from_bytes(content[:8], "little")  # of a safetensors header
    text = json.dumps(_changed(json.loads(content[8:stop]), rng)).encode()
    length = len(text) if rng.random() < 0.8 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**40, 2**64 - 1))
    return length.to_bytes(8, "little") + text + content[stop:]


def _changed(value: Any, rng: random.Random) -> Any:
    """One of the values in it replaced, left out, nested deeper, made a text, or under another key."""
    owner, key = rng.choice(list(_places(value)))
    found = owner[key]
    kind = rng.choice(("value", "value", "value", "drop", "nest", "text", "key"))
    if kind == "drop":
        del owner[key]
    elif kind == "nest":
        owner[key] = rng.choice(([found], {"value": found}))
    elif kind == "text":
        owner[key] = str(found)
    elif kind == "key" and isinstance(owner, dict):
        owner[rng.choice(("", "x", "name", f"{key}s", "\x1b[1m", "__class__", "version"))] = owner.pop(key)
    else:
        owner[key] = rng.choice(VALUES)
    return value


def _places(owner: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list at any depth, with each key or number in it."""
    for key, value in list(owner.items() if isinstance(owner, dict) else enumerate(owner)):
        yield owner, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
