"""How are checkpoints kept while work goes on? By a thread of its own: work waits for a copy in memory alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from orchestrator.blobs import TransientError
from orchestrator.checkpoint import CheckpointStore

GIVE_UP_SECONDS = 900.0
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0

Files = Callable[[], Mapping[str, bytes]]


class CheckpointWriter:
    """Stores states one after the other, and asks again and again where a place does not answer."""

    def __init__(self, store: CheckpointStore, *, give_up_seconds: float = GIVE_UP_SECONDS) -> None:
        self._store, self._give_up_seconds = store, give_up_seconds
        self._offered: tuple[Files, int] | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self.verified: int | None = None
        """The clock of the newest state that is stored."""
        self.trouble: str | None = None
        """Why a state is not stored yet, while that is tried again."""

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def is_idle(self) -> bool:
        """Whether a state that is offered now would be taken."""
        return self._offered is None

    def offer(self, files: Files, *, clock: int) -> bool:
        """Hand over a state: files() gives it, in another thread, of a copy that nobody changes. Whether it was taken.

        It is not while the one before it is being stored.
        """
        with self._changed:
            if self._offered is not None:
                return False
            self._offered = (files, clock)
            self._changed.notify_all()
        return True

    def check(self) -> None:
        """Raises what made a state impossible to store: a full disk, a place that is taken, or silent too long."""
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        """Wait until what was offered is stored. Raises as check() does."""
        with self._changed:
            self._changed.wait_for(lambda: self._offered is None or self._error is not None)
        self.check()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None or self._ended)
                if self._offered is None:
                    return
                files, clock = self._offered
            try:
                if not self._stored(files, clock):
                    return
            except BaseException as error:  # handed to the thread that works, by check() and flush()
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self.verified, self.trouble, self._offered = clock, None, None
                self._changed.notify_all()

    def _stored(self, files: Files, clock: int) -> bool:
        """Store a state, however often that must be tried; False when work has ended meanwhile without waiting."""
        content, began, wait = files(), time.monotonic(), FIRST_WAIT
        while True:
            try:
                self._store.save(content, clock=clock)
                return True
            except TransientError as error:
                if time.monotonic() - began > self._give_up_seconds:
                    raise
                self.trouble = str(error)
            with self._changed:
                if self._changed.wait_for(lambda: self._ended, timeout=wait * random.uniform(0.5, 1.0)):
                    return False
            wait = min(2 * wait, LONGEST_WAIT)
