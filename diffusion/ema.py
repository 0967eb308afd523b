"""How are the weights averaged over training? Exponentially, at several rates at once, from a copy of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaConfig:
    """Averages kept while training. The defaults are the papers': one rate, no warm-up."""

    rates: tuple[float, ...] = (0.9999,)
    """Weight of the past in each average. The first is the model that is evaluated; without any, the weights are."""
    warmup: bool = False
    """Let an average forget faster at first: at most (1 + step) / (10 + step). Published training does not."""
    arithmetic: Literal["published", "float64"] = "published"
    """published: in the parameters' dtype. In float32, at rates from 0.99999 on, most of what a step should add is lost
    to rounding; float64 keeps it, at twice the memory."""

    def __post_init__(self) -> None:
        if len({rate_name(rate) for rate in self.rates}) < len(self.rates):
            raise ValueError(f"train.ema.rates={self.rates}: each rate once, to ten digits")
        for rate in self.rates:
            if not 0 <= rate < 1:
                raise ValueError(f"train.ema.rates={self.rates}: each must be at least 0 and less than 1")


class Ema:
    """Moving averages of a model's parameters: average = rate * average + (1 - rate) * parameter."""

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        self._config = config
        self._parameters: list[Tensor] = list(model.parameters())  # a walk through the modules takes milliseconds
        self._dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        self._averages = {
            rate: {name: self._copy(parameter) for name, parameter in model.named_parameters()} for rate in config.rates
        }

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Take in the model's parameters as they are after `step` (0-based)."""
        for rate, average in self._averages.items():
            kept = min(rate, (1 + step) / (10 + step)) if self._config.warmup else rate
            averages, present = list(average.values()), self._parameters
            # Calls for all parameters together: small networks are bound by the number of operations.
            if self._config.arithmetic == "float64":
                present = [parameter.double() for parameter in present]
            torch._foreach_mul_(averages, kept)
            torch._foreach_add_(averages, present, alpha=1 - kept)

    def weights(self, rate: float | None = None) -> dict[str, Tensor]:
        """The average at a rate, by default the first, by parameter name, in the parameters' dtype.

        Empty where no average is kept at all. Raises ValueError for a rate that is not kept.
        """
        if rate is None and not self._averages:
            return {}
        average = self._averages.get(self._config.rates[0] if rate is None else rate)
        if average is None:
            raise ValueError(f"rate {rate}: there are averages at {', '.join(map(rate_name, self._averages))}")
        return {name: tensor.to(self._dtypes[name]) for name, tensor in average.items()}

    def state(self) -> dict[str, Tensor]:
        """All averages, by rate and parameter name; the tensors themselves, not copies."""
        return {
            f"{rate_name(rate)}.{name}": tensor
            for rate, average in self._averages.items()
            for name, tensor in average.items()
        }

    def _copy(self, parameter: Tensor) -> Tensor:
        copy = parameter.detach().clone()
        return copy.double() if self._config.arithmetic == "float64" else copy


def rate_name(rate: float) -> str:
    """How a rate is written in the names of states and files."""
    return f"{rate:.10g}"
