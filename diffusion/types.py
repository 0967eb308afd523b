"""What shapes do the formulas speak of?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "b c h w"]
"""Values in [-1, 1] for x_start; unbounded for x_t."""
Steps = Int64[Tensor, "b"]
"""t, 0-based: t = 0 is one step of noise."""
ModelOutput = Float[Tensor, "b c_out h w"]
"""What a network says: c channels, or 2c when it also learns the variance."""
PerExample = Float[Tensor, "b"]
Model = Callable[[Tensor, Tensor], Tensor]
"""model(x_t, schedule.model_t(t)): c channels, or 2c when it also learns the variance."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, get_args(choices)))}")
