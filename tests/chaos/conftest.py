"""What killed trainings are held against."""

from __future__ import annotations

import pytest

from tests.chaos.small_training import Left, call, left


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a training leaves that nobody disturbs."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    ended = call(store)
    assert ended.returncode == 0, ended.stderr
    return left(store)
