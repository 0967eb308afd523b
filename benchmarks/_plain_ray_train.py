"""What do people write today? A Ray Train script with an MLflow callback: the one whose losses ours is held beside.

It is the careful version: one MLflow run from the driver, so that a restarted worker goes on in it; checkpoints of
weights, average, optimizer and step through ray.train.report; restarts by FailureConfig. Data, network and loss are
ours, so that nothing but the way of keeping state differs.

    PYTHONPATH=. python benchmarks/_plain_ray_train.py HOME IMAGES STEPS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch.utils.data import DataLoader, TensorDataset

from diffusion.gaussian import build_schedule
from diffusion.losses import diffusion_losses
from pipelines.presets import tiny
from pipelines.train import build_network

EVERY = 10  # steps between two values in MLflow, and
KEPT_EVERY = 50  # between two checkpoints


def train_func(config: dict[str, Any]) -> None:
    """What runs on the worker."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlflow.set_tracking_uri(config["tracking_uri"])
    client, base = mlflow.MlflowClient(), tiny()
    schedule = build_schedule(base.diffusion)
    model = prepare_model(build_network(base.model, base.diffusion, seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.train.lr, weight_decay=0.0)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            kept = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        average, step = kept["average"], kept["step"]
    images = torch.load(config["images"], weights_only=True)
    loader = DataLoader(TensorDataset(images), batch_size=base.train.batch_size, shuffle=True, drop_last=True)
    while step < config["steps"]:
        for (x_start,) in loader:
            if step >= config["steps"]:
                break
            t = torch.randint(0, base.diffusion.num_timesteps, (len(x_start),))
            terms = diffusion_losses(
                base.diffusion, schedule, model, x_start=x_start, t=t, eps=torch.randn_like(x_start)
            )
            loss = terms.objective.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, tensor in model.state_dict().items():
                average[name].lerp_(tensor, 1 - base.train.ema.rates[0])
            step += 1
            if step % EVERY == 0:
                client.log_metric(config["run_id"], "loss", float(loss), step=step)
            if step % KEPT_EVERY == 0 or step == config["steps"]:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step,
                }
                with tempfile.TemporaryDirectory() as folder:
                    torch.save(state, Path(folder) / "state.pt")
                    ray.train.report({"loss": float(loss)}, checkpoint=Checkpoint.from_directory(folder))


def main(home: str, images: str, steps: str) -> None:
    """Train, and write the average's file; called again, it goes on from Ray Train's own checkpoints."""
    where = Path(home)
    uri = f"sqlite:///{where / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name("plain")
    made = None if found else client.create_experiment("plain", artifact_location=(where / "mlartifacts").as_uri())
    experiment = found.experiment_id if found else made
    run_id = client.create_run(experiment).info.run_id
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        train_func,
        train_loop_config={"tracking_uri": uri, "run_id": run_id, "images": images, "steps": int(steps)},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name="plain", storage_path=str(where / "ray"), failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )  # fmt: skip
    result = trainer.fit()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True)
    torch.save(state["average"], where / "average.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
