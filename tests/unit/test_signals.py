"""Work in a thread of its own, and what a signal does to whoever waits for it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from orchestrator.errors import Interrupted
from orchestrator.signals import Background, interruptible


def test_who_is_interrupted_while_waiting_can_still_wait_for_the_end() -> None:
    may_end = threading.Event()
    work = Background(lambda: may_end.wait(30))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with interruptible(), pytest.raises(Interrupted):
        work.wait(30)
    assert not work.wait(0.0)
    threading.Timer(0.2, may_end.set).start()
    assert work.wait(30)
    assert work.value()


def test_the_value_is_waited_for_and_an_error_is_raised_where_it_is_asked_for() -> None:
    def late() -> str:
        time.sleep(0.1)
        return "here"

    def broken() -> None:
        raise LookupError("not there")

    assert Background(late).value() == "here"
    failed = Background(broken)
    assert failed.wait(30)
    with pytest.raises(LookupError, match="not there"):
        failed.value()
