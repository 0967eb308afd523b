"""What may a study cost, and what did it cost so far? A study that reaches its cap stops as if it were told to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.attempts import Attempts
from orchestrator.errors import PapertableError
from orchestrator.lease import is_at_work
from orchestrator.materialize import lease_of
from orchestrator.prices import Price
from orchestrator.step import Resources, Step, walk
from orchestrator.store import ArtifactStore


class BudgetReached(PapertableError):
    """The cap was reached; training has kept its state, and the same command with a higher cap goes on."""

    exit_code = 75


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The most that a study may cost, with all that was spent on it before."""

    device_hours: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("--max-hours", self.device_hours), ("--max-cost", self.money)):
            if most is not None and not 0 < most < math.inf:
                raise ValueError(f"{name} {most:g}: must be more than 0, and finite; leave it out for no cap")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """On the steps of a study, also by commands before this one."""

    device_seconds: float
    money: float | None
    """None where no prices were given."""
    devices: float
    """At work now."""


class Account:
    """What the steps of a study cost so far, data sets aside."""

    def __init__(self, steps: Iterable[Step], store: ArtifactStore, resources: Resources, price: Price | None) -> None:
        self._steps = [step for step in walk(steps) if step.inputs]
        self._store, self._resources, self._price = store, resources, price
        self._done: dict[str, tuple[float, float]] = {}

    def spent(self) -> Spent:
        """Until now. Records that do not say what their steps took are counted at what this command's steps take."""
        costs, devices = [], 0.0
        for step in self._steps:
            if step.key not in self._done and (record := self._store.record(step)) is not None:
                self._done[step.key] = self._cost(**(record.spent or {"seconds": record.seconds, **self._held}))
            if step.key in self._done:
                costs.append(self._done[step.key])
                continue
            attempts = Attempts.read(self._store.path(step))
            at_work = attempts.began is not None and is_at_work(lease_of(step, self._store))
            devices += self._resources.devices if at_work else 0.0
            costs.append(self._cost(attempts.total(self._store.path(step), at_work=at_work), **self._held))
        money = sum(money for _, money in costs) if self._price is not None else None
        return Spent(device_seconds=sum(seconds for seconds, _ in costs), money=money, devices=devices)

    def check(self, cap: Cap, *, look_seconds: float) -> None:
        """Raises BudgetReached when the cap is, or would be at the next look, so many seconds from now."""
        if cap == Cap():
            return
        spent = self.spent()
        hours = (spent.device_seconds + spent.devices * look_seconds) / 3600
        if cap.device_hours is not None and hours >= cap.device_hours:
            raise BudgetReached(
                f"--max-hours {cap.device_hours:g}: {spent.device_seconds / 3600:.3f} {self._resources.device}-hours "
                f"are spent on this study; all is kept: the same command with a higher --max-hours goes on"
            )
        if cap.money is not None and self._price is not None and spent.money is not None:
            instance, held = self._price.instance, self._held
            share = spent.devices / self._resources.devices
            if spent.money + share * instance.cost(look_seconds, **held) >= cap.money:
                raise BudgetReached(
                    f"--max-cost {cap.money:g}: {self._price.money(spent.money)} are spent on this study; all is kept: "
                    f"the same command with a higher --max-cost goes on"
                )

    @property
    def _held(self) -> dict[str, float]:
        return {"cpus": self._resources.cpus, "gpus": self._resources.gpus}

    def _cost(self, seconds: float, cpus: float, gpus: float) -> tuple[float, float]:
        """Device-seconds, and money."""
        money = 0.0 if self._price is None else self._price.instance.cost(seconds, cpus=cpus, gpus=gpus)
        return seconds * (gpus or cpus), money
