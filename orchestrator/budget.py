"""What may a study take at most? It is stopped as by SIGTERM once it has spent that, and goes on with more."""

from __future__ import annotations

import math

from orchestrator.errors import PapertableError


class BudgetSpent(PapertableError):
    """A study reached its cap; what it has is kept, and the same command with a higher one goes on."""

    exit_code = 75


class Budget:
    """Device-hours of a call: the workers of every cell at work, for as long as it is at work."""

    def __init__(self, max_hours: float, *, devices_per_cell: float) -> None:
        if not 0 < max_hours < math.inf:
            raise ValueError(f"--max-hours {max_hours:g}: more than 0, in hours of a device")
        self._most = 3600 * max_hours
        self._devices = devices_per_cell
        self.spent_seconds = 0.0

    def spend(self, *, cells: int, seconds: float) -> None:
        """So many cells were at work for so long. Raises BudgetSpent from the cap on."""
        self.spent_seconds += cells * self._devices * seconds
        if self.spent_seconds >= self._most:
            raise BudgetSpent(
                f"--max-hours {self._most / 3600:g} are spent: training keeps its state; run the same command again, "
                f"with more hours, to go on"
            )
