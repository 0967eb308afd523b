"""What does an hour of a machine cost? A file of the user's says so; no price is known here.

{"currency": "USD", "instances": {"g5.xlarge": {"per_hour": 1.2, "gpus": 1, "cpus": 4}}}
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import from_dict, hint

KEYS = ("currency", "instances")


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A kind of machine, and what it has."""

    per_hour: float
    cpus: int
    gpus: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.per_hour < math.inf:
            raise ValueError(f"per_hour={self.per_hour}: must be 0 or more, and finite")
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus}, gpus={self.gpus}: at least 1 CPU, and 0 GPUs or more")

    def cost(self, seconds: float, *, cpus: float, gpus: float) -> float:
        """Of so many of its devices for that time: the share of the machine that they are, of what is scarcer.

        Raises ValueError for GPUs where it has none.
        """
        if gpus and not self.gpus:
            raise ValueError(f"gpus={gpus:g}: the instance has none; name one with GPUs, or set --gpus-per-worker 0")
        share = max(cpus / self.cpus, gpus / self.gpus if gpus else 0.0)
        return self.per_hour * share * seconds / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What is paid for the machines of a study."""

    name: str
    currency: str
    instance: Instance

    def money(self, amount: float) -> str:
        """For people."""
        return f"{amount:.2f} {self.currency}" if amount >= 1 else f"{amount:.2g} {self.currency}"


def read_price(file: str, name: str) -> Price:
    """The price of that kind of machine. Raises ValueError for a file of another layout, or without it."""
    said = _read(file)
    instances = {key: _instance(file, key, value) for key, value in said["instances"].items()}
    if name not in instances:
        nearest = hint(name, list(instances)) or "."
        raise ValueError(f"--instance {name}: {file} has no such instance{nearest} There are: {', '.join(instances)}")
    return Price(name=name, currency=said["currency"], instance=instances[name])


def _read(file: str) -> dict[str, Any]:
    try:
        said = json.loads(Path(file).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--prices {file}: cannot be read as JSON ({error})") from error
    layout = '{"currency": "USD", "instances": {"NAME": {"per_hour": 1.2, "gpus": 1, "cpus": 8}}}'
    if not isinstance(said, dict) or set(said) != set(KEYS):
        found = ", ".join(said) if isinstance(said, dict) else type(said).__name__
        raise ValueError(f"--prices {file}: has {found or 'nothing'}; its keys must be {' and '.join(KEYS)}: {layout}")
    if not isinstance(said["currency"], str) or not said["currency"]:
        raise ValueError(f"--prices {file}: currency={said['currency']!r}: must be a name, such as USD")
    if not isinstance(said["instances"], dict) or not said["instances"]:
        raise ValueError(f"--prices {file}: instances={said['instances']!r}: must be an object: {layout}")
    return said


def _instance(file: str, name: str, value: Any) -> Instance:
    try:
        return from_dict(Instance, value)
    except ValueError as error:
        raise ValueError(f"--prices {file}: instances.{name}: {error}") from error
