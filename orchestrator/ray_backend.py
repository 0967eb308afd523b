"""How does work run on Ray? One program on many workers is a Ray Train run; many items are a pool of Ray actors."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as global_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
)
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import DistBackendError, DistNetworkError

from orchestrator.backend import OnResult, Resumable, SpmdContext
from orchestrator.errors import Interrupted, PreflightError
from orchestrator.ray_worker import know_own_cluster
from orchestrator.signals import Background
from orchestrator.step import Resources
from orchestrator.stopping import Preempted

TRIAL_DRIVER = "trial_driver"
"""Custom resource of the node on which trial drivers run: the head, which no spot notice takes away."""

ENVIRONMENT = {
    # Every synchronous call into Train's controller waits for its next poll: 2 s apart by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # One process less for every training: what it would tell of a coming spot notice, nobody here listens to.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the older reporter can be silenced: the study shows its own progress
    # Spinning OpenMP threads on a busy machine make a small training step 25-50 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}
LOST_WORKER = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
LOST_PEER = (DistBackendError, DistNetworkError)
GLOO = "gloo/transport/"
"""What the survivors of a lost worker raise in their collective operations; gloo's errors have no type of their own."""
PEER_SPEAKS_FIRST_SECONDS = 3.0
ORPHANS_WITHIN_SECONDS = 15.0
LISTENING_WITHIN_SECONDS = 10.0
MORE_WITHIN_SECONDS, GROW_SECONDS = 20.0, 10.0
"""Where fewer workers will do: how long more are waited for, and how often room for more is looked for."""
QUIET_LOGGERS = ("ray", "ray.train", "ray.tune", "ray.data", "ray._private.worker")


@contextmanager
def ray_session(*, address: str | None, trial_drivers: int, verbose: bool = False) -> Iterator[None]:
    """Ray for the time of the block: connected to `address`, else started here; left or shut down after.

    Raises PreflightError when the named cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        for logger in QUIET_LOGGERS:
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # what went wrong, the study says itself
    try:
        with _keeping_signal_handlers():
            if address:
                _connect(address, verbose=verbose)
            else:
                _start(trial_drivers, verbose=verbose)
        yield
    finally:
        ray.shutdown()


def cluster_nodes() -> list[dict[str, float]]:
    """What each node of the cluster has: CPU, GPU and custom resources."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def head_resource() -> dict[str, float]:
    """Where trial drivers run: the head's trial_driver resource, or, in a cluster without one, a sliver of its head."""
    if TRIAL_DRIVER in ray.cluster_resources():
        return {TRIAL_DRIVER: 1.0}
    return {"node:__internal_head__": 0.001}


