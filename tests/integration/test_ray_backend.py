"""The Ray backend against a real local Ray: groups of workers, pools of actors, and what happens when one dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import WorkerGroupError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from orchestrator.backend import SpmdContext
from orchestrator.ray_backend import TRIAL_DRIVER, RayBackend, raised_by_fn
from orchestrator.step import Resources

pytestmark = pytest.mark.ray


def sum_of_ranks(spmd: SpmdContext, payload: dict[str, Any]) -> dict[str, Any]:
    total = torch.tensor([float(spmd.rank + 1)])
    dist.all_reduce(total)
    return {"sum": total.item(), "world_size": spmd.world_size, "device": spmd.device, "given": payload["given"]}


def die_once(spmd: SpmdContext, payload: dict[str, str]) -> str:
    marker = Path(payload["marker"])
    if not marker.exists():
        marker.write_text("first life")
        os.kill(os.getpid(), signal.SIGKILL)
    return "second life"


def lose_a_peer_once(spmd: SpmdContext, payload: dict[str, str]) -> str:
    marker, total = Path(payload["marker"]), torch.ones(1)
    for _ in range(50):
        dist.all_reduce(total)
    if spmd.rank == 1 and not marker.exists():
        marker.write_text("first life")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(total)
    return "second life"


def environment(name: str) -> str | None:
    return os.environ.get(name)


def fail_for(item: int) -> int:
    if item == 2:
        raise ValueError("item 2 is wrong")
    return item


def refuse(spmd: SpmdContext, payload: dict[str, str]) -> None:
    with Path(payload["calls"]).open("a") as calls:
        calls.write("called\n")
    raise ValueError("the data are wrong")


def refuse_on_rank_1(spmd: SpmdContext, payload: dict[str, str]) -> None:
    dist.all_reduce(torch.ones(1))
    if spmd.rank == 1:
        raise ValueError("rank 1 is wrong")
    dist.all_reduce(torch.ones(1))


def square_or_die_once(item: tuple[int, str]) -> int:
    number, marker = item
    if number == 3 and not Path(marker).exists():
        Path(marker).write_text("first life")
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_workers_of_one_group_reduce_together_and_rank_0_answers(local_ray: None, tmp_path: Path) -> None:
    answer = RayBackend(tmp_path).spmd(sum_of_ranks, {"given": 7}, name="sum", resources=Resources(workers=2))
    assert answer == {"sum": 3.0, "world_size": 2, "device": "cpu", "given": 7}


def test_a_killed_worker_is_replaced_and_leaves_its_cpus_to_others(local_ray: None, tmp_path: Path) -> None:
    payload, cpus = {"marker": str(tmp_path / "marker")}, ray.cluster_resources()["CPU"]
    a_trials = placement_group([{TRIAL_DRIVER: 1.0}])
    assert RayBackend(tmp_path).spmd(die_once, payload, name="die", resources=Resources()) == "second life"
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    assert placement_group_table(a_trials)["state"] == "CREATED"
    remove_placement_group(a_trials)


def test_a_worker_knows_the_cluster_it_belongs_to(local_ray: None, tmp_path: Path) -> None:
    (address,) = RayBackend(tmp_path).map(environment, ["RAY_ADDRESS"], resources=Resources())
    assert address == ray.get_runtime_context().gcs_address


def test_what_the_others_say_of_a_lost_worker_is_not_taken_for_an_error_of_theirs(
    local_ray: None, tmp_path: Path
) -> None:
    payload, resources = {"marker": str(tmp_path / "marker")}, Resources(workers=2)
    assert RayBackend(tmp_path).spmd(lose_a_peer_once, payload, name="peer", resources=resources) == "second life"


def test_a_survivor_that_is_heard_before_its_lost_peer_raised_nothing_of_its_own() -> None:
    gloo = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    own = RuntimeError("the data are wrong")
    assert raised_by_fn(WorkerGroupError("failed", {0: gloo})) is None
    assert raised_by_fn(WorkerGroupError("failed", {0: gloo, 1: own})) is own


def test_an_exception_of_one_worker_is_raised_and_not_what_the_others_say_of_its_loss(
    local_ray: None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="rank 1 is wrong"):
        RayBackend(tmp_path).spmd(refuse_on_rank_1, {}, name="one", resources=Resources(workers=2))


def test_an_exception_of_an_item_is_raised_as_it_is(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^item 2 is wrong$"):
        RayBackend(tmp_path).map(fail_for, range(4), resources=Resources())


def test_workers_for_which_there_is_no_room_hold_nothing_up(local_ray: None, tmp_path: Path) -> None:
    room = int(ray.cluster_resources()["CPU"])
    backend = RayBackend(tmp_path)
    numbers = list(range(3 * room))
    assert backend.map(abs, numbers, resources=Resources(workers=room + 1)) == numbers
    backend.release()


def test_an_exception_of_the_work_itself_is_raised_as_it_is_and_not_retried(local_ray: None, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with pytest.raises(ValueError, match="the data are wrong"):
        RayBackend(tmp_path).spmd(refuse, {"calls": str(calls)}, name="refuse", resources=Resources())
    assert calls.read_text().splitlines() == ["called"]


def test_map_keeps_the_order_and_an_item_survives_its_actor(local_ray: None, tmp_path: Path) -> None:
    seen: list[int] = []
    items = [(number, str(tmp_path / "marker")) for number in range(6)]
    squares = RayBackend(tmp_path).map(
        square_or_die_once, items, resources=Resources(workers=2), on_result=lambda index, value: seen.append(index)
    )
    assert squares == [0, 1, 4, 9, 16, 25]
    assert sorted(seen) == list(range(6))
