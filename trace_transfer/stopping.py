"""Being told to stop: Ctrl-C at once, SIGTERM at the next moment from which the same command can go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from trace_transfer.errors import TraceTransferError

LOOK_EVERY = 0.1  # s


class StopRequested(TraceTransferError):  # noqa: N818 (not an error)
    """The run was told to stop, saved what it had and ends well; not a failure."""


@dataclass
class StopSignal:
    """Whether SIGTERM came. Whoever works in steps looks at `requested` between them."""

    requested: bool = False

    def check(self, what: str) -> None:
        """Stop here, if that was asked for.

        Raises:
            StopRequested: it was; `what` says how far the run came.
        """
        if self.requested:
            raise StopRequested(f"stopped by SIGTERM {what}; the same command goes on from there")


@contextmanager
def stop_on_sigterm() -> Iterator[StopSignal]:
    """While it lasts SIGTERM (what clusters send before they take a machine away) is noted instead of killing."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def endable(call: Callable[[], Any], what: str) -> Any:
    """Do what may wait for ever inside a library, where no signal is heard, so that SIGTERM and Ctrl-C end it.

    It is done in a thread, which is left alone when a signal comes, and ends with this process.

    Args:
        what: it is waited for, for the message: "while …".

    Raises:
        StopRequested: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    with stop_on_sigterm() as stop:
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_EVERY)
            stop.check(what)
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def noted_interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt as always, and is remembered: raised within some libraries' C++ code or clean-up
    it comes out as another exception (torch: "could not determine the shape", matplotlib: "Invalid bounding box")."""
    came = False
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruption_held_back() -> Iterator[None]:
    """Ctrl-C comes at the end of the block: what is begun within it is known to whoever has to end it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
