"""How fast does an image become noise? betas and everything derived from them, in float64 (PAPERS: IDDPM eq. 17)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.types import Steps

MAX_BETA = 0.999  # IDDPM section 3.2: no singularity at the last steps of the cosine schedule
COSINE_OFFSET = 0.008


@dataclass(frozen=True)
class NoiseSchedule:
    """A chain of T steps. Every table is float64 of shape (T,), index t (Ho et al. 2020, eq. 2 to 7).

    In the equations alpha = 1 - beta, and abar, abar', abar+ are alphas_cumprod at t, t - 1 and t + 1.
    """

    betas: Float[Tensor, "T"]
    """Variance that step t adds."""
    alphas_cumprod: Float[Tensor, "T"]
    """abar: the product of 1 - beta up to t."""
    alphas_cumprod_prev: Float[Tensor, "T"]
    """abar': 1 at t = 0."""
    alphas_cumprod_next: Float[Tensor, "T"]
    """abar+: 0 at t = T - 1."""
    sqrt_alphas_cumprod: Float[Tensor, "T"]
    sqrt_one_minus_alphas_cumprod: Float[Tensor, "T"]
    log_one_minus_alphas_cumprod: Float[Tensor, "T"]
    sqrt_recip_alphas_cumprod: Float[Tensor, "T"]
    """sqrt(1 / abar): up to 2e4 with the cosine schedule."""
    sqrt_recipm1_alphas_cumprod: Float[Tensor, "T"]
    """sqrt(1 / abar - 1)"""
    posterior_variance: Float[Tensor, "T"]
    """beta (1 - abar') / (1 - abar): 0 at t = 0."""
    posterior_log_variance_clipped: Float[Tensor, "T"]
    """Its logarithm; at t = 0 that of t = 1."""
    posterior_mean_coef1: Float[Tensor, "T"]
    """Of x_0 in the posterior mean: beta sqrt(abar') / (1 - abar)."""
    posterior_mean_coef2: Float[Tensor, "T"]
    """Of x_t: (1 - abar') sqrt(alpha) / (1 - abar)."""
    log_betas: Float[Tensor, "T"]
    fixed_large_variance: Float[Tensor, "T"]
    """beta; at t = 0 the posterior variance of t = 1."""
    fixed_large_log_variance: Float[Tensor, "T"]
    timestep_map: Int64[Tensor, "T"]
    """Index of each step in the chain the model was trained on."""
    original_num_timesteps: int
    rescale_timesteps: bool
    """Whether the model is told t * 1000 / original T instead of t."""

    @classmethod
    def from_betas(
        cls, betas: Tensor, *, timestep_map: Tensor | None = None,
        original_num_timesteps: int | None = None, rescale_timesteps: bool = True,
    ) -> NoiseSchedule:  # fmt: skip
        """All tables from betas (float64, (T,)). Raises ValueError unless T >= 2 and 0 < beta < 1."""
        betas = betas.to(torch.float64)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"a schedule needs at least 2 steps; betas have shape {tuple(betas.shape)}")
        inside = (betas > 0) & (betas < 1)
        if not bool(inside.all()):
            raise ValueError(f"beta={betas[~inside][0].item()}: every beta must lie strictly between 0 and 1")
        if timestep_map is not None and timestep_map.shape != betas.shape:
            raise ValueError(f"timestep_map names {tuple(timestep_map.shape)} steps, not the {len(betas)} of the betas")
        one = torch.ones(1, dtype=torch.float64, device=betas.device)
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        previous = torch.cat([one, alphas_cumprod[:-1]])
        posterior_variance = betas * (1 - previous) / (1 - alphas_cumprod)
        # beta_0 would give the decoder at t = 0 a needlessly wide Gaussian.
        fixed_large_variance = torch.cat([posterior_variance[1:2], betas[1:]])
        return cls(
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=previous,
            alphas_cumprod_next=torch.cat([alphas_cumprod[1:], 0 * one]),
            sqrt_alphas_cumprod=alphas_cumprod.sqrt(),
            sqrt_one_minus_alphas_cumprod=(1 - alphas_cumprod).sqrt(),
            log_one_minus_alphas_cumprod=torch.log1p(-alphas_cumprod),  # of 1e-9 at the end of a chain
            sqrt_recip_alphas_cumprod=(1 / alphas_cumprod).sqrt(),
            sqrt_recipm1_alphas_cumprod=(1 / alphas_cumprod - 1).sqrt(),
            posterior_variance=posterior_variance,
            # 0 at t = 0, so its logarithm borrows step 1's.
            posterior_log_variance_clipped=torch.log(torch.cat([posterior_variance[1:2], posterior_variance[1:]])),
            posterior_mean_coef1=betas * previous.sqrt() / (1 - alphas_cumprod),
            posterior_mean_coef2=(1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
            log_betas=torch.log(betas),
            fixed_large_variance=fixed_large_variance,
            fixed_large_log_variance=torch.log(fixed_large_variance),
            timestep_map=torch.arange(len(betas), device=betas.device) if timestep_map is None else timestep_map,
            original_num_timesteps=len(betas) if original_num_timesteps is None else original_num_timesteps,
            rescale_timesteps=rescale_timesteps,
        )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    def model_t(self, t: Steps) -> Float[Tensor, "b"]:
        """What the model is told: the original index, times 1000 / original T when rescaled. float32 as published."""
        original = self.timestep_map[t]
        if not self.rescale_timesteps:
            return original.to(torch.float32)
        return original.to(torch.float32) * (1000.0 / self.original_num_timesteps)

    def gather(self, table: Float[Tensor, "T"], t: Steps, like: Tensor) -> Tensor:
        """table[t], shaped to be multiplied with `like`: in its dtype, but never less than float32.

        float32 is how the published code looks its tables up. In 16 bits 1/sqrt(alphas_cumprod), up to 2e4, would make
        sums of large terms that cancel.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        return table[t].to(dtype).reshape(-1, *[1] * (like.ndim - 1))

    def to(self, device: str | torch.device) -> NoiseSchedule:
        """The same schedule with its tables on a device, so that lookups need no transfer."""
        tables = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tables)  # type: ignore[arg-type]  # only its tensors


def linear(num_timesteps: int, *, rescale_timesteps: bool = True) -> NoiseSchedule:
    """Ho et al. 2020's schedule at any T: betas from 0.1/T to 20/T. Raises ValueError for T <= 20 (beta >= 1)."""
    if num_timesteps <= 20:
        raise ValueError(
            f"diffusion.num_timesteps={num_timesteps}: the linear schedule ends at beta = 20/T, which must be below 1; "
            f"use at least 21 steps, or diffusion.schedule='cosine'"
        )
    scale = 1000 / num_timesteps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)
    return NoiseSchedule.from_betas(betas, rescale_timesteps=rescale_timesteps)


