"""What does an hour cost? A JSON file of the user's, since prices change.

{"currency": "USD", "instances": {"one-gpu": {"per_hour": 1.006, "gpus": 1}, "small": {"per_hour": 0.09, "cpus": 2}}}
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config import from_dict, hint


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A machine that can be rented."""

    per_hour: float
    gpus: float = 0.0
    cpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("per_hour", "gpus", "cpus"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more, and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Of instances by name."""

    currency: str
    instances: dict[str, Instance] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Prices:
        """From a file. Raises ValueError for what is none, naming the key."""
        try:
            return from_dict(cls, json.loads(path.read_text()))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prices {path}: cannot be read ({error})") from error
        except ValueError as error:
            raise ValueError(f"--prices {path}: {error}") from error

    def of_device_hour(self, instance: str, *, gpu: bool) -> float:
        """Of a GPU, or of a CPU, of that instance. Raises ValueError for one that is not in the file, or has none."""
        if instance not in self.instances:
            nearest = hint(instance, list(self.instances)) or ";"
            known = ", ".join(self.instances) or "none"
            raise ValueError(f"--instance {instance}: the prices have no such instance{nearest} there are: {known}")
        chosen = self.instances[instance]
        devices = chosen.gpus if gpu else chosen.cpus
        if not devices:
            kind = "gpus" if gpu else "cpus"
            raise ValueError(f"--instance {instance}: the prices give it no {kind}, which the workers take; set {kind}")
        return chosen.per_hour / devices
