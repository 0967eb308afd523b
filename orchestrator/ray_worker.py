"""What does every Ray process of ours do first? Loaded by each of them, also the small ones: it imports ray alone."""

from __future__ import annotations

import os

import ray


def know_own_cluster() -> None:
    """A process's cluster is the one it belongs to.

    Train's placement group cleaner otherwise asks the cluster that `ray start` last noted on this machine. One that is
    gone costs 12 s at the end of each training, and a lost group's CPUs; one that lives knows nothing of our trainings.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
