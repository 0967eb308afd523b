"""cluster/gpu.yaml as far as it can be checked without AWS, and what a job takes with it to a cluster."""

from __future__ import annotations

import copy
import re
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZipFile

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
ROOMS = ("orchestrator", "diffusion", "pipelines")
MEGABYTE = 1_000_000
UNKNOWN = "Additional properties are not allowed"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a check of a configuration must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def gpu() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "gpu.yaml").read_text())


def validate(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_configuration(gpu: dict[str, Any]) -> None:
    validate(gpu)


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        (("max_worker",), 8, jsonschema.ValidationError, UNKNOWN),
        (("available_node_types", "gpu_worker", "min_worker"), 0, jsonschema.ValidationError, UNKNOWN),
        (("provider", "security_group", "IpPermission"), [], jsonschema.ValidationError, UNKNOWN),
        (("max_workers",), "eight", jsonschema.ValidationError, "not of type"),
        (("available_node_types", "head", "resources", "trial_driver"), 0.5, jsonschema.ValidationError, "not of type"),
        (("available_node_types", "gpu_worker", "min_workers"), 9, ValueError, "max_workers"),
        (("head_node_type",), "haed", ValueError, "head_node_type"),
        (("provider", "type"), "awz", NotImplementedError, "awz"),
    ],
)
def test_a_mistake_is_refused(
    gpu: dict[str, Any], path: tuple[str, ...], value: object, error: type[Exception], message: str
) -> None:
    *parents, last = path
    inner = gpu
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    with pytest.raises(error, match=message):
        validate(gpu)


def misfits(node_config: dict[str, Any]) -> str:
    """What EC2's own description of RunInstances, as boto3 carries it, finds wrong: Ray does not look inside."""
    service = botocore.session.get_session().get_service_model("ec2")
    request = {"MinCount": 1, "MaxCount": 1, **node_config}
    return ParamValidator().validate(request, service.operation_model("RunInstances").input_shape).generate_report()


@pytest.mark.parametrize("node_type", ["head", "gpu_worker"])
def test_ec2_knows_every_setting_of_a_machine(gpu: dict[str, Any], node_type: str) -> None:
    node_config = gpu["available_node_types"][node_type]["node_config"]
    assert misfits(node_config) == ""
    assert "MarketTyp" in misfits({**node_config, "InstanceMarketOptions": {"MarketTyp": "spot"}})


def test_drivers_of_trials_live_on_the_head_and_training_does_not(gpu: dict[str, Any]) -> None:
    types = gpu["available_node_types"]
    head = types.pop(gpu["head_node_type"])
    assert head["resources"]["trial_driver"] >= 1
    assert head["resources"]["CPU"] == head["resources"]["GPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all("trial_driver" not in worker["resources"] for worker in types.values())


def test_workers_are_spot_machines_with_gpus_that_come_and_go(gpu: dict[str, Any]) -> None:
    worker = gpu["available_node_types"]["gpu_worker"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["resources"]["GPU"] >= 1
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == gpu["max_workers"]
    assert 0 < gpu["idle_timeout_minutes"] <= 30


def test_ray_down_leaves_no_machine_that_is_billed(gpu: dict[str, Any]) -> None:
    assert gpu["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_asks_for_the_token(gpu: dict[str, Any], commands: str) -> None:
    (start,) = (command for command in gpu[commands] if "ray start" in command)
    assert "RAY_AUTH_MODE=token ray start" in start
    assert "/home/ubuntu/.ray/auth_token" in gpu["file_mounts"]


def test_the_dashboard_is_reached_through_the_head_alone(gpu: dict[str, Any]) -> None:
    start = " ".join(gpu["head_start_ray_commands"])
    assert re.findall(r"--dashboard-host[= ](\S+)", start) == ["127.0.0.1"]
    assert "0.0.0.0" not in (CLUSTER / "gpu.yaml").read_text()
    assert "security_group" not in gpu["provider"]  # it could only open more ports than Ray does


def test_nodes_install_the_versions_this_project_is_tested_with(gpu: dict[str, Any]) -> None:
    copied = {there: here for there, here in gpu["file_mounts"].items() if not here.startswith("~")}
    assert all((ROOT / here).is_file() for here in copied.values())
    constraints = next(there for there, here in copied.items() if here == "./constraints.txt")
    (install,) = (command for command in gpu["setup_commands"] if "pip install" in command)
    assert f"-c {constraints.replace('/home/ubuntu', '~')} " in install


def test_every_blank_is_explained() -> None:
    blanks = set(re.findall(r"[a-z]+-CHANGE-ME[-a-z]*", (CLUSTER / "gpu.yaml").read_text()))
    assert len(blanks) == 3
    assert blanks == set(re.findall(r"[a-z]+-CHANGE-ME[-a-z]*", (CLUSTER / "README.md").read_text()))


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """What Ray uploads of a checkout in which work was done; without .gitignore's help and Ray's own defaults."""
    checkout = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns(".venv", ".git", "artifacts", ".*_cache", ".hypothesis", "build", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=left_out, dirs_exist_ok=True)
    for name in (
        ".venv/lib/libtorch.so",
        ".git/objects/pack/all.pack",
        "artifacts/train/0123456789abcdef/model.safetensors",
        "docs/results/large.png",
        "tests/golden/data/large.npz",
        ".mypy_cache/3.11/cache.db",
        ".hypothesis/constants/large",
        "orchestrator/__pycache__/store.cpython-311.pyc",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        with (checkout / name).open("wb") as file:
            file.truncate(50 * MEGABYTE)
    package = tmp_path_factory.mktemp("upload") / "working_dir.zip"
    create_package(str(checkout), package, include_gitignore=False)
    return ZipFile(package)


def test_a_job_uploads_less_than_five_megabytes(upload: ZipFile) -> None:
    assert upload.filename is not None
    assert Path(upload.filename).stat().st_size < 5 * MEGABYTE
    assert not [name for name in upload.namelist() if re.match(r"artifacts|docs|tests|\.(git|venv)/", name)]


def test_a_job_uploads_all_of_the_code(upload: ZipFile) -> None:
    code = {str(file.relative_to(ROOT)) for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert len(code) > 40
    assert code <= set(upload.namelist())
