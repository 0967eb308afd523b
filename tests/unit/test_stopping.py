"""How does work elsewhere learn that it should end, and how often has it begun?"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import LeaseLost
from orchestrator.history import History
from orchestrator.lease import Fence, seize
from orchestrator.stopping import LISTENING_FILE, ask_to_stop, asked_to_stop, listening, stop_all


@pytest.fixture
def fence(tmp_path: Path) -> Fence:
    return seize(tmp_path / "lease")


def test_who_listens_is_asked_and_waited_for(tmp_path: Path, fence: Fence) -> None:
    ended = []

    def work() -> None:
        with listening(tmp_path, began_by="me", fence=fence):
            while not asked_to_stop(tmp_path, began_by="me"):
                time.sleep(0.01)
            time.sleep(0.3)  # keeps its state
            ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    while not (tmp_path / LISTENING_FILE).exists():
        time.sleep(0.01)
    stop_all([tmp_path, tmp_path / "not begun"], began_by="me", seconds=10)
    thread.join()
    assert ended[0] <= time.monotonic()


def test_work_that_another_command_began_is_neither_asked_nor_waited_for(tmp_path: Path, fence: Fence) -> None:
    with listening(tmp_path, began_by="another", fence=fence):
        began = time.monotonic()
        stop_all([tmp_path], began_by="me", seconds=10)
        ask_to_stop(tmp_path, began_by="me")
        assert time.monotonic() - began < 1
        assert not asked_to_stop(tmp_path, began_by="another")


def test_who_does_not_listen_is_not_waited_for_and_who_was_killed_no_longer_than_was_said(tmp_path: Path) -> None:
    began = time.monotonic()
    stop_all([tmp_path], began_by="me", seconds=10)
    assert time.monotonic() - began < 1
    (tmp_path / LISTENING_FILE).write_text("me")  # what a killed process leaves
    stop_all([tmp_path], began_by="me", seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 3


def test_what_was_asked_of_the_one_before_is_forgotten(tmp_path: Path, fence: Fence) -> None:
    with listening(tmp_path, began_by="me", fence=fence):
        stop_all([tmp_path], began_by="me", seconds=0)
        assert asked_to_stop(tmp_path, began_by="me")
    with listening(tmp_path, began_by="me", fence=fence):
        assert not asked_to_stop(tmp_path, began_by="me")


def test_who_begins_to_listen_where_another_one_was_killed_is_asked_too(tmp_path: Path, fence: Fence) -> None:
    (tmp_path / LISTENING_FILE).write_text("me")
    heard = []

    def work() -> None:
        time.sleep(0.5)  # the first one was asked meanwhile, in vain
        with listening(tmp_path, began_by="me", fence=fence):
            for _ in range(500):
                if asked_to_stop(tmp_path, began_by="me"):
                    heard.append(True)
                    return
                time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    stop_all([tmp_path], began_by="me", seconds=10)
    thread.join()
    assert heard


def test_who_was_taken_over_ends_and_its_successor_still_listens(tmp_path: Path, fence: Fence) -> None:
    with listening(tmp_path, began_by="me", fence=fence):
        successor = listening(tmp_path, began_by="me", fence=seize(tmp_path / "lease"))
        successor.__enter__()
    stop_all([tmp_path], began_by="me", seconds=0)
    assert asked_to_stop(tmp_path, began_by="me")


def test_who_was_taken_over_before_it_began_does_not_listen_in_place_of_its_successor(
    tmp_path: Path, fence: Fence
) -> None:
    with listening(tmp_path, began_by="me", fence=seize(tmp_path / "lease")):
        stop_all([tmp_path], began_by="me", seconds=0)
        with pytest.raises(LeaseLost), listening(tmp_path, began_by="me", fence=fence):
            pass
        assert asked_to_stop(tmp_path, began_by="me")


def test_a_history_counts_how_often_work_was_taken_up_again(tmp_path: Path) -> None:
    for number in range(3):
        history = History(tmp_path)
        assert history.recoveries == number
        history.add(resumed_at=10 * number, workers=1, damage=["x"] * number)
