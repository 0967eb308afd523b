"""What did the last few steps of training measure? Means for the journal, read from the device once a window."""

from __future__ import annotations

import base64
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.checkpoints import Network
from diffusion.flops import TRAINING, cost_of, peak_flops
from diffusion.train_config import TrainConfig
from diffusion.train_state import TrainState
from diffusion.training import StepMetrics, means_of, quartiles_of


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
        device = self._rows[-1].rows.device  # those of before a resume are on the CPU
        rows = torch.cat([row.rows.to(device) for row in self._rows], dim=1)
        means = means_of(rows).tolist()
        *sums, weights = quartiles_of(rows, num_timesteps=self._rows[0].num_timesteps).tolist()
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
            norms["grad_norm"] = float(torch.stack([norm.to(learned[-1].device) for norm in learned]).mean())
        if last.loss_scale_log2 is not None:
            norms["loss_scale_log2"] = last.loss_scale_log2
            norms["skipped_steps"] = float(len(self._rows) - len(learned))
        return norms


def _row_to_json(row: StepMetrics) -> dict[str, Any]:
    """Bits as they are."""
    return {
        "names": row.names,
        "rows": base64.b64encode(row.rows.cpu().numpy().astype("<f8").tobytes()).decode(),
        "num_timesteps": row.num_timesteps,
        "grad_norm": 0.0 if row.skipped else float(row.grad_norm),
        "lr": row.lr,
        "loss_scale_log2": row.loss_scale_log2,
        "skipped": row.skipped,
    }


def _row_from_json(said: Mapping[str, Any]) -> StepMetrics:
    rows = np.frombuffer(base64.b64decode(said["rows"]), "<f8").reshape(2 + len(said["names"]), -1)
    return StepMetrics(
        names=tuple(said["names"]),
        rows=torch.from_numpy(rows.astype(np.float64)),
        num_timesteps=said["num_timesteps"],
        grad_norm=torch.tensor(said["grad_norm"]),
        lr=said["lr"],
        loss_scale_log2=said["loss_scale_log2"],
        skipped=said["skipped"],
    )


def _norm(parameters: Sequence[Tensor]) -> float:
    norms: Sequence[Tensor] = torch._foreach_norm([each.detach() for each in parameters], 2)
    return float(torch.stack(list(norms)).double().norm())
