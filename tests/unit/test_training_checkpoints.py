"""A training goes on from its own checkpoints, and from nobody else's that happen to fit."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from diffusion.checkpoints import header_of
from diffusion.gaussian import DiffusionConfig
from diffusion.precision import Precision
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.train_state import TrainState, build_train_state
from diffusion.unet import UNetConfig
from orchestrator.backend import SpmdContext
from orchestrator.step import PROGRESS_FILE
from orchestrator.stopping import Preempted
from pipelines import training_run
from pipelines.held_out import BestByLoss
from pipelines.readers import Batch, Share
from pipelines.train import diffusion_training
from pipelines.trained import TrainStepConfig
from pipelines.training_parts import HeldOut, Place
from pipelines.training_run import TrainingRun

CONFIG = TrainStepConfig(
    model=UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(8,),
        num_heads=2,
    ),
    diffusion=DiffusionConfig(num_timesteps=20),
    train=TrainConfig(images=64, batch_size=8),
    seed=0,
)  # fmt: skip


class Black(nullcontext):
    """A reader of black images."""

    def batch(self, step: int, share: Share) -> Batch:
        labels = torch.arange(CONFIG.train.batch_size)[share]
        return Batch(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels)

    def close(self) -> None:
        pass


def training(output: Path, config: TrainStepConfig) -> TrainingRun:
    place = Place(output, str(output / "checkpoints"), None, "", checkpoint_seconds=1000.0, checkpoint_steps=None)
    alone = SpmdContext(rank=0, world_size=1, local_rank=0, device="cpu")
    return TrainingRun(diffusion_training(config, "cpu"), alone, place, Black())


def test_a_checkpoint_says_which_network_it_is_of(tmp_path: Path) -> None:
    run = training(tmp_path, CONFIG)
    run.train()
    (state,) = tmp_path.glob("checkpoints/**/state.safetensors")
    assert '"attention_layout": "legacy"' in header_of(state.read_bytes())["network"]
    assert load(state.read_bytes()).keys() == run.state.tensors().keys()
    training(tmp_path, CONFIG).resume()


def test_a_checkpoint_of_another_layout_of_attention_is_refused_though_it_fits(tmp_path: Path) -> None:
    training(tmp_path, CONFIG).train()
    other = replace(CONFIG, model=replace(CONFIG.model, attention_layout="new"))
    with pytest.raises(ValueError, match="its checkpoint is of another network"):
        training(tmp_path, other).resume()


def curve(output: Path) -> list[dict[str, float]]:
    """Every line of the journal, but for how fast it went."""
    lines = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    speeds = ("images_per_second", "data_wait", "memory_mib", "tflops")
    return [{key: value for key, value in line["metrics"].items() if key not in speeds} for line in lines]


def train_until(step: int | None, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and stop at a step when one is named."""
    with monkeypatch.context() as patched:
        patched.setattr(training_run, "PROGRESS_SECONDS", 0.0)
        patched.setattr(training_run, "asked_to_stop", lambda _, began_by: run.state.step == step)
        with nullcontext() if step is None else pytest.raises(Preempted, match="run the same command again"):
            run.train()


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_training_that_is_stopped_in_the_middle_of_a_window_journals_what_one_that_was_not_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    config = replace(
        CONFIG, train=replace(CONFIG.train, images=20 * 8, precision=precision, reduction=TreeConfig(shards=1))
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    training(tmp_path / "whole", config).train()
    for stop in (3, 14, None):
        run = training(tmp_path / "stopped", config)
        run.resume()
        train_until(stop, run, monkeypatch)
    assert len(curve(tmp_path / "whole")) == 2
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    whole, stopped = (max(tmp_path.glob(f"{name}/checkpoints/step-*/state.*")) for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_who_goes_on_says_from_the_start_what_is_kept_and_removes_what_a_killed_writer_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path, CONFIG)
    run.resume()
    train_until(3, run, monkeypatch)
    left = [tmp_path / ".model.safetensors.1234", tmp_path / "..model.safetensors.1234.5678.partial"]
    for file in left:
        file.write_bytes(b"half")
    run = training(tmp_path, CONFIG)
    run.resume()
    assert not any(file.exists() for file in left)
    train_until(4, run, monkeypatch)
    facts = json.loads((tmp_path / PROGRESS_FILE).read_text())["facts"]
    assert facts["saved"] == 3 * CONFIG.train.batch_size


def test_a_metric_that_is_nan_is_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(HeldOut):
        def after(self, state: TrainState) -> dict[str, float]:
            return {"odd": math.nan} if state.step == 2 else {}

    for stop in (3, None):
        run = training(tmp_path, CONFIG)
        run.training = replace(run.training, held_out=Odd())
        run.resume()
        train_until(stop, run, monkeypatch)
    assert [line["odd"] for line in curve(tmp_path)] == ["nan"]


def test_a_held_out_loss_that_was_nan_is_beaten_by_any_number_and_beats_none(monkeypatch: pytest.MonkeyPatch) -> None:
    built = diffusion_training(CONFIG, "cpu")
    state = build_train_state(CONFIG.train, built.network, num_timesteps=CONFIG.diffusion.num_timesteps)
    best = BestByLoss(
        built.network, built.objective, np.zeros(0), np.zeros(0), prepare=torch.Tensor.float, every_steps=1,
        precision="float32", device="cpu",
    )  # fmt: skip
    losses = iter([math.nan, 3.0, math.nan, 2.0, 2.5])
    monkeypatch.setattr(BestByLoss, "_measured", lambda _: {"held_out_loss": next(losses)})
    chosen = []
    for _ in range(5):
        best.after(state)
        chosen.append(best.metrics()["held_out_loss"])
    assert chosen[1:] == [3.0, 3.0, 2.0, 2.0]