def cosine(num_timesteps: int, *, rescale_timesteps: bool = True) -> NoiseSchedule:
    """IDDPM eq. 17: alphas_cumprod falls as cos^2((t / T + s) / (1 + s) pi / 2), s = 0.008, with beta clipped at 0.999.

    Raises ValueError for T < 2.
    """
    if num_timesteps < 2:
        raise ValueError(f"diffusion.num_timesteps={num_timesteps}: must be at least 2")
    angles = [(i / num_timesteps + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2 for i in range(num_timesteps + 1)]
    levels = [math.cos(angle) ** 2 for angle in angles]
    betas = [min(1 - after / before, MAX_BETA) for before, after in pairwise(levels)]
    return NoiseSchedule.from_betas(torch.tensor(betas, dtype=torch.float64), rescale_timesteps=rescale_timesteps)


def respace(schedule: NoiseSchedule, section_counts: str | Sequence[int]) -> NoiseSchedule:
    """The chain that visits only some of the steps: an ordinary schedule whose timestep_map names the originals.

    "" keeps all; "N" is N steps; "a,b,c" cuts the chain into equal sections that keep a, b and c steps, the first
    nearest t = 0; "ddimN" strides evenly from 0. Raises ValueError for what cannot be expressed.
    """
    kept = kept_timesteps(schedule.num_timesteps, section_counts)
    alphas_cumprod = schedule.alphas_cumprod[kept]
    one = torch.ones(1, dtype=torch.float64, device=alphas_cumprod.device)
    betas = 1 - alphas_cumprod / torch.cat([one, alphas_cumprod[:-1]])
    return NoiseSchedule.from_betas(
        betas,
        timestep_map=schedule.timestep_map[kept],
        original_num_timesteps=schedule.original_num_timesteps,
        rescale_timesteps=schedule.rescale_timesteps,
    )


def kept_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> list[int]:
    """Which of 0..T-1 a respacing keeps, ascending. Raises ValueError for one that cannot be expressed."""
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            return _strided(num_timesteps, _whole(section_counts.removeprefix("ddim"), section_counts))
        if not section_counts:
            return list(range(num_timesteps))
        section_counts = [_whole(part, section_counts) for part in section_counts.split(",")]
    if not section_counts:
        raise ValueError("respacing []: name at least one section, or '' for all steps")
    size, longer = divmod(num_timesteps, len(section_counts))
    kept: list[int] = []
    start = 0
    for number, count in enumerate(section_counts):
        length = size + (number < longer)
        kept += _section(start, length, count)
        start += length
    if len(kept) < 2:
        raise ValueError(
            f"respacing {section_counts}: keeps {len(kept)} of {num_timesteps} steps; at least 2 are needed"
        )
    return kept


def _section(start: int, length: int, count: int) -> list[int]:
    if not 0 <= count <= length:
        raise ValueError(f"respacing: a section of {length} steps cannot keep {count}; at most {length}")
    stride = 1.0 if count <= 1 else (length - 1) / (count - 1)
    kept, position = [], 0.0
    for _ in range(count):
        # The published sum is accumulated in floating point and rounded half to even: both decide ties.
        kept.append(start + round(position))
        position += stride
    return kept


def _strided(num_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == count:
            return list(range(0, num_timesteps, stride))
    raise ValueError(f"respacing 'ddim{count}': no whole stride visits exactly {count} of {num_timesteps} steps")


def _whole(text: str, respacing: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"respacing {respacing!r}: write a count ('250'), counts ('90,60,60,20,20'), 'ddimN', or ''")
    return int(text)
