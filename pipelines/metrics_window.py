"""What did the last few steps of training measure? Means for the journal, read from the device once a window."""

from __future__ import annotations

import time

import torch

from diffusion.training import StepMetrics


class MetricsWindow:
    """Means of what the steps measured since the last line of the journal; tensors are read only when it closes."""

    def __init__(self, images_seen: int) -> None:
        self.last: dict[str, float] = {}
        """What a person wants to see of the window that was closed last; nothing before that."""
        self._images_seen = images_seen
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

    def close(self, images_seen: int) -> dict[str, float]:
        """The means, also of the loss in each quarter of t (_q0 nearest t = 0), and the speed; begins the next window.

        A quarter in which no t was drawn has no mean.
        """
        rows = [row.means() for row in self._rows]
        means = {key: float(torch.stack([row[key] for row in rows]).mean()) for key in rows[0]}
        sums, weights = torch.stack([row.quartiles for row in self._rows]).sum(dim=0).tolist()
        quarters = {f"loss_q{number}": s / w for number, (s, w) in enumerate(zip(sums, weights, strict=True)) if w > 0}
        now = time.monotonic()
        images_per_second = (images_seen - self._images_seen) / max(now - self._began, 1e-9)
        self.last = {"loss": round(means["loss"], 4), "img/s": round(images_per_second, 1)}
        data_wait = sum(self._data_waits) / len(self._data_waits)
        self._images_seen, self._began, self._rows, self._data_waits = images_seen, now, [], []
        return {**means, **quarters, "images_per_second": images_per_second, "data_wait": data_wait}
