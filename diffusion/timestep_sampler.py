"""Which t does an example train on? Uniformly drawn, or by the size of its loss (IDDPM section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from diffusion.types import PerExample, Steps

WEIGHT_BITS = 52  # what a float64 in [1, 2) has behind the point


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformConfig:
    """Every t is as likely."""

    kind: Literal["uniform"] = "uniform"


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSecondMomentConfig:
    """p(t) in proportion to sqrt(E[L_t^2]), from the last losses seen at t, once every history is full."""

    kind: Literal["loss_second_moment"] = "loss_second_moment"
    history_per_term: int = 10
    uniform_prob: float = 1e-3
    """Share of the probability that stays uniform."""
    pools: int | None = None
    """None: a history for each t, as in the paper; uniform until all are full, which at T = 4000 takes 103,000 examples
    on average (94,000 to 116,000 in nine trainings of ten). Otherwise about so many histories of neighbouring t: of one
    t at both ends of the chain, where terms differ most, and of ever more towards its middle. Until all are full each
    pool is as likely, and weights make up for it: 60 pools fill within a thousand examples. Any p(t) leaves the loss
    unbiased; what the pools save is in docs/results/timestep_sampling.md."""

    def __post_init__(self) -> None:
        if self.history_per_term < 1 or (self.pools is not None and self.pools < 1):
            raise ValueError(
                f"train.timesteps.history_per_term={self.history_per_term}, train.timesteps.pools={self.pools}: "
                f"both must be at least 1, or the pools null: a history for each t"
            )
        if not 0 < self.uniform_prob <= 1:
            raise ValueError(
                f"train.timesteps.uniform_prob={self.uniform_prob}: more than 0, so that no t is starved, and at most 1"
            )


TimestepConfig = UniformConfig | LossSecondMomentConfig


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws t, and weights each draw so that the weighted loss is unbiased."""

    @property
    def is_warm(self) -> Bool[Tensor, ""]:
        """Whether t is drawn from what was learned of the losses; on the device, for reading it waits."""

    def sample(self, uniforms: Float[Tensor, "b"]) -> tuple[Steps, PerExample]:
        """t and weights 1 / (T p_t) (float32), a function of uniforms in [0, 1) and of the state."""

    def update(self, t: Steps, losses: PerExample) -> None:
        """Learn from the unweighted losses of a batch, in its order."""

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint must keep."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state. Raises ValueError for one of another shape."""


class UniformSampler:
    """See UniformConfig."""

    def __init__(self, num_timesteps: int, *, device: str | torch.device = "cpu") -> None:
        self._num_timesteps = num_timesteps
        self.is_warm = torch.ones((), dtype=torch.bool, device=device)

    def sample(self, uniforms: Float[Tensor, "b"]) -> tuple[Steps, PerExample]:
        """See TimestepSampler."""
        t = (uniforms * self._num_timesteps).long().clamp(max=self._num_timesteps - 1)
        return t, torch.ones_like(uniforms, dtype=torch.float32)

    def update(self, t: Steps, losses: PerExample) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """See TimestepSampler."""
        if state:
            raise ValueError(f"a uniform sampler of t has no state, but the checkpoint holds {', '.join(state)}")


