"""How does a single step run on Ray? On a cluster that is there, or one that is started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.backend import Backend
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore


@contextmanager
def on_ray(store: ArtifactStore, *, address: str | None, resources: Resources) -> Iterator[Backend]:
    """A backend on the cluster at that address, or on one of this machine for the time of the block.

    Raises PreflightError when the cluster cannot be reached, or the workers do not fit on it.
    """
    from orchestrator.ray_backend import RayBackend, cluster_nodes, ray_session  # seconds to import
    from orchestrator.ray_tune import trials_at_once

    with ray_session(address=address, trial_drivers=1):
        trials_at_once(resources, cluster_nodes())  # raises when the workers do not fit
        backend = RayBackend(store.root / ".ray" / "train")
        try:
            yield backend
        finally:
            backend.release()


def cluster_cpus() -> int:
    """Of all its nodes; at least 1, for a cluster that grows when it is asked."""
    from orchestrator.ray_backend import cluster_nodes

    return max(1, int(sum(node.get("CPU", 0.0) for node in cluster_nodes())))