class RayBackend:
    """spmd as a Ray Train run, map as a pool of actors. `storage` is where Ray keeps its own bookkeeping.

    worker_losses_allowed: so often may workers be lost before work that keeps nothing meanwhile is given up.
    """

    def __init__(self, storage: Path, *, worker_losses_allowed: int = 8) -> None:
        self._storage = storage
        self._worker_losses_allowed = worker_losses_allowed
        self._pool: list[Any] = []

    def spmd(
        self, fn: Callable[[SpmdContext, Any], Any], payload: Any, *, name: str, resources: Resources,
        resumable: Resumable | None = None,
    ) -> Any:  # fmt: skip
        """Run fn on a group of workers (gloo on CPUs, NCCL on GPUs); see Backend.spmd."""
        self.release()
        losses, furthest = 0, -math.inf
        while True:
            workers = _room(resources)
            try:
                return _run(self._trainer(fn, payload, name, resources, workers), resources, workers, resumable)
            except _PausedForMore:
                continue
            except TrainingFailedError as error:
                # Its frames hold the run's controller, and with it the CPUs of workers that are no longer needed.
                failure = error.with_traceback(None)
            own = raised_by_fn(failure)
            if own is not None:
                raise own
            if isinstance(failure, ControllerError):
                _free_orphaned_groups()
            if resumable is not None and (now := resumable.kept()) > furthest:
                losses, furthest = 0, now
            losses += 1
            if losses > self._worker_losses_allowed:
                raise failure

    def map(
        self, fn: Callable[[Any], Any], items: Sequence[Any], *, resources: Resources, on_result: OnResult | None = None
    ) -> list[Any]:
        """Run fn over a pool of actors; see Backend.map. The pool stays for the next call: processes start slowly."""
        size = min(resources.workers, len(items))
        self._pool += [self._actor(resources) for _ in range(size - len(self._pool))]
        return _drain(self._pool[:size], fn, items, on_result)

    def release(self) -> None:
        """End the pool, so that its CPUs and GPUs are free."""
        pool, self._pool = self._pool, []
        for actor in pool:
            ray.kill(actor)

    def _actor(self, resources: Resources) -> Any:
        return (
            ray.remote(_MapActor)
            .options(
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=self._worker_losses_allowed,
                # Outside the trial driver's own placement group, which holds no CPU.
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
            )
            .remote()
        )

    def _trainer(
        self, fn: Callable[[SpmdContext, Any], Any], payload: Any, name: str, resources: Resources, workers: int
    ) -> TorchTrainer:
        # Where fewer would do, a group that finds no room is given up, and room is looked for anew.
        controller_failures = 60 if resources.min_workers is None else 0
        return TorchTrainer(
            _on_worker,
            train_loop_config={"fn": fn, "payload": payload},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=_per_worker(resources),
            ),
            run_config=RunConfig(
                name=name.replace("/", "-"),
                storage_path=str(self._storage),
                # A lost worker and an exception in fn look alike to Ray's own retries; spmd() tells them apart.
                # The controller's limit counts minutes of waiting for workers that an autoscaler has yet to start.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=controller_failures),
            ),
        )


def _per_worker(resources: Resources) -> dict[str, float]:
    need = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {kind: float(amount) for kind, amount in need.items() if amount}


def _room(resources: Resources) -> int:
    """How many workers to begin with: as many as there is room for soon, and the fewest whenever there is."""
    *more, fewest = resources.numbers_of_workers()
    return next((number for number in more if _fits(resources, number, seconds=MORE_WITHIN_SECONDS)), fewest)


def _fits(resources: Resources, workers: int, *, seconds: float) -> bool:
    """Whether the cluster has room for so many workers more, or gets it in time."""
    group = placement_group([_per_worker(resources)] * workers)
    try:
        return bool(group.wait(seconds))
    finally:
        remove_placement_group(group)


class _PausedForMore(Exception):
    """All is kept, and there is room for more workers."""


def _run(trainer: TorchTrainer, resources: Resources, workers: int, resumable: Resumable | None) -> Any:
    """Rank 0's value. Work of fewer workers than there should be is paused once there is room for twice as many."""
    # In the main thread, Ray's handler of SIGINT would keep the controller of a lost group alive.
    work, paused = Background(trainer.fit), False
    while resumable is not None and workers < resources.workers and not work.wait(GROW_SECONDS):
        if _fits(resources, workers, seconds=1.0):
            resumable.pause()  # again and again: work that has not begun yet forgets it
            paused = True
    try:
        return work.value().return_value
    except TrainingFailedError as error:
        if paused and isinstance(raised_by_fn(error), Preempted):
            raise _PausedForMore from None
        raise


class _MapActor:
    def start(self) -> None:
        """Says that this process is up."""

    def run(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return fn(item)


def _drain(
    actors: Sequence[Any], fn: Callable[[Any], Any], items: Sequence[Any], on_result: OnResult | None
) -> list[Any]:
    results: list[Any] = [None] * len(items)
    shared = ray.put(fn)
    waiting, left = iter(enumerate(items)), len(items)
    # An actor gets its first item once it has started: one for which there is no room must not keep any.
    running: dict[Any, tuple[int | None, Any]] = {actor.start.remote(): (None, actor) for actor in actors}
    while left:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        index, actor = running.pop(ready)
        value = _value(ready)
        if index is not None:
            results[index], left = value, left - 1
            if on_result is not None:
                on_result(index, value)
        if (following := next(waiting, None)) is not None:
            running[actor.run.remote(shared, following[1])] = (following[0], actor)
    return results


def _value(ready: Any) -> Any:
    """The value of a finished task; what it raised is raised as it was, without the traceback of its process."""
    try:
        return ray.get(ready)
    except RayTaskError as error:
        raise error.cause from None


def _on_worker(config: dict[str, Any]) -> Any:
    context = get_context()
    spmd = SpmdContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=str(get_device()),
    )
    try:
        return config["fn"](spmd, config["payload"])
    except Exception as error:
        if _lost_a_peer(error):
            time.sleep(PEER_SPEAKS_FIRST_SECONDS)  # the peer may have ended by an error of its own: that is the reason
        raise


