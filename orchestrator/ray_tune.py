"""How do trials run side by side? Each is a Ray Tune trial: a driver function that starts the trial's own steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.backend import Backend
from orchestrator.errors import PreflightError
from orchestrator.experiment import Trial
from orchestrator.ray_backend import TRIAL_DRIVER, RayBackend, cluster_resources, head_resource, ray_session
from orchestrator.step import Resources


class TuneLauncher:
    """Runs trials as a Tune grid; Ray is started, or connected to, for the time it is entered.

    There is no early stopping: a scheduler that ends or changes trials would end or change rows of the table.
    Which trials are done is known from the store, never from Tune's own checkpoint, so a stopped study can also be
    extended.
    """

    def __init__(self, storage: Path, *, resources: Resources, address: str | None = None, verbose: bool) -> None:
        self._storage = storage
        self._resources = resources
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._verbose = verbose
        self._session = ExitStack()
        self.backend: Backend = RayBackend(storage / "train")
        self.concurrent = 1

    def __enter__(self) -> TuneLauncher:
        drivers = os.cpu_count() or 1
        self._session.enter_context(ray_session(address=self._address, trial_drivers=drivers, verbose=self._verbose))
        cluster = cluster_resources()
        scales = self._address is not None and TRIAL_DRIVER in cluster
        try:
            # A cluster that scales has few workers yet; how many trials it is meant for, its head says.
            self.concurrent = int(cluster[TRIAL_DRIVER]) if scales else trials_at_once(self._resources, cluster)
        except PreflightError:
            self._session.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._session.close()

    def launch(self, trials: Sequence[Trial], run_trial: Callable[[Trial], None], *, name: str) -> dict[str, str]:
        """Run every trial; returns trial.key -> reason for those that failed. One that fails does not stop others."""
        by_key = {trial.key: trial for trial in trials}

        def drive(config: dict[str, Any]) -> None:
            try:
                run_trial(by_key[config["trial"]])
            except Exception as error:
                tune.report({"reason": str(error)})  # the error itself reaches the driver only inside a traceback
                raise
            tune.report({"reason": ""})

        tuner = tune.Tuner(
            tune.with_resources(drive, head_resource()),
            param_space={"trial": tune.grid_search(list(by_key))},
            tune_config=tune.TuneConfig(max_concurrent_trials=self.concurrent, reuse_actors=True),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self._storage / "tune"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        reasons = dict.fromkeys(by_key, "its driver was lost before it could say why")
        results = tuner.fit()
        for result in (results[number] for number in range(len(results))):
            if result.config is not None and result.metrics is not None:
                reasons[result.config["trial"]] = result.metrics["reason"]
        return {key: reason for key, reason in reasons.items() if reason}


def trials_at_once(resources: Resources, cluster: dict[str, float]) -> int:
    """How many trials' workers the cluster holds at the same time. Raises PreflightError when not even one's fit."""
    need = {
        "CPU": resources.workers * resources.cpus_per_worker,
        "GPU": resources.workers * resources.gpus_per_worker,
    }
    fits = [int(cluster.get(kind, 0.0) // amount) for kind, amount in need.items() if amount]
    if min(fits) < 1:
        have = ", ".join(f"{cluster.get(kind, 0.0):g} {kind}" for kind in need)
        wants = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        raise PreflightError(
            f"one cell needs {wants} ({resources.workers} workers), and the cluster has {have}: "
            f"lower --workers, --cpus-per-worker or --gpus-per-worker, or name a larger cluster with --address"
        )
    return min(fits)
