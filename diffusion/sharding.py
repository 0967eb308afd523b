"""How is a network trained that fits no single GPU? Its weights, averages and optimizer's state are spread.

FSDP2: a block's weights come together while it computes. What is kept and loaded is whole, as any other training's.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusion.checkpoints import Network


def shard(network: Network) -> None:
    """Spread the network itself over all workers, block by block; its weights lose a channels-last layout."""
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP takes no other
    mesh = init_device_mesh(next(network.parameters()).device.type, (dist.get_world_size(),))
    for part in network.torso:
        for block in part if isinstance(part, nn.ModuleList) else [part]:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The tensor on this worker, put together from all of them where it is spread: all must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def take(own: Tensor, value: Tensor) -> None:
    """Set a tensor, or this worker's share of it, to a value that all workers have."""
    if isinstance(own, DTensor):
        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(value)
