"""How much computing does a network take? Counted by running it on shapes alone: no memory, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.checkpoints import Network

FLOPS_OF_A_MAC = 2
BACKWARD = 2
"""A backward pass multiplies every layer's gradient by its input and by its weights."""


@dataclass(frozen=True)
class Compute:
    """Of one image through a network."""

    forward_macs: int
    """Multiply-accumulates of its convolutions and matrix products: what the papers call FLOPs (docs/glossary.md)."""

    @property
    def training_macs(self) -> int:
        """Of one image of a training: forward, and twice that backward. The papers' compute per image."""
        return (1 + BACKWARD) * self.forward_macs

    @property
    def training_flops(self) -> int:
        """The same as floating-point operations: a multiply-accumulate is two."""
        return FLOPS_OF_A_MAC * self.training_macs

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of a forward pass."""
        return FLOPS_OF_A_MAC * self.forward_macs


def compute_of(build: Callable[[], Network]) -> Compute:
    """The compute of a network per image. Elementwise work is not counted, as the papers do not."""
    with torch.device("meta"):
        network = build().eval()
        inputs = network.example_inputs(1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(**inputs)
    return Compute(forward_macs=counter.get_total_flops() // FLOPS_OF_A_MAC)
