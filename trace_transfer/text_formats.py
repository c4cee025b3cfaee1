"""JSON and YAML from files that anybody may have written: one reader each, with limits, so that no file can stop it.

Of both: UTF-8, with or without a byte order mark; no key twice; no NUL and no half surrogate pair in a text; whole
numbers of 64 bits; finite numbers (JSON has no NaN); 64 levels. An alias of YAML counts each time that it is used; a
date is text; a key is the text that stands there. What a file says is judged by its reader.

The fast way is the libraries' own. Only what looks suspicious is read again, token by token, for the place.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import TraceTransferError, UserError
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
_YAML_KINDS = frozenset(_TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))
_KINDS = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
_LARGE = re.compile(r"[\s:\[,]-?[0-9](?:[0-9]{18}|[0-9.]*[eE]\+?[0-9]{3})")  # many digits, or a large exponent
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")  # a number that YAML 1.1 lacks
_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # NUL, or half a surrogate pair
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|[^\s{}\[\],:"]+', re.DOTALL)
_COLON = re.compile(r"\s*:")


class MalformedTextError(UserError):
    """A text is not JSON or YAML, or goes beyond a limit; says where in it, lines and columns counted from 1."""

    def __init__(self, line: int, column: int, problem: str) -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.line, self.column, self.problem = line, column, problem


def read_json(file: Path, error: type[TraceTransferError] = UserError) -> Any:
    """What a JSON file says.

    Args:
        error: the kind of error to raise.

    Raises:
        UserError: it cannot be read, is not JSON, or beyond the limits: tells the line and the column.
    """
    text = read_text(file, error, MAX_JSON_BYTES)
    try:
        return parse_json(text)
    except MalformedTextError as found:
        raise error(f"{file}:{found.line}: not valid JSON: {found.problem} (column {found.column})") from found


def read_json_object(file: Path, error: type[TraceTransferError] = UserError) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object.

    Raises:
        UserError: as `read_json`, or it is something else.
    """
    value = read_json(file, error)
    if not isinstance(value, dict):
        raise error(f"{file}: found {kind_of(value)}, expected a JSON object, {{…}}")
    return value


def read_yaml(file: Path, error: type[TraceTransferError] = UserError) -> Any:
    """What a YAML file says; None for an empty one.

    Args:
        error: the kind of error to raise.

    Raises:
        UserError: it cannot be read, is not YAML, has a key twice, or is beyond the limits: tells the line.
    """
    text = read_text(file, error, MAX_YAML_BYTES)
    try:
        return parse_yaml(text)
    except MalformedTextError as found:
        raise error(f"{file}:{found.line}: not valid YAML: {found.problem}") from found


