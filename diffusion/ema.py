"""How are the weights averaged over training? Exponentially, from a copy of the first ones, without warm-up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """The moving average of a model's parameters: average = rate * average + (1 - rate) * parameter."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self._average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present parameters."""
        parameters = dict(model.named_parameters())
        # One call for all of them: small networks are bound by the number of operations.
        torch._foreach_lerp_(list(self._average.values()), [parameters[name] for name in self._average], 1 - self.rate)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name; the tensors themselves, not copies."""
        return dict(self._average)
