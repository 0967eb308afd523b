"""What does a network cost? Multiply-accumulates, which the papers call FLOPs, and the FLOPs they really are.

Counted are convolutions, linear layers and both matrix products of attention, on the meta device; norms and
activations, a per cent or so of the whole, are not, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.checkpoints import Network
from diffusion.precision import Precision

TRAINING = 3
"""Forwards that a step of training costs: one, and about two for the gradient (IDDPM section 6)."""

PEAKS: dict[str, tuple[float, float, float]] = {
    "V100": (15.7e12, 15.7e12, 125e12),
    "T4": (8.1e12, 8.1e12, 65e12),
    "A10": (31.2e12, 62.5e12, 125e12),
    "A10G": (35e12, 35e12, 70e12),
    "L4": (30.3e12, 60e12, 121e12),
    "L40S": (91.6e12, 183e12, 362e12),
    "A100": (19.5e12, 156e12, 312e12),
    "H100 PCIe": (51e12, 378e12, 756e12),
    "H100": (67e12, 494e12, 989e12),
    "H200": (67e12, 494e12, 989e12),
    "RTX 3090": (35.6e12, 35.6e12, 71e12),
    "RTX 4090": (82.6e12, 82.6e12, 165e12),
}
"""FLOP/s of dense float32, of TF32 (where there is none, float32's) and of 16 bits, from the makers' data sheets."""


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

    @property
    def training_macs(self) -> int:
        """Of one image of a training, forward and backward: the papers' compute, C, per image."""
        return TRAINING * self.macs

    @property
    def training_flops(self) -> int:
        """The same as floating-point operations."""
        return TRAINING * self.flops

    def training_compute(self, images: int) -> float:
        """C of the papers' scaling laws for training on so many images: macs of forward and backward."""
        return float(self.training_macs * images)


def cost_of(network: Network) -> Cost:
    """Counted on a twin of the network on the meta device, where nothing is computed."""
    return compute_of(lambda: type(network)(network.built_from(), **network.arguments()))


def compute_of(build: Callable[[], Network]) -> Cost:
    """Of a network that need not be there: it is built on the meta device alone."""
    with torch.device("meta"):
        network = build()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(**network.example_inputs(1))
    return Cost(parameters, counter.get_total_flops() // 2)


def peak_flops(device: str, precision: Precision, *, tf32: bool) -> float | None:
    """What a GPU could do at most, by its maker's data sheet; None for a CPU, and for a GPU that PEAKS lacks."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return peak_of(name, precision, tf32=tf32)


def peak_of(name: str, precision: Precision, *, tf32: bool) -> float | None:
    """The same by the GPU's name, such as NVIDIA A100-SXM4-40GB: the longest of PEAKS that it holds as whole words."""
    words = f" {name.replace('-', ' ')} "
    known = [key for key in PEAKS if f" {key} " in words]
    if not known:
        return None
    full, tensor_cores, half = PEAKS[max(known, key=len)]
    return half if precision != "float32" else tensor_cores if tf32 else full
