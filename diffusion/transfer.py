"""How do numbers get to a GPU without making the host wait for it?"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on a device. To a GPU it goes in its turn, from memory that is pinned: any other copy waits."""
    if tensor.is_cuda or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
