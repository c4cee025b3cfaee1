"""Being told to stop: Ctrl-C at once, SIGTERM at the next moment from which the same command can go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from trace_transfer.errors import TraceTransferError

LOOK_EVERY = 0.1  # s
_noted: list[int] = []  # Ctrl-C within `noted_interruption`


class StopRequested(TraceTransferError):  # noqa: N818 (not an error)
    """The run was told to stop, saved what it had and ends well; not a failure."""


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """While it lasts these signals go to a handler. Beside the main thread, where Python has none, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@dataclass
class StopSignal:
    """Whether SIGTERM came. Whoever works in steps looks at `requested` between them."""

    requested: bool = False

    def check(self, what: str) -> None:
        """Stop here (StopRequested), if that was asked for; `what` says how far the run came."""
        if self.requested:
            raise StopRequested(f"stopped by SIGTERM {what}; the same command goes on from there")


@contextmanager
def stop_on_sigterm() -> Iterator[StopSignal]:
    """While it lasts SIGTERM (what clusters send before they take a machine away) is noted instead of killing; so is
    SIGUSR2, which schedulers are asked to send before the time is up."""
    stop = StopSignal()

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    with handling([signal.SIGTERM, signal.SIGUSR2], note):
        yield stop


def endable(call: Callable[[], None], what: str) -> None:
    """Do what may wait for ever inside a library, where no signal is heard, so that SIGTERM (StopRequested) and Ctrl-C
    end it: in a thread, which is left alone when a signal comes, and ends with this process. `what` it is waited for
    is for the message: "while …"."""
    from concurrent.futures import Future, wait

    if threading.current_thread() is not threading.main_thread():
        call()
        return
    done: Future[None] = Future()

    def work() -> None:
        try:
            call()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    with stop_on_sigterm() as stop:
        while not done.done():
            wait([done], LOOK_EVERY)
            stop.check(what)
    done.result()


@contextmanager
def noted_interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt as always, and is remembered: raised within some libraries' C++ code or clean-up
    it comes out as another exception (torch: "could not determine the shape", matplotlib: "Invalid bounding box")."""

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        signal.default_int_handler(number, frame)

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        if not issubclass(error.exc_type, KeyboardInterrupt):
            as_always(error)

    by_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    as_always, sys.unraisablehook = sys.unraisablehook, unraisable
    _noted.clear()
    try:
        with handling([signal.SIGINT] if by_python else [], note):
            yield lambda: bool(_noted)
    finally:
        sys.unraisablehook = as_always
        _noted.clear()


def raise_swallowed_interruption() -> None:
    """Where work begins: a Ctrl-C from which C code could not raise, while libraries were imported."""
    if _noted:
        raise KeyboardInterrupt


@contextmanager
def interruption_held_back() -> Iterator[None]:
    """Ctrl-C comes at the end of the block: what is begun within it is known to whoever has to end it."""
    before, came = signal.getsignal(signal.SIGINT), list[tuple[int, FrameType | None]]()
    try:
        with handling([signal.SIGINT] if callable(before) else [], lambda number, frame: came.append((number, frame))):
            yield
    finally:
        if came and callable(before):
            before(*came[0])
