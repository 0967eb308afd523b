"""What is trained, what is watched of it on the way, and where is it kept? What a training is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.checkpoints import Network
from diffusion.objectives import Examples, Objective
from diffusion.train_config import TrainConfig
from diffusion.train_state import TrainState
from orchestrator.lease import Fence
from pipelines.readers import Batch


class HeldOut:
    """What a training measures of held-out images on its way, and keeps because of it. This one: nothing.

    Every worker has one, in the same state.
    """

    def after(self, state: TrainState) -> dict[str, float]:
        """Metrics for the journal, after a step; empty where nothing is due."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of it, by names that begin with held_out."""
        return {}

    def meta(self) -> dict[str, Any]:
        """The rest of that, as JSON has it."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""

    def chosen(self) -> Mapping[str, Tensor] | None:
        """The weights that are the model, in place of the average; None where it does not choose."""
        return None

    def metrics(self) -> dict[str, float]:
        """What the table should know of it, at the end."""
        return {}


@dataclass(frozen=True)
class Training:
    """What is trained, alike on every worker."""

    config: TrainConfig
    seed: int
    network: Network
    """On its device."""
    objective: Objective
    examples: Callable[[Batch, int, Tensor], Examples]
    """(batch as it is stored, step, index) -> what the network is trained on, on its device."""
    held_out: HeldOut


@dataclass(frozen=True)
class Place:
    """Where a training is kept. None of it changes a bit of the result."""

    output: Path
    checkpoints: str
    """A folder, or s3://BUCKET/PREFIX."""
    fence: Fence | None
    began_by: str
    """The command that may ask it to stop, by name."""
    checkpoint_seconds: float
    checkpoint_steps: int | None
    start: str | None = None
    """Where another training is kept, from whose end this one goes on; None once it has states of its own."""
    goes_on: bool = False
    """Whether it is such a one, for those who read of it."""
