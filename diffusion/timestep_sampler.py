"""Which t does an example train on? Uniformly drawn, or by the size of its loss (IDDPM section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.transfer import sent
from diffusion.types import PerExample, Steps


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
    def is_warm(self) -> bool:
        """Whether t is drawn from what was learned of the losses."""

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

    is_warm = True

    def __init__(self, num_timesteps: int) -> None:
        self._num_timesteps = num_timesteps

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
    """See LossSecondMomentConfig. Kept on the CPU: it is small, and its values decide what is drawn next."""

    def __init__(self, config: LossSecondMomentConfig, num_timesteps: int) -> None:
        self._config = config
        self._num_timesteps = num_timesteps
        self._pool_of = _pools(num_timesteps, config.pools)
        self._members = torch.bincount(self._pool_of).double()
        self._history = torch.zeros(len(self._members), config.history_per_term, dtype=torch.float64)
        self._seen = torch.zeros(len(self._members), dtype=torch.int64)

    @property
    def is_warm(self) -> bool:
        """Whether every history is full."""
        return bool((self._seen >= self._config.history_per_term).all())

    def probabilities(self) -> Float[Tensor, "T"]:
        """p(t), summing to 1 (float64)."""
        return (self._pool_probabilities() / self._members)[self._pool_of]

    def sample(self, uniforms: Float[Tensor, "b"]) -> tuple[Steps, PerExample]:
        """By inverting the cumulative distribution at each uniform; see TimestepSampler."""
        p = self.probabilities()
        cumulative = torch.cumsum(p, dim=0)
        # The tables go to the uniforms, and nothing back, which would make the host wait for a GPU.
        cumulative = sent(cumulative / cumulative[-1], uniforms.device)
        weights = sent((1 / (self._num_timesteps * p)).float(), uniforms.device)
        t = torch.searchsorted(cumulative, uniforms.double(), right=True).clamp(max=self._num_timesteps - 1)
        return t, weights[t]

    def update(self, t: Steps, losses: PerExample) -> None:
        """The newest history_per_term losses of each pool replace the oldest, in the batch's order."""
        size = self._config.history_per_term
        pools, order = torch.sort(self._pool_of[t.cpu()], stable=True)
        counts = torch.bincount(pools, minlength=len(self._seen))
        rank = torch.arange(len(pools)) - (counts.cumsum(0) - counts)[pools]  # of a loss among its pool's in the batch
        slots = (self._seen[pools] + rank) % size
        newest = rank >= counts[pools] - size  # no slot is written twice
        self._history[pools[newest], slots[newest]] = losses.detach().cpu().double()[order][newest]
        self._seen += counts

    def state(self) -> dict[str, Tensor]:
        """The histories, and how many losses each has seen."""
        return {"history": self._history.clone(), "seen": self._seen.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """See TimestepSampler."""
        for name, mine in self.state().items():
            if name not in state or state[name].shape != mine.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"importance sampler's {name}: shape {tuple(mine.shape)} expected, found {found}")
        self._history, self._seen = state["history"].clone(), state["seen"].clone()

    def _pool_probabilities(self) -> Float[Tensor, "pools"]:
        uniform = self._members / self._num_timesteps
        if not self.is_warm:
            return uniform if self._config.pools is None else torch.full_like(uniform, 1 / len(uniform))
        weights = (self._history**2).mean(dim=1).sqrt() * self._members
        learned = weights / weights.sum() if weights.sum() > 0 else uniform
        return (1 - self._config.uniform_prob) * learned + self._config.uniform_prob * uniform


def build_timestep_sampler(config: TimestepConfig, num_timesteps: int) -> TimestepSampler:
    """The sampler of t a config names."""
    if isinstance(config, UniformConfig):
        return UniformSampler(num_timesteps)
    return LossSecondMomentSampler(config, num_timesteps)


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
