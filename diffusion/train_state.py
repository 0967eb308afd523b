"""What does one step of training hand to the next? All of it: what is saved and loaded goes on bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion import fused
from diffusion.divergence import DivergenceWatch
from diffusion.ema import Ema
from diffusion.loss_scale import LossScale
from diffusion.sharding import take
from diffusion.timestep_sampler import TimestepSampler, build_timestep_sampler
from diffusion.train_config import TrainConfig
from diffusion.types import PerExample, Steps

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, in torch's words


class TrainState:
    """All that one step hands to the next. Equal on all workers, and complete: what is saved resumes bit by bit."""

    def __init__(
        self, config: TrainConfig, model: nn.Module, optimizer: torch.optim.AdamW, timestep_sampler: TimestepSampler
    ) -> None:
        self.config = config
        self.model = model
        self.parameters = list(model.parameters())
        """The model's, in order: walking through its modules at every step would take milliseconds."""
        self.dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        """Whether it draws numbers of its own while it is trained."""
        self.optimizer = optimizer
        self.ema = Ema(config.ema, model)
        self.timestep_sampler = timestep_sampler
        self.loss_scale = LossScale(config.loss_scale) if config.precision == "fp16" else None
        self.images_seen = 0
        self.step = 0
        self._warm_at = torch.full_like(timestep_sampler.is_warm, -1, dtype=torch.int64)
        self.divergence = DivergenceWatch()

    @property
    def sampler_warm_at(self) -> int | None:
        """images_seen when importance sampling of t began. Reading it waits for the device."""
        seen = int(self._warm_at)
        return None if seen < 0 else seen

    def learn_timesteps(self, t: Steps, losses: PerExample) -> None:
        """Tell the sampler of t what a batch cost, and note when it has heard enough."""
        self.timestep_sampler.update(t, losses)
        begins = self.timestep_sampler.is_warm & (self._warm_at < 0)
        self._warm_at = torch.where(begins, self.images_seen, self._warm_at)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: model.*, ema.*, optimizer.*, sampler.*. Raises TrainingDiverged when it is lost.

        Of a network spread over workers they are spread, too (sharding.py).
        """
        self.divergence.check()
        return {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"ema.{name}": tensor for name, tensor in self.ema.state().items()},
            **{
                f"optimizer.{name}.{moment}": self.optimizer.state[parameter][moment]
                for name, parameter in self.model.named_parameters()
                for moment in MOMENTS
            },
            **{f"sampler.{name}": tensor for name, tensor in self.timestep_sampler.state().items()},
        }

    def meta(self) -> dict[str, Any]:
        """The rest of the state, as JSON has it."""
        return {
            "images_seen": self.images_seen,
            "step": self.step,
            "sampler_warm_at": self.sampler_warm_at,
            "loss_scale_log2": None if self.loss_scale is None else self.loss_scale.log2,
        }

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from what tensors() and meta() gave. Refuses by name what is missing, unknown or misshapen."""
        own = self.tensors()
        _check_same_entries(own, tensors)
        if set(meta) != set(self.meta()):
            raise ValueError(f"training state has meta data {sorted(meta)}, not {sorted(self.meta())}")
        for name, tensor in own.items():
            if not name.startswith("sampler."):
                take(tensor, tensors[name])
        sampler = {name: tensors[f"sampler.{name}"] for name in self.timestep_sampler.state()}
        self.timestep_sampler.load(sampler)
        self.images_seen, self.step = meta["images_seen"], meta["step"]
        warm_at = meta["sampler_warm_at"]
        self._warm_at.fill_(-1 if warm_at is None else warm_at)
        if self.loss_scale is not None:
            self.loss_scale.log2 = meta["loss_scale_log2"]

    def ema_weights(self, rate: float | None = None) -> dict[str, Tensor]:
        """The model's state_dict with averaged parameters: at a rate, or the first. Raises TrainingDiverged if lost."""
        self.divergence.check()
        return {**self.model.state_dict(), **self.ema.weights(rate)}


def build_train_state(config: TrainConfig, model: nn.Module, *, num_timesteps: int) -> TrainState:
    """The state before the first step, around a model that is on its device already.

    Raises ValueError for a setting that this device has not.
    """
    device = next(model.parameters()).device
    if config.norms == "fused":
        if device.type != "cpu":
            raise ValueError("train.norms='fused' is compiled for CPUs, and this model is on a GPU: set it to 'torch'")
        fused.compile()
    if config.tf32 and device.type == "cpu":
        raise ValueError("train.tf32=true is of GPUs, and this model is on a CPU: set it to false")
    model.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]  # no module, no tensor
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over memory; gives the same bits on every run
    )
    for parameter in model.parameters():
        # What AdamW would set up in its first step, so that the state is complete before it too.
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    sampler = build_timestep_sampler(config.timesteps, num_timesteps, device=device)
    return TrainState(config, model, optimizer, sampler)


def _check_same_entries(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    for name in own:
        if name in given and (own[name].shape, own[name].dtype) != (given[name].shape, given[name].dtype):
            problems.append(f"{name} is {_kind(given[name])}, not {_kind(own[name])}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"training state does not fit this model: {'; '.join(problems[:5])}{more}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
