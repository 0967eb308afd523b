"""In which dtype does a network compute? float32, or 16 bits with float32 where the papers have it.

Either by autocast, which leaves the weights alone and is for training, or by to_inference_dtype, which gives the torso
weights of 16 bits: half the memory. Norms, softmax, embeddings of t and class, their projections and the output head
stay float32 in both. A network that is cast as a whole (network.to(torch.bfloat16)) keeps float32 in its norms and in
the sinusoids of t alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from diffusion.checkpoints import Network
from diffusion.types import check_choice

Precision = Literal["float32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


N = TypeVar("N", bound=Network)


def autocast(device: str | torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Forwards inside compute in that precision, and gradients of them too; fp16 also needs a scaled loss."""
    check_choice("precision", precision, Precision)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])


def allow_tf32(allowed: bool) -> None:
    """Whether float32 on a GPU may lose 13 of its 23 bits before it is multiplied, in this process from now on.

    torch's own choice is yes in convolutions and no in matrix products. No in both makes float32 what it is on a CPU,
    and the numbers of two kinds of GPU comparable.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def to_inference_dtype(network: N, precision: Precision) -> N:
    """The network itself, the convolutions of its torso in that precision: the published rule for float16 weights.

    Attention's projections are convolutions of one pixel; linear layers, embeddings and norms keep their dtype.
    """
    check_choice("precision", precision, Precision)
    for part in network.torso:
        for module in part.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                module.to(DTYPES[precision])
    return network


def in_torso_dtype(network: Network, x: Tensor) -> Tensor:
    """x as the torso takes it."""
    return x.to(next(network.torso[0].parameters()).dtype)


def float32_island(like: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast is off for what is computed on the device of `like`."""
    if like.device.type == "meta" or not torch.is_autocast_enabled(like.device.type):
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)