class LossSecondMomentSampler:
    """See LossSecondMomentConfig. Lives where the losses are, and never makes the host wait for them."""

    def __init__(
        self, config: LossSecondMomentConfig, num_timesteps: int, *, device: str | torch.device = "cpu"
    ) -> None:
        self._config = config
        self._num_timesteps = num_timesteps
        pool_of = _pools(num_timesteps, config.pools)
        self._members = torch.bincount(pool_of).double().to(device)
        self._pool_of = pool_of.to(device)
        self._history = torch.zeros(len(self._members), config.history_per_term, dtype=torch.float64, device=device)
        self._seen = torch.zeros(len(self._members), dtype=torch.int64, device=device)

    @property
    def is_warm(self) -> Bool[Tensor, ""]:
        """Whether every history is full."""
        return (self._seen >= self._config.history_per_term).all()

    def probabilities(self) -> Float[Tensor, "T"]:
        """p(t), summing to 1 (float64)."""
        return (self._pool_probabilities() / self._members)[self._pool_of]

    def sample(self, uniforms: Float[Tensor, "b"]) -> tuple[Steps, PerExample]:
        """By inverting the cumulative distribution at each uniform; see TimestepSampler."""
        p = self.probabilities()
        # Summed as whole numbers: a GPU sums in an order of its own, and t should not hang on it.
        cumulative = (p * 2.0**WEIGHT_BITS).round().long().cumsum(0)
        place = (uniforms.double() * cumulative[-1]).long()
        t = torch.searchsorted(cumulative, place, right=True).clamp(max=self._num_timesteps - 1)
        return t, (1 / (self._num_timesteps * p)).float()[t]

    def update(self, t: Steps, losses: PerExample) -> None:
        """The newest history_per_term losses of each pool replace the oldest, in the batch's order."""
        size = self._config.history_per_term
        pools, order = torch.sort(self._pool_of[t], stable=True)
        counts = torch.zeros_like(self._seen).index_add(0, pools, torch.ones_like(pools))
        rank = torch.arange(len(pools), device=t.device) - (counts.cumsum(0) - counts)[pools]  # among its pool's
        slots = (self._seen[pools] + rank) % size
        # Each slot is written once; losses that are older than a history is long go to a column that is then dropped.
        slots = torch.where(rank >= counts[pools] - size, slots, size)
        written = functional.pad(self._history, (0, 1))
        written[pools, slots] = losses.detach().double()[order]
        self._history = written[:, :size].contiguous()
        self._seen = self._seen + counts

    def state(self) -> dict[str, Tensor]:
        """The histories, and how many losses each has seen."""
        return {"history": self._history.clone(), "seen": self._seen.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """See TimestepSampler."""
        for name, mine in self.state().items():
            if name not in state or state[name].shape != mine.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"importance sampler's {name}: shape {tuple(mine.shape)} expected, found {found}")
        self._history = state["history"].to(self._history.device, copy=True)
        self._seen = state["seen"].to(self._seen.device, copy=True)

    def _pool_probabilities(self) -> Float[Tensor, "pools"]:
        uniform = self._members / self._num_timesteps
        cold = uniform if self._config.pools is None else torch.full_like(uniform, 1 / len(uniform))
        weights = (self._history**2).mean(dim=1).sqrt() * self._members
        total = weights.sum()
        learned = torch.where(total > 0, weights / total, uniform)
        mixed = (1 - self._config.uniform_prob) * learned + self._config.uniform_prob * uniform
        return torch.where(self.is_warm, mixed, cold)


def build_timestep_sampler(
    config: TimestepConfig, num_timesteps: int, *, device: str | torch.device = "cpu"
) -> TimestepSampler:
    """The sampler of t a config names, on the device of the losses it will see."""
    if isinstance(config, UniformConfig):
        return UniformSampler(num_timesteps, device=device)
    return LossSecondMomentSampler(config, num_timesteps, device=device)


def _pools(num_timesteps: int, pools: int | None) -> Int64[Tensor, "T"]:
    """The pool of each t, ascending: of one t at both ends, and wider by an equal ratio towards the middle."""
    if pools is None:
        return torch.arange(num_timesteps)
    early = (num_timesteps + 1) // 2
    from_start = _widening(early, (pools + 1) // 2)
    from_end = _widening(num_timesteps - early, pools // 2)
    if not len(from_end):
        return from_start if pools > 1 else torch.zeros(num_timesteps, dtype=torch.int64)
    return torch.cat([from_start, from_start[-1] + 1 + from_end[-1] - from_end.flip(0)])


def _widening(count: int, pools: int) -> Int64[Tensor, "count"]:
    if not pools:
        return torch.zeros(0, dtype=torch.int64)
    starts = torch.logspace(0, math.log10(count + 1), pools + 1, dtype=torch.float64)[:-1].round().long() - 1
    return torch.searchsorted(starts.unique(), torch.arange(count), right=True) - 1
