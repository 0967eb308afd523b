"""cluster/gpu.yaml, checked offline by Ray's own validation and for what it promises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.fixture
def gpu() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "gpu.yaml").read_text())


def validate(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_configuration(gpu: dict[str, Any]) -> None:
    validate(gpu)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 8),
        (("available_node_types", "gpu_worker", "min_worker"), 0),
        (("max_workers",), "eight"),
        (("head_node_type",), "haed"),
        (("provider", "type"), "awz"),
    ],
)
def test_a_mistake_would_be_noticed(gpu: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *parents, last = path
    inner = gpu
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(Exception):  # noqa: B017, PT011 - jsonschema's, ValueError or NotImplementedError, by mistake
        validate(gpu)


def test_drivers_of_trials_live_on_the_head_and_training_does_not(gpu: dict[str, Any]) -> None:
    types = gpu["available_node_types"]
    head = types[gpu["head_node_type"]]
    assert head["resources"]["trial_driver"] >= 1
    assert head["resources"]["CPU"] == 0
    assert all("trial_driver" not in types[name]["resources"] for name in types if name != gpu["head_node_type"])


def test_workers_are_spot_machines_with_gpus_that_come_and_go(gpu: dict[str, Any]) -> None:
    worker = gpu["available_node_types"]["gpu_worker"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["resources"]["GPU"] == 1
    assert worker["min_workers"] == 0
    assert 0 < gpu["idle_timeout_minutes"] <= 30


def test_nobody_without_the_token_gets_in(gpu: dict[str, Any]) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in gpu[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in (CLUSTER / "gpu.yaml").read_text()
