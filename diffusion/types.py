"""What shapes do the formulas speak of, and which inputs are none?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "b c h w"]
"""Values in [-1, 1] for x_start; unbounded for x_t."""
Steps = Int64[Tensor, "b"]
"""t, 0-based: t = 0 is one step of noise."""
ModelOutput = Float[Tensor, "b c_out h w"]
"""What a network says: c channels, or 2c when it also learns the variance."""
PerExample = Float[Tensor, "b"]
Model = Callable[..., Tensor]
"""model(x_t, schedule.model_t(t)): c channels, or 2c when it also learns the variance; y, the class, comes third."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, get_args(choices)))}")


def check_label_kind(y: Tensor, *, images: int) -> None:
    """Raises ValueError unless y is one whole number an image."""
    if y.shape != (images,) or y.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"y of shape {tuple(y.shape)} and {y.dtype}: one int64 or int32 label an image, ({images},)")


def check_labels(y: Tensor, *, images: int, num_classes: int) -> None:
    """Raises ValueError for labels of another shape or dtype, and, on the CPU, for labels that are none.

    On a GPU a look at them would make the host wait, and a compiler could not look; there the lookup itself fails.
    """
    check_label_kind(y, images=images)
    if y.is_cpu and not torch.compiler.is_compiling() and bool(((y < 0) | (y >= num_classes)).any()):
        raise ValueError(f"y has labels {int(y.min())} to {int(y.max())}; this network knows 0 to {num_classes - 1}")
