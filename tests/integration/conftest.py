"""A local Ray and a local S3 server for the tests that need one, shared by all of them and ended after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.ray_backend import ray_session
from tests.seaweedfs import ObjectServer, seaweedfs


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(address=None, trial_drivers=2):
        yield


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
