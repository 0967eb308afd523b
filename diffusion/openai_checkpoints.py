"""How do the published .pt files become networks, and networks such files? Names and shapes are theirs already.

What the files do not show is the layout of attention's channels (trunk.UNetConfig.attention_layout): with the wrong
one a network loads without complaint and draws noise. So it has to be named, or the file be one that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion.checkpoints import check_weights, load_weights
from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.layers import AttentionBlock, AttentionLayout
from diffusion.published import PUBLISHED, PublishedModel
from diffusion.superres import SuperResConfig
from diffusion.types import check_choice
from diffusion.unet import UNet

N = TypeVar("N", UNet, NoisyClassifier)

Shapes = dict[str, tuple[int, ...]]


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, by name, on the CPU. Nothing in the file is executed.

    Raises ValueError for a file that is cut short, carries code, or holds anything but tensors by name, and
    OSError where there is none that can be read.
    """
    try:
        found = torch.load(str(path), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what a damaged or hostile file makes torch raise is not a closed list
        raise ValueError(
            f"{path}: not a whole .pt file of tensors alone; it is cut short, damaged, or carries code, which is "
            f"not run ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: holds {type(found).__name__}, not a state dict: tensors by name")
    return {str(name): tensor for name, tensor in found.items()}


def from_published(
    path: str | Path, *, attention_layout: AttentionLayout | None = None, device: str | torch.device = "cpu"
) -> UNet | NoisyClassifier:
    """The network of a published file, recognised by its names and shapes, ready for inference (eval).

    attention_layout: None for the published file itself. A file of the same shapes that somebody else has trained may
    have another: name it then (and where its number of heads is another, which a file does not show either, build the
    network yourself and load_published). Raises ValueError for any other file, with the entries that do not fit.
    """
    weights = read_published(path)
    try:
        model = PUBLISHED[recognise(weights)[0]]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if attention_layout is not None:
        model = _with_layout(model, attention_layout)
    with torch.device("meta"):
        network = model.build()
    load_weights(network, weights, of=str(path))
    return network.eval().to(device)


def recognise(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The published models whose files have these names and shapes.

    Of several, the networks differ in dropout at most (from_published takes the first one's, which matters to further
    training); how they were trained, and on what, is not in a file. Raises
    ValueError when there is none, with what is wrong for the one that is nearest.
    """
    shapes = _shapes(weights)
    names = tuple(name for name in PUBLISHED if _published_shapes(name) == shapes)
    if names:
        return names
    nearest = max(PUBLISHED, key=lambda name: len(_published_shapes(name).items() & shapes.items()))
    with torch.device("meta"):
        own = PUBLISHED[nearest].build().state_dict()
    try:
        check_weights(own, weights, of=f"as {nearest}, the nearest published model")
    except ValueError as error:
        raise ValueError(
            f"these weights are no published model's. {error}. For a network of your own: "
            f"load_published(network, weights, attention_layout=...)"
        ) from error
    raise AssertionError("weights that fit have been recognised")


def load_published(network: N, weights: Mapping[str, Tensor], *, attention_layout: AttentionLayout) -> N:
    """The network itself with weights of the published names and shapes, whatever layout it has itself.

    attention_layout is that of the weights. Raises ValueError for weights that are missing, unknown or misshapen.
    """
    check_choice("attention_layout", attention_layout, AttentionLayout)
    check_weights(network.state_dict(), weights, of="the published weights")
    load_weights(network, with_attention_layout(network, weights, attention_layout, _own_layout(network)), of="weights")
    return network


def to_published(network: UNet | NoisyClassifier, *, attention_layout: AttentionLayout) -> dict[str, Tensor]:
    """The network's weights as torch.save would write a published file: names, shapes and attention of that layout."""
    return with_attention_layout(network, network.state_dict(), _own_layout(network), attention_layout)


def with_attention_layout(
    network: nn.Module, weights: Mapping[str, Tensor], layout: AttentionLayout, wanted: AttentionLayout
) -> dict[str, Tensor]:
    """Weights whose attention has one layout, with another: the channels of every qkv in another order.

    The attention pool of a classifier has the new layout in both. Raises ValueError for a layout that is none.
    """
    for name, value in (("layout", layout), ("wanted", wanted)):
        check_choice(name, value, AttentionLayout)
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


def _own_layout(network: UNet | NoisyClassifier) -> AttentionLayout:
    trunk = network.config.encoder if isinstance(network, NoisyClassifier) else network.config
    return trunk.attention_layout


def _with_layout(model: PublishedModel, layout: AttentionLayout) -> PublishedModel:
    network = model.network
    if isinstance(network, ClassifierConfig):
        network = replace(network, encoder=replace(network.encoder, attention_layout=layout))
    elif isinstance(network, SuperResConfig):
        network = replace(network, unet=replace(network.unet, attention_layout=layout))
    else:
        network = replace(network, attention_layout=layout)
    return replace(model, network=network)


@cache
def _published_shapes(name: str) -> Shapes:
    with torch.device("meta"):
        return _shapes(PUBLISHED[name].build().state_dict())


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