def read_text(file: Path, error: type[TraceTransferError], limit: int = MAX_JSON_BYTES, hint: str = "") -> str:
    """The text of a file without a byte order mark.

    Args:
        limit: bytes.
        hint: what is said where it is not text.

    Raises:
        UserError: it is not there, no file, too large, or not UTF-8 text.
    """
    try:
        with file.open("rb") as stream:
            status = file.stat()
            if not stat.S_ISREG(
                status.st_mode
            ):  # a pipe can be read once, and files are read twice; a device never ends
                raise error(f"{file}: cannot be read: it is a pipe or a device, expected a file")
            if status.st_size > limit:
                raise error(f"{file}: has {status.st_size:,} bytes; {limit:,} are the most that is read of such a file")
            data = stream.read(limit + 1)
    except OSError as found:
        raise error(f"{file}: cannot be read: {found.strerror}") from found
    except ValueError as found:  # a NUL byte in its name
        raise error(f"{file!r}: cannot be read: {found}") from found
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise error(f"{file}: not UTF-8 text (byte 0): it looks like UTF-16; save it as UTF-8{hint}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(f"{file}: not UTF-8 text (byte {found.start}){hint}") from found
    if "\x00" in text:
        raise error(f"{file}: binary (a NUL byte at {text.index(chr(0))}){hint}")
    return text


def read_tensor_header(file: Path, error: type[TraceTransferError] = UserError) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begin, and what its header says of each tensor.

    Raises:
        UserError: the file is cut short or damaged, or its header is beyond the limits of JSON.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise error(f"{file}: not a safetensors file: its header would have {length:,} bytes")
            header = parse_json(stream.read(length).decode())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not is_name(name):
                raise ValueError(f"a tensor is called {ascii(name)[:80]}")
            first, last = entry["data_offsets"]
            if not all(type(one) is int and one >= 0 for one in (*entry["shape"], first, last)):
                raise ValueError(entry)
    except OSError as found:
        raise error(f"{file}: cannot be read: {found.strerror}") from found
    except (MalformedTextError, ValueError, KeyError, TypeError, AttributeError) as found:
        raise error(f"{file}: its safetensors header is damaged ({found}); have it made or copied again") from found
    return 8 + length, header


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return _KINDS.get(type(value), f"the number {value}")


# JSON


class _Suspicious(ValueError):  # noqa: N818 (not an error by itself)
    """Something that is told with its place by `_first_problem`."""


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        MalformedTextError: the first thing that is wrong with it.
    """
    value, suspicious = None, True
    try:
        value = _DECODER.decode(text)
        numbers = isinstance(value, (int, float)) or _LARGE.search(text) is not None
        suspicious = numbers or _is_deep(value) or ("\\u" in text and _ESCAPE.search(text) is not None)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise MalformedTextError(1, 1, "it is empty") from error
        comma = error.msg.startswith(("Expecting property name", "Illegal trailing comma"))
        hint = " (JSON knows neither comments nor a comma behind the last entry)" if comma else ""
        raise MalformedTextError(error.lineno, error.colno, error.msg + hint) from error
    except (ValueError, RecursionError):  # a key twice, NaN, more digits than Python converts, too many levels
        pass
    if suspicious and (found := _first_problem(text)) is not None:
        raise _at_place(text, *found)
    return value


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line that is not blank; what is wrong with one is given as the error itself."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): its separators may stand in a text
        if line.strip():
            try:
                yield number, parse_json(line)
            except MalformedTextError as error:
                yield number, error


def _at_place(text: str, place: int, problem: str) -> MalformedTextError:
    return MalformedTextError(text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place), problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Suspicious
    return found


def _no_constant(name: str) -> Any:
    raise _Suspicious(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ] if isinstance(level[0], (dict, list)) else []  # fmt: skip
        if not level:
            return False
    return True


def _first_problem(text: str) -> tuple[int, str] | None:
    """Where the first thing stands that JSON's own reader lets pass, and what it is."""
    open_keys: list[set[str] | None] = []  # of each object that is open its keys; None for a list
    for found in _TOKEN.finditer(text):
        token, place = found.group(), found.start()
        if token in ("{", "["):
            open_keys.append(set() if token == "{" else None)
            if len(open_keys) > MAX_DEPTH:
                return place, _TOO_DEEP
        elif token in ("}", "]"):
            open_keys.pop()
        elif token[0] != '"':
            if problem := _number_problem(token):
                return place, problem
        else:
            word = json.loads(token)
            if problem := _text_problem(word):
                return place, problem
            if open_keys and (keys := open_keys[-1]) is not None and _COLON.match(text, found.end()):
                if word in keys:
                    return place, f"the key {word!r:.80} stands here a second time"
                keys.add(word)
    return None


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def _number_problem(token: str) -> str | None:
    if token in ("true", "false", "null"):
        return None
    if token.lstrip("-").isdigit():
        return None if len(token) < 1000 and abs(int(token)) <= LARGEST else _too_large(token)
    return None if math.isfinite(float(token)) else f"{token:.40} is no finite number"


def _too_large(number: str) -> str:
    shown = number if len(number) <= 40 else f"a number of {len(number)} digits"
    return f"{shown} is too large, expected {LARGEST} at most"


def _text_problem(text: str) -> str | None:
    if "\x00" in text:
        return "a text with a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a text with half a surrogate pair, {ascii(text[error.start])[1:-1]}"
    return None


# YAML


def parse_yaml(text: str) -> Any:
    """What a YAML text says; None for an empty one.

    Raises:
        MalformedTextError: the first thing that is wrong with it.
    """
    import yaml

    root = compose_yaml(text, twice=False)
    if root is None:
        return None
    try:
        return yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise _told(error, text) from error


def compose_yaml(text: str, *, twice: bool = True) -> Node | None:
    """The nodes of a YAML text, which know their lines, within the limits and of JSON's kinds; None for an empty one.

    Args:
        twice: whether a key may stand twice: a forgotten dash would silently make one entry of two.

    Raises:
        MalformedTextError: the first thing that is wrong with it.
    """
    import yaml
    from yaml.composer import Composer

    class Loader(yaml.SafeLoader):
        """Dates are text and 2e-5 is a number, as in YAML 1.2; not deeper than the limit."""

        yaml_implicit_resolvers = {  # noqa: RUF012 (as the library has it)
            first: [(tag, pattern) for tag, pattern in known if tag != _TAG + "timestamp"]
            + [(_TAG + "float", _EXPONENT)] * (first in "+-.0123456789")
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > MAX_DEPTH + 1:  # a scalar is no level
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise MalformedTextError(mark.line + 1, mark.column + 1, _TOO_DEEP)
            node = Composer.compose_node(self, parent, index)
            self.depth -= 1
            return node

    try:
        root = Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:  # one of the characters that YAML does not have
        problem = f"the character {text[error.position]!a} cannot stand in YAML"
        raise _at_place(text, error.position, problem) from error
    except yaml.YAMLError as error:
        raise _told(error, text) from error
    if root is not None:
        _Limits(twice).measure(root)
    return root


def _told(error: Exception, text: str) -> MalformedTextError:
    mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or error)
    if mark is None:
        return MalformedTextError(1, 1, problem)
    braces = "; a text with braces needs quotes" if "{" in "".join(text.split("\n")[mark.line :][:1]) else ""
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else braces
    return MalformedTextError(mark.line + 1, mark.column + 1, problem + hint)


def _at(node: Node, problem: str) -> MalformedTextError:
    return MalformedTextError(node.start_mark.line + 1, node.start_mark.column + 1, problem)


class _Limits:
    """Measures nodes, each once however many aliases it has, and makes keys what they are: text."""

    def __init__(self, twice: bool) -> None:
        self.twice = twice
        self.known: dict[int, tuple[int, int] | None] = {}  # node → levels and nodes below it; None while it is open

    def measure(self, node: Node) -> tuple[int, int]:
        if id(node) in self.known:
            found = self.known[id(node)]
            if found is None:
                raise _at(node, "an alias stands within what it is an alias of")
            return found
        self.known[id(node)] = None
        self.known[id(node)] = found = self._measured(node)
        return found

    def _measured(self, node: Node) -> tuple[int, int]:
        if node.tag not in _YAML_KINDS:
            raise _at(
                node, f"the tag {_short(node.tag)} cannot stand here; expected texts, numbers, lists and mappings"
            )
        children = self._children(node)
        if children is None:
            return 0, 1
        levels, count = 1, 1
        for child in children:
            deeper, more = self.measure(child)
            levels, count = max(levels, deeper + 1), count + more
            if levels > MAX_DEPTH:
                raise _at(child, _TOO_DEEP)
            if count > MAX_NODES:
                raise _at(child, f"its aliases, written out, are more than {MAX_NODES:,} entries")
        return levels, count

    def _children(self, node: Node) -> list[Node] | None:
        from yaml.nodes import MappingNode, ScalarNode, SequenceNode

        if isinstance(node, ScalarNode):
            _check_scalar(node)
            return None
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return list(node.value)
        if not isinstance(node, MappingNode) or node.tag != _TAG + "map":
            raise _at(node, f"the tag {_short(node.tag)} does not fit what it stands at")
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                found = "a list" if isinstance(key, SequenceNode) else "a mapping"
                raise _at(key, f"{found} as a key, expected a text; a text with braces needs quotes")
            if key.value in keys and not self.twice:
                raise _at(key, f"the key '{key.value:.80}' stands here a second time (is a '-' missing?)")
            keys.add(key.value)
            if key.tag != _TAG + "merge":
                key.tag = _TAG + "str"
        return [node for pair in node.value for node in pair]


def _check_scalar(node: Any) -> None:
    """Refuse what cannot be a value: a number out of range, a tag that the text does not fit, a damaged text."""
    from yaml.constructor import SafeConstructor

    value, kind = node.value, node.tag.removeprefix(_TAG)
    if problem := _text_problem(value):
        raise _at(node, problem)
    if kind in ("int", "float", "bool"):
        read = getattr(SafeConstructor(), f"construct_yaml_{kind}")
        try:
            number = read(node)
        except (ValueError, KeyError, IndexError, ArithmeticError) as error:
            raise _at(node, _too_large(value) if len(value) > 1000 else f"{value!r} is no {kind}") from error
        if kind == "int" and abs(number) > LARGEST:
            raise _at(node, _too_large(value))
        if not math.isfinite(number):
            raise _at(node, f"{value:.40} is no finite number")
    elif kind in ("map", "seq"):
        raise _at(node, f"the tag {_short(node.tag)} does not fit what it stands at")


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")[:80]
