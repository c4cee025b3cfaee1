"""The two processes of one trial, a script that `programs` starts twice: the *program*, and the *test* that judges it.

The program's process runs the generated code and answers calls of its functions. The test's process runs the test and
nothing of the program: in the test `__program__.f(3)` is a call of the program's function `f`, sent as a line of JSON.
What comes back is data, of the plain types of `PLAIN` only, made anew in the test's process. So the verdict lies out of
the program's reach: its process holds neither a secret that proves success nor the descriptor on which success is told.

Both are confined before anything of the request's code runs. Arguments: "program" or "test", the descriptor to read
the other process from, the one to write to it, and the test's one to `programs`: a line {"layers": [...]} or
{"missing": [...]}, then {"passed": true or false}; not the second if the program's process has ended.

Standard library only, and nothing of this package but `confinement`: it starts in hundredths of a second.
"""

import builtins
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NoReturn

MAX_LINE = 1 << 26
NOT_RAISED = (StopIteration, StopAsyncIteration, UnicodeError, ExceptionGroup)


def _exact(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        import decimal
        import fractions

        return {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}[name](text)

    return read


# Tag: how the value is made of what follows the tag. None, bool and str are themselves.
PLAIN: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),  # decimal numbers have a limit on their digits
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": _exact("Decimal"),
    "Fraction": _exact("Fraction"),
    "list": lambda items: [decoded(item) for item in items],
    "tuple": lambda items: tuple(decoded(item) for item in items),
    "set": lambda items: {decoded(item) for item in items},
    "frozenset": lambda items: frozenset(decoded(item) for item in items),
    "dict": lambda items: {decoded(key): decoded(value) for key, value in items},
    "iterator": lambda items: iter([decoded(item) for item in items]),
}
SIMPLE: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, hex),
    (float, float.hex),
    (complex, lambda value: [value.real.hex(), value.imag.hex()]),
    (bytes, bytes.hex),
    (bytearray, bytearray.hex),
)


def encoded(value: Any) -> Any:
    """A value as JSON. An instance of a subclass goes as its plain type, anything else that can be iterated as an
    iterator.

    Raises:
        TypeError: neither.
    """
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for kind, write in SIMPLE:
        if isinstance(value, kind):
            return [kind.__name__, write(value)]
    if type(value).__name__ in ("Decimal", "Fraction"):
        return [type(value).__name__, str(value)]
    if isinstance(value, dict):
        return ["dict", [[encoded(key), encoded(item)] for key, item in dict.items(value)]]
    tag = next((kind.__name__ for kind in (list, tuple, set, frozenset) if isinstance(value, kind)), "iterator")
    if tag == "iterator" and not isinstance(value, Iterable):
        raise TypeError(f"a {type(value).__name__} is no plain value, and cannot leave the program's process")
    return [tag, [encoded(item) for item in value]]


def decoded(value: Any) -> Any:
    """The value that `encoded` wrote, of plain types whatever was sent; any error if it is not well-formed."""
    if value is None or isinstance(value, bool | str):
        return value
    tag, content = value
    return PLAIN[tag](content)


class Ended(BaseException):
    """The program's process has ended, or closed its channel."""


class Program:
    """The program as its test sees it: `__program__.f` calls its function `f` in the other process, by value."""

    def __init__(self, answers: IO[bytes], calls: IO[bytes]) -> None:
        self._answers, self._calls, self._has_ended = answers, calls, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def function(*arguments: Any, **named: Any) -> Any:
            return _call(self, {"name": name, "arguments": encoded(arguments), "named": encoded(named)})

        function.__name__ = function.__qualname__ = name
        return function


def _send(sink: IO[bytes], message: Any) -> None:
    sink.write(json.dumps(message).encode() + b"\n")
    sink.flush()


def _exchange(program: Program, message: Any) -> Any:
    try:
        _send(program._calls, message)
        line = program._answers.readline(MAX_LINE)
    except BrokenPipeError:
        line = b""
    if len(line) < MAX_LINE and not line.endswith(b"\n"):
        program._has_ended = True
        raise Ended
    return json.loads(line)


def _call(program: Program, message: Mapping[str, Any]) -> Any:
    answer = _exchange(program, message)
    if "value" in answer:
        return decoded(answer["value"])
    name, text = answer["error"]
    kind: Any = vars(builtins).get(name)
    # StopIteration would end a test's own `all(map(…))` early and well; the others need more than a text.
    is_error = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_RAISED)
    raise (kind if is_error else RuntimeError)(text)


def judge(request: Mapping[str, Any], answers: IO[bytes], calls: IO[bytes], evidence: int) -> NoReturn:
    """Runs the test; the verdict is what becomes of it."""

    def tell(message: Any) -> None:
        os.write(evidence, json.dumps(message).encode() + b"\n")

    missing = list(confined(request).get("missing", ()))
    first = answers.readline(MAX_LINE)  # before anything of the program runs, so it is true
    if not first:
        os._exit(1)
    report = json.loads(first)
    missing = list(dict.fromkeys([*missing, *report.get("missing", ())]))
    tell({"missing": missing} if missing else report)
    if missing:
        os._exit(1)
    program = Program(answers, calls)
    try:
        _exchange(program, request["source"])
        exec(compile(request["test"], "<test>", "exec", dont_inherit=True), {"__program__": program})
    except Ended:
        pass
    except BaseException as error:
        show(error)
        tell({"passed": False})
    else:
        # A test may have caught `Ended`.
        if not program._has_ended:
            tell({"passed": True})
    os._exit(0)


def answer(request: Mapping[str, Any], calls: IO[bytes], answers: IO[bytes]) -> NoReturn:
    """Runs the program, then its functions as they are called. Nothing that it can do here makes a verdict."""

    report = confined(request)
    _send(answers, report)
    if "missing" in report:
        os._exit(1)
    source = json.loads(calls.readline() or b'""')
    # An empty namespace, as the official checker's: a block under `__name__ == "__main__"` does not run.
    namespace: dict[str, Any] = {}
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
        _send(answers, None)
        while line := calls.readline():
            call = json.loads(line)
            try:
                function = namespace[call["name"]]
                value = encoded(function(*decoded(call["arguments"]), **decoded(call["named"])))
            except Exception as error:
                show(error)
                _send(answers, {"error": [type(error).__name__, str(error)]})
            else:
                _send(answers, {"value": value})
    except BaseException as error:
        show(error)
        os._exit(1)
    os._exit(0)


def show(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)
    sys.stderr.flush()


def confined(request: Mapping[str, Any]) -> dict[str, list[str]]:
    """Confine this process, then let it find the site-packages: {"layers": …}, or {"missing": …}."""
    try:
        layers, missing = confine(request)
    except OSError as error:
        missing = [str(error.strerror)]
    if missing:
        return {"missing": missing}
    sys.path += request["site_packages"]
    sys.argv[:] = [""]
    return {"layers": layers}


def main() -> NoReturn:
    role, *descriptors = sys.argv[1:]
    request = json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    source, sink, *evidence = map(int, descriptors)
    other, to_other = os.fdopen(source, "rb"), os.fdopen(sink, "wb")
    if role == "test":
        judge(request, other, to_other, *evidence)
    answer(request, other, to_other)


if __name__ == "__main__":
    sys.path.append(os.path.dirname(__file__))  # noqa: PTH120, pathlib is slow to import
    from confinement import confine  # type: ignore[import-not-found]

    sys.path.pop()
    main()
