"""How do trials run side by side? Each is a Ray Tune trial: a driver function that starts the trial's own steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.backend import Backend
from orchestrator.errors import PreflightError
from orchestrator.experiment import Trial
from orchestrator.ray_backend import TRIAL_DRIVER, RayBackend, cluster_nodes, head_resource, ray_session
from orchestrator.step import Resources

LOST_DRIVER = "its driver was lost before it could say why"


class TuneLauncher:
    """Runs trials as a Tune grid; Ray is started, or connected to, for the time it is entered.

    There is no early stopping: a scheduler that ends or changes trials would end or change rows of the table.
    Which trials are done is known from the store, never from Tune's own checkpoint, so a stopped study can also be
    extended.
    """

    def __init__(
        self,
        storage: Path,
        *,
        resources: Resources,
        address: str | None = None,
        at_once: int | None = None,
        verbose: bool = False,
    ) -> None:
        self._storage = storage
        self._resources = resources
        self._address = address
        self._at_once = at_once
        self._verbose = verbose
        self._session = ExitStack()
        self._end = _EndWhenTold()
        self.backend: Backend = RayBackend(storage / "train")
        self.concurrent = 1
        self.start_seconds: float | None = None

    def __enter__(self) -> TuneLauncher:
        drivers, began = self._at_once or os.cpu_count() or 1, time.monotonic()
        self._session.enter_context(ray_session(address=self._address, trial_drivers=drivers, verbose=self._verbose))
        try:
            self.concurrent = self._room()
        except BaseException:
            self._session.close()
            raise
        if self._address is None:
            self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._session.close()

    def _room(self) -> int:
        if self._at_once is not None and self._address is not None:
            return self._at_once  # a named cluster may grow
        room = trials_at_once(self._resources, cluster_nodes())
        return room if self._at_once is None else self._at_once

    def stop(self) -> None:
        """Make a launch that runs in another thread end soon; its trials end with the session."""
        self._end.told = True

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
                callbacks=[self._end],
            ),
        )
        reasons = dict.fromkeys(by_key, LOST_DRIVER)
        results = tuner.fit()
        for result in (results[number] for number in range(len(results))):
            if result.config is not None and result.metrics is not None:
                # Tune fills in metrics of its own for a trial that never reported.
                reasons[result.config["trial"]] = result.metrics.get("reason", LOST_DRIVER)
        return {key: reason for key, reason in reasons.items() if reason}


class _Stopped(BaseException):
    """Leaves Tune's loop at once: for an Exception, Tune first waits for its trials."""


class _EndWhenTold(tune.Callback):
    told = False

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.told:
            raise _Stopped


def trials_at_once(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials' workers the nodes hold at the same time; as many as there are drivers where nodes come later.

    Raises PreflightError when not even one trial's workers fit.
    """
    need = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    workers = sum(min(int(node.get(kind, 0.0) // amount) for kind, amount in need.items() if amount) for node in nodes)
    if workers >= resources.numbers_of_workers()[-1]:
        return max(workers // resources.workers, 1)
    drivers = int(sum(node.get(TRIAL_DRIVER, 0.0) for node in nodes))
    if drivers and not any(node.get("CPU", 0.0) for node in nodes):
        return drivers  # a head that works for nobody: its workers come when they are asked for
    have = "; ".join(", ".join(f"{node.get(kind, 0.0):g} {kind}" for kind in need) for node in nodes)
    wants = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
    raise PreflightError(
        f"one cell needs {resources.workers} x ({wants}), each within one node, and the nodes have: {have}. Lower "
        f"--workers, --cpus-per-worker or --gpus-per-worker, name a larger cluster with --address, or, if the cluster "
        f"will grow, say with --cells-at-once for how many cells"
    )
