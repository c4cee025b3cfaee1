"""JSON and YAML from files that anybody may have written: one reader each, with limits, so that no file can stop it.

Of both: UTF-8, with or without a byte order mark; no key twice; no NUL and no half surrogate pair in a text; whole
numbers of 64 bits; finite numbers (JSON has no NaN); 64 levels. YAML has no tags; an alias of it counts each time that
it is used; a date is text; a key is the text that stands there. What a file says is judged by its reader.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import TraceTransferError, UserError, first_line
from trace_transfer.printable import is_name

if TYPE_CHECKING:
    from yaml.nodes import Node

MAX_DEPTH = 64
LARGEST = (1 << 63) - 1  # whole number
MAX_JSON_BYTES = 4 << 30  # a core set of heads and neurons of a large model has a GB
MAX_YAML_BYTES = 8 << 20  # the longest list of names of a mixture of experts has 3 MB
MAX_HEADER_BYTES = 100_000_000  # of safetensors, as the library has it
MAX_NODES = 1_000_000  # of YAML, each alias written out
_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"its aliases, written out, are more than {MAX_NODES:,} entries"
_KINDS = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
# In JSON: many digits, a large exponent. Only then, and where there is an escape, all values are looked at.
_LARGE = re.compile(r"[\s:\[,]-?[0-9](?:[0-9]{18}|[0-9.]*[eE]\+?[0-9]{3})")
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")  # a number that YAML 1.1 lacks


class MalformedTextError(UserError):
    """A text is not JSON or YAML, or goes beyond a limit; says where in it, counted from 1, if that is known."""

    def __init__(self, problem: str, line: int | None = None, column: int = 1) -> None:
        super().__init__(problem if line is None else f"line {line}, column {column}: {problem}")
        self.problem, self.line = problem, line


def read_json(file: Path, error: type[TraceTransferError] = UserError) -> Any:
    """What a JSON file says; an error of the kind given tells why it cannot be read, with the place."""
    return _read(file, "JSON", parse_json, error, MAX_JSON_BYTES)


def read_json_object(file: Path, error: type[TraceTransferError] = UserError) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object."""
    value = read_json(file, error)
    if not isinstance(value, dict):
        raise error(f"{file}: found {kind_of(value)}, expected a JSON object, {{…}}")
    return value


def read_yaml(file: Path, error: type[TraceTransferError] = UserError) -> Any:
    """What a YAML file says, None for an empty one; raises as `read_json`."""
    return _read(file, "YAML", parse_yaml, error, MAX_YAML_BYTES)


def _read(file: Path, what: str, parse: Callable[[str], Any], error: type[TraceTransferError], limit: int) -> Any:
    text = read_text(file, error, limit)
    try:
        return parse(text)
    except MalformedTextError as found:
        place = str(file) if found.line is None else f"{file}:{found.line}"
        raise error(f"{place}: not valid {what}: {found.problem}") from found


def read_text(file: Path, error: type[TraceTransferError], limit: int = MAX_JSON_BYTES, hint: str = "") -> str:
    """The text of a file of at most `limit` bytes, without a byte order mark; `hint` is said where it is not text."""
    try:
        size = file.stat().st_size
        if size > limit:
            raise error(f"{file}: has {size:,} bytes; {limit:,} are the most that is read of such a file")
        data = file.read_bytes()
    except OSError as found:
        raise error(f"{file}: cannot be read: {found.strerror}") from found
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(f"{file}: not UTF-8 text (byte {found.start}){hint}") from found


def read_tensor_header(file: Path, error: type[TraceTransferError] = UserError) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begin, and what its header says of each tensor."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise error(f"{file}: not a safetensors file: its header would have {length:,} bytes")
            header = parse_json(stream.read(length).decode())
        header.pop("__metadata__", None)
        for name in header:
            if not is_name(name):
                raise ValueError(f"a tensor is called {ascii(name)[:80]}")
    except OSError as found:
        raise error(f"{file}: cannot be read: {found.strerror}") from found
    except (MalformedTextError, ValueError, TypeError, AttributeError) as found:
        raise error(f"{file}: its safetensors header is damaged ({found}); have it made or copied again") from found
    return 8 + length, header


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return next((told for kind, told in _KINDS.items() if isinstance(value, kind)), f"the number {value}")


