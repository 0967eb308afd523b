"""How do the published .pt files become networks, and networks such files? Names and shapes are theirs already.

What the files do not show is the layout of attention's channels (trunk.UNetConfig.attention_layout): with the wrong
one a network loads without complaint and draws noise. So it has to be named, or the file be one that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion.checkpoints import check_weights, load_weights
from diffusion.classifier import NoisyClassifier
from diffusion.layers import AttentionBlock, AttentionLayout
from diffusion.published import PUBLISHED, PublishedModel
from diffusion.superres import SuperResUNet
from diffusion.unet import UNet

N = TypeVar("N", UNet, SuperResUNet, NoisyClassifier)


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, by name, on the CPU. Nothing in the file is executed.

    Raises ValueError for a file that is cut short, carries code, or holds anything but tensors by name.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        found = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged or hostile file makes torch raise is not a closed list
        raise ValueError(
            f"{path}: not a whole .pt file of tensors alone; it is cut short, damaged, or carries code, which is "
            f"not run ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: holds {type(found).__name__}, not a state dict: tensors by name")
    return {str(name): tensor for name, tensor in found.items()}


def recognise(weights: Mapping[str, Tensor]) -> PublishedModel:
    """The published model whose weights have these names and shapes; of several, which differ in dropout alone, one.

    Raises ValueError when there is none.
    """
    shapes = _shapes(weights)
    for model in PUBLISHED.values():
        with torch.device("meta"):
            network = model.build()
        if _shapes(network.state_dict()) == shapes:
            return model
    raise ValueError(
        "these weights are no published model's: build the network yourself and give the layout of its attention, "
        "load_published(network, weights, attention_layout=...)"
    )


def from_published(path: str | Path, *, device: str | torch.device = "cpu") -> UNet | SuperResUNet | NoisyClassifier:
    """The network of a published file, recognised by its names and shapes. Raises ValueError for any other file."""
    weights = read_published(path)
    try:
        model = recognise(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        network = model.build()
    load_weights(network, weights, of=str(path))
    return network.to(device)


def load_published(network: N, weights: Mapping[str, Tensor], *, attention_layout: AttentionLayout) -> N:
    """The network with weights of the published layout, whatever layout it has itself.

    attention_layout is that of the weights. Raises ValueError for weights that are missing, unknown or misshapen.
    """
    check_weights(network.state_dict(), weights, of="the published weights")
    load_weights(network, with_attention_layout(network, weights, attention_layout, _own_layout(network)), of="weights")
    return network


def to_published(
    network: UNet | SuperResUNet | NoisyClassifier, *, attention_layout: AttentionLayout
) -> dict[str, Tensor]:
    """The network's weights as torch.save would write a published file: names, shapes and attention of that layout."""
    return with_attention_layout(network, network.state_dict(), _own_layout(network), attention_layout)


def with_attention_layout(
    network: nn.Module, weights: Mapping[str, Tensor], layout: AttentionLayout, wanted: AttentionLayout
) -> dict[str, Tensor]:
    """Weights whose attention has one layout, with another: the channels of every qkv in another order.

    The attention pool of a classifier has the new layout in both.
    """
    changed = dict(weights)
    if layout == wanted:
        return changed
    for name, block in network.named_modules():
        if isinstance(block, AttentionBlock):
            for entry in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
                rows = weights[entry]
                outer, inner = (block.num_heads, 3) if layout == "legacy" else (3, block.num_heads)
                swapped = rows.reshape(outer, inner, -1, *rows.shape[1:]).transpose(0, 1)
                changed[entry] = swapped.reshape(rows.shape).contiguous()
    return changed


def _own_layout(network: UNet | SuperResUNet | NoisyClassifier) -> AttentionLayout:
    trunk = network.config.encoder if isinstance(network, NoisyClassifier) else network.config
    return trunk.attention_layout


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
