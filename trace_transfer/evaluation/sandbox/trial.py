"""The two processes of one trial, a script that `programs` starts twice: the *program*, and the *test* that judges it.

The program's process runs the generated code, then answers calls of its functions. The test's process runs nothing of
the program: in the test `__program__.f(3)` is a call of the program's function `f`, sent as a line of JSON, and what
comes back is data of the types of `KINDS` only, made anew. So the verdict lies out of the program's reach: its process
holds neither a secret that proves success nor the descriptor on which success is told.

Both confine themselves before they run code of the request. Arguments: "program" or "test", the descriptor to read the
other process from, the one to write to it, and the test's one to `programs`: a line that lists what is missing to
confine both, then one that says whether the program passed, unless its process has ended.

Standard library only, and nothing of this package: it starts in hundredths of a second.
"""

import builtins
import contextlib
import ctypes
import decimal
import fractions
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, NoReturn

MAX_LINE = 1 << 26
NOT_RAISED = (StopIteration, StopAsyncIteration, UnicodeError, ExceptionGroup)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SIGKILL = 9
LINUX_CAPABILITY_VERSION_3 = 0x20080522
# Landlock: system calls (the same on all architectures) and rights, see landlock(7) and linux/landlock.h.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
# All rights on files of each version; what is handled and not granted is denied.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NET_RIGHTS = 0b11  # TCP bind and connect, from version 4
SCOPES = 0b11  # abstract sockets and signals, from version 6

# ---- confinement

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> int:
    """Call the C library; an OSError with the function's name if it returns -1."""
    result: int = getattr(libc, function)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def system_call(number: int, *arguments: Any) -> int:
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return call("syscall", ctypes.c_long(number), *wide)


def limit_resources(limits: Mapping[str, Any]) -> None:
    """Limits that the kernel keeps; none can be raised again (that takes a capability, dropped below)."""
    cpu = int(limits["cpu_seconds"])
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # SIGXCPU first: it tells a slow program from a killed one
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"], limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def restrict_files(readable: Sequence[str], directory: str) -> None:
    """Landlock: what is not granted here can be neither opened, made, renamed nor removed. Raises OSError."""
    version = system_call(CREATE_RULESET, 0, 0, 1)
    handled = FILE_RIGHTS[min(version, max(FILE_RIGHTS))]
    fields = [handled, *([NET_RIGHTS] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    ruleset_attr = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset = system_call(CREATE_RULESET, ctypes.byref(ruleset_attr), ctypes.sizeof(ruleset_attr), 0)
    own = READ_FILE | READ_DIR | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE
    grants = [(path, READ_FILE | READ_DIR) for path in readable]
    grants += [("/dev/null", READ_FILE | WRITE_FILE), ("/dev/urandom", READ_FILE), (directory, own)]
    for path, rights in grants:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):  # noqa: PTH112, pathlib is slow to import
            rights &= READ_FILE | WRITE_FILE | TRUNCATE
        # struct landlock_path_beneath_attr, which is packed
        rule = (rights & handled).to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        system_call(ADD_RULE, ruleset, 1, rule, 0)
        os.close(descriptor)
    system_call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))  # struct sock_fprog


def restrict_calls(instructions: bytes) -> None:
    program = _Filter(len(instructions) // 8, instructions)
    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def confine(request: Mapping[str, Any]) -> list[str]:
    """Give up everything that the program is not to have; what of that is not to be had on this system."""
    missing = []
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123
        stream.write("1000")  # if memory runs out, it is this process that goes
    try:
        limit_resources(request["limits"])
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # No capability is left, root's neither, and none can come back: there is no exec.
        header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
        call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    except OSError as error:
        missing.append(str(error.strerror))
    if os.getppid() != request["parent"]:
        os._exit(1)  # the parent died before this line
    try:
        restrict_files(request["readable"], request["directory"])
    except OSError as error:
        missing.append(f"Landlock, in Linux since 5.13 ({error.strerror})")
    try:
        restrict_calls(bytes.fromhex(request["filter"]))
    except OSError as error:
        missing.append(f"seccomp filters ({error.strerror})")
    sys.path += request["site_packages"]
    sys.argv[:] = [""]
    return missing


# ---- values


def _items(values: Any) -> list[Any]:
    return list(map(encoded, values))


# Tag: the type, how its values are written as JSON, and how they are read. None, bool and str are themselves.
KINDS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),  # decimal numbers have a limit on their digits
    "float": (float, float.hex, float.fromhex),
    "complex": (complex, lambda one: [one.real.hex(), one.imag.hex()], lambda two: complex(*map(float.fromhex, two))),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "Fraction": (fractions.Fraction, str, fractions.Fraction),
    "dict": (dict, lambda one: [_items(pair) for pair in dict.items(one)], lambda pairs: dict(map(_decoded, pairs))),
    "list": (list, _items, lambda items: _decoded(items)),
    "tuple": (tuple, _items, lambda items: tuple(_decoded(items))),
    "set": (set, _items, lambda items: set(_decoded(items))),
    "frozenset": (frozenset, _items, lambda items: frozenset(_decoded(items))),
    "iterator": (Iterable, _items, lambda items: iter(_decoded(items))),
}


