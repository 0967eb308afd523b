"""Which weights of a training are the best? Those of the lowest loss on held-out images, at t and noise of their own.

All workers share the images in blocks of a fixed size, so what is measured hangs on no number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.checkpoints import Network
from diffusion.losses import quartile_sums
from diffusion.objectives import Examples, Measured, Objective
from diffusion.precision import Precision, autocast
from diffusion.randomness import HELD_OUT_NOISE, HELD_OUT_TIMESTEP, normal, uniform
from diffusion.reduction import rank, summed, world_size
from diffusion.sharding import take
from diffusion.train_state import TrainState
from pipelines.training_parts import HeldOut

BLOCK = 64
BEST = "held_out.best."
SEED = 0  # of the t and noise of every image: the same whenever it is measured, and in every training


class BestByLoss(HeldOut):
    """Measures held-out images after every so many steps, and keeps the weights that did best."""

    def __init__(
        self, network: Network, objective: Objective, images: np.ndarray, labels: np.ndarray, *,
        prepare: Callable[[Tensor], Tensor], every_steps: int, precision: Precision, device: str,
    ) -> None:  # fmt: skip
        self._network, self._objective = network, objective
        self._images, self._labels = images, labels
        self._prepare, self._every_steps, self._precision, self._device = prepare, every_steps, precision, device
        self._found: dict[str, float] | None = None
        """What was measured with the best weights, and best_at_images."""
        self._best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def after(self, state: TrainState) -> dict[str, float]:
        """See HeldOut: held_out_ and the objective's metrics, of all images and of each quarter of t."""
        if state.step % self._every_steps and state.images_seen < state.config.images:
            return {}
        found = self._measured()
        best = math.nan if self._found is None else self._found["held_out_loss"]
        if found["held_out_loss"] < best or math.isnan(best):
            self._found = {**found, "best_at_images": float(state.images_seen)}
            for name, tensor in self._network.state_dict().items():
                self._best[name].copy_(tensor)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """See HeldOut."""
        return {f"{BEST}{name}": tensor for name, tensor in self._best.items()}

    def meta(self) -> dict[str, Any]:
        """See HeldOut."""
        return {"held_out_best": self._found}

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """See HeldOut. Raises ValueError for a checkpoint of a training that measured no held-out images."""
        if set(tensors) != set(self.tensors()) or set(meta) != set(self.meta()):
            raise ValueError("the checkpoint is of a training without held-out images: remove it")
        for name, tensor in self.tensors().items():
            take(tensor, tensors[name])
        self._found = meta["held_out_best"]

    def chosen(self) -> Mapping[str, Tensor]:
        """See HeldOut: the weights of the lowest loss."""
        return self._best

    def metrics(self) -> dict[str, float]:
        """See HeldOut: what the chosen weights did."""
        assert self._found is not None  # measured at the end, if never before
        return self._found

    @torch.no_grad()
    def _measured(self) -> dict[str, float]:
        """Means over all held-out images, and over those of each quarter of t (_q0 nearest t = 0)."""
        count = len(self._images)
        blocks = [(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
        rows: Tensor | None = None
        names: tuple[str, ...] = ()
        was_training = self._network.training
        self._network.eval()
        for first, stop in blocks[rank() :: world_size()]:
            measured = self._block(first, stop)
            names = ("loss", *measured.shown)
            values = torch.stack([measured.objective, *measured.shown.values()]).double()
            rows = torch.zeros(len(names), count, dtype=torch.float64, device=values.device) if rows is None else rows
            rows[:, first:stop] = values
        self._network.train(was_training)
        assert rows is not None  # as many blocks as workers, at least
        everything = summed(rows)  # each entry is one worker's, and zero of the others
        return _means(names, everything, self._steps(0, count), self._objective.schedule.num_timesteps)

    def _block(self, first: int, stop: int) -> Measured:
        index = torch.arange(first, stop, device=self._device)
        images = self._prepare(torch.from_numpy(self._images[first:stop]).to(self._device))
        labels = torch.from_numpy(self._labels[first:stop]).to(self._device)
        eps = normal(seed=SEED, stream=HELD_OUT_NOISE, step=0, index=index, shape=tuple(images.shape[1:]))
        with autocast(self._device, self._precision):
            examples = Examples(images, index, labels)
            return self._objective(self._network, examples, t=self._steps(first, stop), eps=eps)

    def _steps(self, first: int, stop: int) -> Tensor:
        """t of those images: drawn evenly, image by image."""
        index = torch.arange(first, stop, device=self._device)
        draws = uniform(seed=SEED, stream=HELD_OUT_TIMESTEP, step=0, index=index, count=1)[:, 0]
        return (draws * self._objective.schedule.num_timesteps).long()


def _means(names: tuple[str, ...], rows: Tensor, t: Tensor, num_timesteps: int) -> dict[str, float]:
    *sums, counts = quartile_sums(t, rows, torch.ones_like(rows[0]), num_timesteps=num_timesteps).tolist()
    means = dict(zip((f"held_out_{name}" for name in names), rows.mean(dim=1).tolist(), strict=True))
    quarters = {
        f"held_out_{name}_q{number}": of_name[number] / counts[number]
        for name, of_name in zip(names, sums, strict=True)
        for number in range(4)
        if counts[number]
    }
    return {**means, **quarters}
