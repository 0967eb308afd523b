"""What did the last few steps of training measure? Means for the journal, read from the device once a window."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        self._held_out: dict[str, float] = {}

    def add(self, measured: StepMetrics, *, data_wait: float, held_out: Mapping[str, float]) -> None:
        """Keep one step's numbers, the seconds it waited for its images, and what was measured of held-out ones."""
        self._rows.append(measured)
        self._data_waits.append(data_wait)
        self._held_out |= held_out

    def unfinished(self) -> dict[str, Any]:
        """What is not in the journal yet, as JSON has it: with it a resumed training closes the same window."""
        return {"rows": [_row_to_json(row) for row in self._rows], "held_out": self._held_out}

    def begin(self, unfinished: Mapping[str, Any]) -> None:
        """Go on, from the state as it is now, with what unfinished() gave; speed and waits are of this run alone."""
        self._images_seen, self._began = self._state.images_seen, time.monotonic()
        self._rows = [_row_from_json(row) for row in unfinished["rows"]]
        self._held_out = dict(unfinished["held_out"])

    def close(self) -> dict[str, float]:
        """The means, also of each quarter of t (_q0 nearest t = 0), and the speed; begins the next window.

        A quarter in which no t was drawn has no mean; a step that float16 skipped has no norm of its gradient.
        """
        now, seen = time.monotonic(), self._state.images_seen
        speed = (seen - self._images_seen) / max(now - self._began, 1e-9)
        means = {**self._losses(), **self._norms(), **self._held_out, "images_per_second": speed}
        means["data_wait"] = sum(self._data_waits) / len(self._data_waits)
        means["memory_mib"] = self._machine.memory_mib()
        means["tflops"] = speed * self._machine.flops_per_image / 1e12
        if self._machine.peak is not None:
            means["flop_utilisation"] = speed * self._machine.flops_per_image / self._machine.peak
        self.last = {"loss": round(means["loss"], 4), "img/s": round(speed, 1)}
        self._images_seen, self._began, self._rows, self._data_waits, self._held_out = seen, now, [], [], {}
        return means

    def _losses(self) -> dict[str, float]:
        names = self._rows[0].names
        means = _together([row.means for row in self._rows]).mean(dim=0).tolist()
        *sums, weights = _together([row.quartiles for row in self._rows]).sum(dim=0).tolist()
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
            norms["param_norm"] = _norm(self._state.parameters)
        if learned:
            norms["grad_norm"] = float(_together(learned).mean())
        if last.loss_scale_log2 is not None:
            norms["loss_scale_log2"] = last.loss_scale_log2
            norms["skipped_steps"] = float(len(self._rows) - len(learned))
        return norms


def _together(tensors: list[Tensor]) -> Tensor:
    """Stacked where the newest is: those of before a resume are on the CPU."""
    return torch.stack([tensor.to(tensors[-1].device) for tensor in tensors])


def _row_to_json(row: StepMetrics) -> dict[str, Any]:
    """Floats as they are: JSON's digits bring back the same bits."""
    return {
        "names": row.names,
        "means": row.means.tolist(),
        "quartiles": row.quartiles.tolist(),
        "grad_norm": 0.0 if row.skipped else float(row.grad_norm),
        "lr": row.lr,
        "loss_scale_log2": row.loss_scale_log2,
        "skipped": row.skipped,
    }


def _row_from_json(said: Mapping[str, Any]) -> StepMetrics:
    return StepMetrics(
        names=tuple(said["names"]),
        means=torch.tensor(said["means"], dtype=torch.float64),
        quartiles=torch.tensor(said["quartiles"], dtype=torch.float64),
        grad_norm=torch.tensor(said["grad_norm"]),
        lr=said["lr"],
        loss_scale_log2=said["loss_scale_log2"],
        skipped=said["skipped"],
    )


def _norm(parameters: Sequence[Tensor]) -> float:
    norms: Sequence[Tensor] = torch._foreach_norm([each.detach() for each in parameters], 2, dtype=torch.float64)
    return float(torch.stack(list(norms)).norm())