def _check(value: Any, most: float = math.inf) -> None:
    """Refuse what the libraries let pass, and more than so many values; a `ValueError` says what it is."""
    level, count = [value], 0
    for _ in range(MAX_DEPTH + 1):
        for one in level:
            _check_scalar(one)
        containers = [one for one in level if isinstance(one, (dict, list))]
        if not containers:
            return
        level = [child for one in containers for child in ((*one, *one.values()) if isinstance(one, dict) else one)]
        count += len(level)
        if count > most:
            raise ValueError(_TOO_MANY)
    raise ValueError(_TOO_DEEP)


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("a text with a NUL character")
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise ValueError(f"a text with half a surrogate pair, {value!a:.80}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{value} is too large, expected {LARGEST} at most")


# JSON


def parse_json(text: str) -> Any:
    """What a JSON text says; a MalformedTextError tells the first thing that is wrong with it."""
    if not text.strip():
        raise MalformedTextError("it is empty", 1)
    try:
        value = _DECODER.decode(text)
        if "\\u" in text or not isinstance(value, (dict, list)) or _LARGE.search(text):
            _check(value)
    except json.JSONDecodeError as error:
        comma = error.msg.startswith(("Expecting property name", "Illegal trailing comma"))
        hint = " (JSON knows neither comments nor a comma behind the last entry)" if comma else ""
        raise MalformedTextError(error.msg + hint, error.lineno, error.colno) from error
    except RecursionError as error:
        raise MalformedTextError(_TOO_DEEP) from error
    except ValueError as error:  # of ours, or more digits than Python converts
        raise MalformedTextError(str(error)) from error
    return value


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line that is not blank; what is wrong with one is given as the error itself."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): its separators may stand in a text
        if line.strip():
            try:
                yield number, parse_json(line)
            except MalformedTextError as error:
                yield number, error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} stands in an object a second time")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no finite number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


# YAML


def parse_yaml(text: str) -> Any:
    """What a YAML text says, None for an empty one; raises as `parse_json`."""
    return _read_yaml(text)[1]


def compose_yaml(text: str) -> Node | None:
    """The nodes of a YAML text, which know their lines; None for an empty one. Raises as `parse_yaml`."""
    return _read_yaml(text)[0]


def _read_yaml(text: str) -> tuple[Node | None, Any]:
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
        _check(value, MAX_NODES)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        if mark is None:
            raise MalformedTextError(problem) from error
        braces = "; a text with braces needs quotes" if "{" in "".join(text.split("\n")[mark.line :][:1]) else ""
        hint = "; indent with spaces, not tabs" if "'\\t'" in problem else braces
        raise MalformedTextError(problem + hint, mark.line + 1, mark.column + 1) from error
    except RecursionError as error:
        raise MalformedTextError(_TOO_DEEP) from error
    except ValueError as error:
        raise MalformedTextError(str(error)) from error
    return node, value


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Dates are text and 2e-5 is a number, as in YAML 1.2; keys are text, and none stands twice; no tags."""

        yaml_implicit_resolvers = {  # noqa: RUF012 (as the library has it)
            first: [(tag, pattern) for tag, pattern in known if tag != _TAG + "timestamp"]
            + [(_TAG + "float", _EXPONENT)] * (first in "+-.0123456789")
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        yaml_constructors = {  # noqa: RUF012
            tag: make
            for tag, make in yaml.SafeLoader.yaml_constructors.items()
            if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "seq", "map")
        }

        def compose_mapping_node(self, anchor: Any) -> Any:
            node: Any = super().compose_mapping_node(anchor)
            keys = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    found = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
                    raise _at(key, f"{found} as a key, expected a text; a text with braces needs quotes")
                if key.value in keys:
                    raise _at(key, f"the key '{key.value:.80}' stands here a second time (is a '-' missing?)")
                keys.add(key.value)
                key.tag = key.tag if key.tag == _TAG + "merge" else _TAG + "str"
            return node

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MAX_NODES:
                raise _at(node, _TOO_MANY)

    return Loader


def _at(place: Any, problem: str) -> MalformedTextError:
    return MalformedTextError(problem, place.start_mark.line + 1, place.start_mark.column + 1)