def encoded(value: Any) -> Any:
    """A value as JSON: a subclass as its plain type, what else can be iterated as an iterator, else a TypeError."""
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for tag, (kind, write, _) in KINDS.items():
        if isinstance(value, kind):
            return [tag, write(value)]
    raise TypeError(f"a {type(value).__name__} is no plain value, and cannot leave the program's process")


def decoded(value: Any) -> Any:
    """The value that `encoded` wrote, of plain types whatever was sent; any error if it is not well-formed."""
    if value is None or isinstance(value, bool | str):
        return value
    tag, content = value
    return KINDS[tag][2](content)


def _decoded(values: Any) -> list[Any]:
    return list(map(decoded, values))


# ---- the two processes


class Ended(BaseException):
    """The program's process has ended, or closed its channel."""


class Program:
    """The program as its test sees it: `__program__.f` calls its function `f` in the other process, by value."""

    def __init__(self, answers: IO[bytes], calls: IO[bytes]) -> None:
        self._answers, self._calls, self._has_ended = answers, calls, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def function(*arguments: Any, **named: Any) -> Any:
            answer = self._exchange({"name": name, "arguments": encoded(arguments), "named": encoded(named)})
            if "value" in answer:
                return decoded(answer["value"])
            error, text = answer["error"]
            kind: Any = vars(builtins).get(error)
            # StopIteration would end a test's own `all(map(…))` early and well; the others need more than a text.
            is_error = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_RAISED)
            raise (kind if is_error else RuntimeError)(text)

        function.__name__ = function.__qualname__ = name
        return function

    def _exchange(self, message: Any) -> Any:
        try:
            _send(self._calls, message)
            line = self._answers.readline(MAX_LINE)
        except BrokenPipeError:
            line = b""
        if len(line) < MAX_LINE and not line.endswith(b"\n"):
            self._has_ended = True
            raise Ended
        return json.loads(line)


def _send(sink: IO[bytes], message: Any) -> None:
    sink.write(json.dumps(message).encode() + b"\n")
    sink.flush()


def judge(request: Mapping[str, Any], answers: IO[bytes], calls: IO[bytes], evidence: int) -> NoReturn:
    """Runs the test; the verdict is what becomes of it."""

    def tell(message: Any) -> None:
        os.write(evidence, json.dumps(message).encode() + b"\n")

    missing = confine(request)
    first = answers.readline(MAX_LINE)  # before anything of the program runs, so it is true
    if not first:
        os._exit(1)
    missing = list(dict.fromkeys([*missing, *json.loads(first)]))
    tell(missing)
    if missing:
        os._exit(1)
    program = Program(answers, calls)
    try:
        program._exchange(request["source"])
        exec(compile(request["test"], "<test>", "exec", dont_inherit=True), {"__program__": program})
    except Ended:
        pass
    except BaseException as error:
        show(error)
        tell(False)
    else:
        if not program._has_ended:  # a test may have caught `Ended`
            tell(True)
    os._exit(0)


def answer(request: Mapping[str, Any], calls: IO[bytes], answers: IO[bytes]) -> NoReturn:
    """Runs the program, then its functions as they are called. Nothing that it can do here makes a verdict."""
    missing = confine(request)
    _send(answers, missing)
    if missing:
        os._exit(1)
    source = json.loads(calls.readline() or b'""')
    # An empty namespace, as the official checker's: a block under `__name__ == "__main__"` does not run.
    namespace: dict[str, Any] = {}
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
        _send(answers, None)
        while line := calls.readline():
            asked = json.loads(line)
            try:
                function = namespace[asked["name"]]
                value = encoded(function(*decoded(asked["arguments"]), **decoded(asked["named"])))
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
    main()
