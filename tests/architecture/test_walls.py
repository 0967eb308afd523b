"""The walls between the rooms hold, and would be noticed if they did not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.ablation import STUDIES, build
from pipelines.plan import plan
from pipelines.presets import PRESETS

ROOT = Path(__file__).parents[2]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT, cwd=root, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(root)})


def test_every_wall_holds() -> None:
    ended = lint(ROOT)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("orchestrator/table.py", "import diffusion.schedule"),
        ("diffusion/losses.py", "import orchestrator.errors"),
        ("orchestrator/run.py", "import pipelines.data"),
        ("pipelines/train.py", "import ray"),
        ("orchestrator/feed.py", "import mlflow"),
        ("diffusion/metrics/kid.py", "import cleanfid"),
        ("orchestrator/step.py", "import pydantic"),
        ("diffusion/unet.py", "import pyarrow"),
    ],
)
def test_a_forbidden_import_is_noticed(tmp_path: Path, file: str, line: str) -> None:
    for room in ("orchestrator", "diffusion", "pipelines"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    assert lint(tmp_path).returncode == 1


def test_the_mathematics_runs_where_ray_and_mlflow_are_not_installed() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'pyarrow', 'boto3']))"
    modules = ["nll", "sampling", "training", "unet", "metrics.kid", "metrics.inception"]
    imports = "; ".join(f"import diffusion.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"{absent}; {imports}"], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_plans_a_whole_run(preset: str) -> None:
    steps = plan(PRESETS[preset]())
    assert [step.name for step in steps.values()] == list(steps)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_study_builds_at_every_preset(study: str, preset: str) -> None:
    experiment = build(study, preset=preset, seeds=2)
    keys = {step.key for trial in experiment.trials() for step in plan(trial.config).values()}
    cells = 2 * len(experiment.variants)
    # Each cell trains, samples and is measured for itself; the data and its features are everybody's.
    assert len(keys) == 5 * cells + 2


COMMANDS = [path.name for path in sorted((ROOT / "pipelines").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("file", COMMANDS)
def test_every_command_line_explains_itself(file: str) -> None:
    arguments = [sys.executable, str(ROOT / "pipelines" / file), "--help"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 0
    assert "usage" in ended.stdout.lower()


def test_the_steps_of_a_run_each_have_a_command_line() -> None:
    assert set(COMMANDS) == {"ablation.py", "data.py", "evaluate.py", "nll.py", "sample.py", "train.py"}
