"""A local Ray for the tests that need one, shared by all of them and ended after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.ray_backend import ray_session


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(address=None, trial_drivers=2):
        yield
