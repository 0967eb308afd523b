"""How are float16 gradients kept from vanishing? The loss is multiplied by a number that adapts (PAPERS.md section 4).

log2 grows a little after every good step, and falls by 1 when a gradient overflows; that step is skipped.
"""

from __future__ import annotations

from diffusion.train_config import LossScaleConfig


class LossScaleAtFloor(ArithmeticError):
    """Gradients overflow however small the loss is made: training has left the numbers."""

    def __init__(self, step: int, log2: float, floor_log2: float) -> None:
        super().__init__(step, log2, floor_log2)
        self.step, self.log2, self.floor_log2 = step, log2, floor_log2

    def __str__(self) -> str:
        return (
            f"training diverged in step {self.step}: gradients overflow float16 even at a loss scale of "
            f"2^{self.log2:g} (train.loss_scale.floor_log2={self.floor_log2:g}); a smaller train.lr may help, or "
            f"train.precision='bf16'"
        )


class LossScale:
    """The scale, as it is after so many steps."""

    def __init__(self, config: LossScaleConfig) -> None:
        self._config = config
        self.log2 = config.initial_log2

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return float(2.0**self.log2)

    def update(self, *, overflowed: bool, step: int) -> None:
        """Learn whether a step's gradient overflowed. Raises LossScaleAtFloor when it did at the smallest scale."""
        if not overflowed:
            self.log2 += self._config.growth
            return
        if self.log2 - 1 < self._config.floor_log2:
            raise LossScaleAtFloor(step, self.log2, self._config.floor_log2)
        self.log2 -= 1
