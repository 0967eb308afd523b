"""Has training left the numbers? Losses and gradients are watched without making the host wait for a GPU at each."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.types import PerExample, Steps

CHECK_EVERY_STEPS = 10  # looking at a loss makes the host wait for a GPU: done once for that many steps


class TrainingDiverged(ArithmeticError):
    """A loss or a gradient is not a finite number any more; no state from then on is worth keeping."""

    def __init__(self, step: int, loss: float, grad_norm: float, t: tuple[int, ...]) -> None:
        super().__init__(step, loss, grad_norm, t)
        self.step, self.loss, self.grad_norm, self.t = step, loss, grad_norm, t

    def __str__(self) -> str:
        at = f" at t = {', '.join(map(str, self.t))}" if self.t else ""
        return (
            f"training diverged in step {self.step}: the loss is {self.loss}{at}, "
            f"the gradient's norm {self.grad_norm}; a smaller train.lr may help"
        )


class DivergenceWatch:
    """Notices losses and gradients that are not finite, a few steps late but before they can be saved."""

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def add(
        self, step: int, *, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""], t: Steps, objective: PerExample
    ) -> None:
        """Remember a step; every CHECK_EVERY_STEPS of them are looked at together."""
        self._unread.append((step, torch.stack([loss, grad_norm]), t, objective))
        if len(self._unread) >= CHECK_EVERY_STEPS:
            self.check()

    def check(self) -> None:
        """Look at all steps not looked at yet. Raises TrainingDiverged for the first bad one, now and ever after."""
        if not self._unread or torch.stack([numbers for _, numbers, _, _ in self._unread]).isfinite().all():
            self._unread = []
            return
        step, numbers, t, objective = next(entry for entry in self._unread if not entry[1].isfinite().all())
        loss, grad_norm = numbers.tolist()
        raise TrainingDiverged(step, loss, grad_norm, tuple(t[~objective.isfinite()].tolist()))
