"""What does a network cost? Multiply-accumulates, which the papers call FLOPs, and the FLOPs they really are.

Counted are convolutions, linear layers and both matrix products of attention, on the meta device; norms and
activations, a per cent or so of the whole, are not, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.checkpoints import Network

TRAINING = 3
"""Forwards that a step of training costs: one, and about two for the gradient (IDDPM section 6)."""


@dataclass(frozen=True)
class Cost:
    """Of one forward of one image."""

    parameters: int
    macs: int
    """Multiply-accumulates: "39 GFLOPs" in the papers are 39e9 of these."""

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition each."""
        return 2 * self.macs

    def training_compute(self, images: int) -> float:
        """C of the papers' scaling laws for training on so many images: macs of forward and backward."""
        return float(TRAINING * self.macs * images)


def cost_of(network: Network) -> Cost:
    """Counted on a twin of the network on the meta device, where nothing is computed."""
    with torch.device("meta"):
        twin = type(network)(network.built_from(), **network.arguments())
        parameters = sum(parameter.numel() for parameter in twin.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin(**twin.example_inputs(1))
    return Cost(parameters, counter.get_total_flops() // 2)
