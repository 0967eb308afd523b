"""Trials side by side on a real local Ray: what becomes of a study when one of their drivers is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.experiment import Trial
from orchestrator.ray_tune import LOST_DRIVER, TuneLauncher
from orchestrator.step import Resources

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Config:
    variant: str


def finish_refuse_or_die(trial: Trial) -> None:
    if trial.variant == "refuses":
        raise ValueError("the data are wrong")
    if trial.variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_driver_fails_its_own_trial_alone(local_ray: None, tmp_path: Path) -> None:
    trials = [Trial(variant, 0, Config(variant)) for variant in ("finishes", "refuses", "dies")]
    launcher = TuneLauncher(tmp_path, resources=Resources())
    reasons = launcher.launch(trials, finish_refuse_or_die, name="drivers")
    _, refuses, dies = trials
    assert reasons == {refuses.key: "the data are wrong", dies.key: LOST_DRIVER}
