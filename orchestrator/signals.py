"""How does a command end when it is told to? With an exception, so that everything on the way out is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

from orchestrator.errors import Interrupted

T = TypeVar("T")


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise Interrupted in the main thread, each once: not the same again."""

    def interrupt(signum: int, _: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise Interrupted(signum)

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Background(Generic[T]):
    """A call in a thread of its own, so that the main thread is free for signals."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._value: T
        self._error: BaseException | None = None

        self._ended = threading.Event()

        def run() -> None:
            try:
                self._value = call()
            except BaseException as error:  # handed to the thread that asked, by value()
                self._error = error
            finally:
                self._ended.set()

        threading.Thread(target=run, name="background", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the call has ended, after waiting for at most so long."""
        # Not by Thread.join: one that a signal handler's exception leaves takes the thread for ended (bpo-45274).
        return self._ended.wait(seconds)

    def value(self) -> T:
        """What the call returned, once it has; raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._value
