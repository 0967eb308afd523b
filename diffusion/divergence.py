"""Has training left the numbers? Losses and gradients are watched without making the host wait for a GPU at each."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

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
        self._unread: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, *, rows: Float[Tensor, "rows b"], grad_norm: Float[Tensor, ""]) -> None:
        """Remember a step: t, weight and objective of its examples; many are looked at together."""
        self._unread.append((step, rows[:3], grad_norm))
        if len(self._unread) >= CHECK_EVERY_STEPS:
            self.check()

    def check(self) -> None:
        """Look at all steps not looked at yet. Raises TrainingDiverged for the first bad one, now and ever after."""
        if not self._unread:
            return
        losses = torch.stack([(rows[1] * rows[2]).mean() for _, rows, _ in self._unread])
        norms = torch.stack([norm for _, _, norm in self._unread])
        bad = ~(losses.isfinite() & norms.isfinite())
        if not bad.any():
            self._unread = []
            return
        first = int(bad.nonzero()[0])
        step, (t, _, objective), _ = self._unread[first]
        at = tuple(t[~objective.isfinite()].long().tolist())
        raise TrainingDiverged(step, float(losses[first]), float(norms[first]), at)