def raised_by_fn(error: TrainingFailedError) -> BaseException | None:
    """The exception fn itself raised, on the lowest rank that raised one; None when workers were lost instead."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, RayActorError):
        return None  # a worker was gone before fn could start on it
    if not isinstance(error, WorkerGroupError):
        return error
    failures = [failure for _, failure in sorted(error.worker_failures.items())]
    if any(isinstance(failure, LOST_WORKER) for failure in failures):
        return None  # and what the others say comes from waiting for it
    return next((failure for failure in failures if not _lost_a_peer(failure)), None)


def _lost_a_peer(failure: BaseException) -> bool:
    return isinstance(failure, LOST_PEER) or (isinstance(failure, RuntimeError) and GLOO in str(failure))


def _free_orphaned_groups() -> None:
    """Give back the CPUs and GPUs of a group whose controller ended without doing so.

    A worker that dies while its group starts ends the controller with an error of its own: the group's placement group
    is then not removed, and Ray itself removes it only with the whole job. Waits for the controller to be gone.
    """
    job = ray.get_runtime_context().get_job_id()
    deadline = time.monotonic() + ORPHANS_WITHIN_SECONDS
    while time.monotonic() < deadline:
        gc.collect()  # the frames of the failed run hold the controller, and each other
        groups = [PlacementGroupTableData.FromString(row) for row in _placement_groups()]
        orphans = [
            group
            for group in groups
            if group.creator_actor_dead
            and not ray.ActorID(group.creator_actor_id).is_nil()  # the driver's own groups: Tune's trials
            and not group.is_detached
            and group.creator_job_id.hex() == job
            and group.state != PlacementGroupTableData.REMOVED
        ]
        for orphan in orphans:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(orphan.placement_group_id)))
        if orphans:
            return
        time.sleep(0.2)


def _placement_groups() -> list[bytes]:
    accessor: Any = global_state._connect_and_get_accessor()
    return list(accessor.get_placement_group_table())


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Ray's start replaces what SIGTERM does, first by sys.exit(SIGTERM); what the caller wanted comes back here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise Interrupted(signal.SIGTERM) from None
        raise
    finally:
        for signum, handler in before.items():
            if handler is not None:  # set from outside Python: nothing to give back
                signal.signal(signum, handler)


def _start(trial_drivers: int, *, verbose: bool) -> None:
    try:
        ray.init(
            address="local",
            resources={TRIAL_DRIVER: float(trial_drivers)},
            include_dashboard=True,  # without it, stopping a nested trial early leaks its placement group (ray#54305)
            dashboard_host="127.0.0.1",
            runtime_env={"worker_process_setup_hook": know_own_cluster},
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise PreflightError(
            f"Ray does not start on this machine ({error}). See what it says with --verbose, or name a running "
            f"cluster with --address"
        ) from error
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file():
        token.chmod(0o600)


def _connect(address: str, *, verbose: bool) -> None:
    try:
        _check_listening(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": ENVIRONMENT, "worker_process_setup_hook": know_own_cluster},
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise PreflightError(
            f"no Ray cluster answers at {address!r} ({error}). Start one (`ray start --head`, `ray up`), name another "
            f"with --address or RAY_ADDRESS, or name none: Ray then starts by itself on this machine. A cluster with "
            f"token authentication also needs RAY_AUTH_MODE=token here."
        ) from error


def _check_listening(address: str) -> None:
    """Raises OSError when nobody listens at host:port or ray://host:port; Ray itself would try for a quarter hour."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), LISTENING_WITHIN_SECONDS).close()
