"""What did the last few steps of training measure? Means for the journal, read from the device once a window."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.checkpoints import Network
from diffusion.flops import TRAINING, cost_of, peak_flops
from diffusion.train_config import TrainConfig
from diffusion.train_state import TrainState
from diffusion.training import StepMetrics


@dataclass(frozen=True)
class Machine:
    """What the speed of training is held against."""

    flops_per_image: int
    """Of a training step: forward and gradient."""
    peak: float | None
    """FLOP/s of all workers' devices, where it is known."""
    device: str

    @staticmethod
    def of(network: Network, config: TrainConfig, *, device: str, workers: int) -> Machine:
        """For a network on a device, so many of which train it together."""
        peak = peak_flops(device, config.precision, tf32=config.tf32)
        flops = TRAINING * cost_of(network).flops
        return Machine(flops, None if peak is None else peak * workers, device)

    def memory_mib(self) -> float:
        """The most that this worker has held so far: of the GPU's memory, or of the CPU's."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class MetricsWindow:
    """Means of what the steps measured since the last line of the journal; tensors are read only when it closes."""

    def __init__(self, state: TrainState, machine: Machine, *, with_param_norm: bool) -> None:
        self.last: dict[str, float] = {}
        """What a person wants to see of the window that was closed last; nothing before that."""
        self._state, self._machine, self._with_param_norm = state, machine, with_param_norm
        self._images_seen = state.images_seen
        self._began = time.monotonic()
        self._rows: list[StepMetrics] = []
        self._data_waits: list[float] = []

    @property
    def is_empty(self) -> bool:
        """Whether all that was measured is in the journal."""
        return not self._rows

    def add(self, measured: StepMetrics, *, data_wait: float) -> None:
        """Keep one step's numbers, and the seconds it waited for its images."""
        self._rows.append(measured)
        self._data_waits.append(data_wait)

    def close(self) -> dict[str, float]:
        """The means, also of each quarter of t (_q0 nearest t = 0), and the speed; begins the next window.

        A quarter in which no t was drawn has no mean; a step that float16 skipped has no norm of its gradient.
        """
        now, seen = time.monotonic(), self._state.images_seen
        speed = (seen - self._images_seen) / max(now - self._began, 1e-9)
        means = {**self._losses(), **self._norms(), "images_per_second": speed}
        means["data_wait"] = sum(self._data_waits) / len(self._data_waits)
        means["memory_mib"] = self._machine.memory_mib()
        means["tflops"] = speed * self._machine.flops_per_image / 1e12
        if self._machine.peak is not None:
            means["flop_utilisation"] = speed * self._machine.flops_per_image / self._machine.peak
        self.last = {"loss": round(means["loss"], 4), "img/s": round(speed, 1)}
        self._images_seen, self._began, self._rows, self._data_waits = seen, now, [], []
        return means

    def _losses(self) -> dict[str, float]:
        names = self._rows[0].names
        means = torch.stack([row.means for row in self._rows]).mean(dim=0).tolist()
        *sums, weights = torch.stack([row.quartiles for row in self._rows]).sum(dim=0).tolist()
        quarters = {
            f"{name}_q{number}": of_name[number] / weights[number]
            for name, of_name in zip(names, sums, strict=True)
            for number in range(4)
            if weights[number] > 0
        }
        return {**dict(zip(names, means, strict=True)), **quarters}

    def _norms(self) -> dict[str, float]:
        last, learned = self._rows[-1], [row.grad_norm for row in self._rows if not row.skipped]
        norms = {"lr": last.lr}
        if self._with_param_norm:  # not of a network that is spread: all its workers would have to take part
            norms["param_norm"] = _norm(self._state.model)
        if learned:
            norms["grad_norm"] = float(torch.stack(learned).mean())
        if last.loss_scale_log2 is not None:
            norms["loss_scale_log2"] = last.loss_scale_log2
            norms["skipped_steps"] = float(len(self._rows) - len(learned))
        return norms


def _norm(model: nn.Module) -> float:
    squares: list[Tensor] = [parameter.detach().double().square().sum() for parameter in model.parameters()]
    return math.sqrt(float(torch.stack(squares).sum()))
