"""What shapes do the formulas speak of?"""

from __future__ import annotations

from collections.abc import Callable

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
