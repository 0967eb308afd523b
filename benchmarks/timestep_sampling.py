"""What does importance sampling of t save, and how soon? L_vlb's terms of a trained model of 8x8 digits, T = 4000.

The terms of many examples are measured at every t once; samplers then draw from them, from an empty history on.
Printed: examples until the sampler is warm, the variance of its estimate of L_vlb against uniform t, and its bias.
    PYTHONPATH=. python benchmarks/timestep_sampling.py > docs/results/timestep_sampling.md
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from benchmarks._trained import trained_model
from diffusion.nll import term_at
from diffusion.randomness import NLL_NOISE, normal
from diffusion.timestep_sampler import (
    LossSecondMomentConfig,
    LossSecondMomentSampler,
    TimestepSampler,
    UniformSampler,
)
from pipelines.trained import TrainedModel

TRAIN_STEPS = 220
PER_T = 16  # examples whose term is known at each t
BATCH = 128
TRIALS = 3
POOLS = (None, 15, 30, 60, 120)
DRAWS = 500_000


def terms(model: TrainedModel, test: Tensor) -> Tensor:
    """T L_t of PER_T examples at every t, unclipped as in training: (T, PER_T), float64."""
    T, found = model.schedule.num_timesteps, []
    for index in torch.arange(T * PER_T).split(512):
        x_start, t = test[index % len(test)], index // PER_T
        eps = normal(seed=5, stream=NLL_NOISE, step=0, index=index, shape=tuple(x_start.shape[1:]))
        term = term_at(
            model.diffusion, model.schedule, model.network, x_start=x_start, t=t, eps=eps, clip_denoised=False
        )
        found.append(T * term.vlb_bpd.double())
    return torch.cat(found).reshape(T, PER_T)


def warm_up(known: Tensor, pools: int | None, seed: int) -> tuple[int, LossSecondMomentSampler]:
    """A sampler that has just become warm, and how many examples that took."""
    generator = torch.Generator().manual_seed(seed)
    sampler, seen = LossSecondMomentSampler(LossSecondMomentConfig(pools=pools), len(known)), 0
    while not sampler.is_warm:
        t, _ = sampler.sample(torch.rand(BATCH, generator=generator, dtype=torch.float64))
        sampler.update(t, known[t, torch.randint(PER_T, (BATCH,), generator=generator)])
        seen += BATCH
    return seen, sampler


def drawn(known: Tensor, sampler: TimestepSampler, seed: int) -> Tensor:
    """Weighted losses of DRAWS examples whose t the sampler draws."""
    generator = torch.Generator().manual_seed(seed)
    t, weights = sampler.sample(torch.rand(DRAWS, generator=generator, dtype=torch.float64))
    return weights.double() * known[t, torch.randint(PER_T, (DRAWS,), generator=generator)]


def main() -> None:
    """Print the table as markdown."""
    torch.set_num_threads(2)
    model, test = trained_model(steps=TRAIN_STEPS)
    known = terms(model, test)
    mean = float(known.mean())
    uniform = float(drawn(known, UniformSampler(len(known)), seed=0).var())
    print(
        f"# Importance sampling of t: what it saves, and how soon\n\n"
        f"T L_t of {PER_T} examples at each of {len(known)} t, of a network after {TRAIN_STEPS} steps on 8x8 digits.\n"
        f"Samplers fill their histories of 10 with it and, once warm, draw {DRAWS:,} examples; medians of {TRIALS}\n"
        f"trials. The bias is the mean weighted loss less L_vlb, in standard errors, in the worst of the trials.\n"
        f"`PYTHONPATH=. python benchmarks/timestep_sampling.py`\n\n"
        f"| t drawn by | examples until warm | variance over uniform's | largest bias |\n|---|---:|---:|---:|\n"
        f"| uniform | 0 | 1 | - |"
    )
    for pools in POOLS:
        rows = []
        for trial in range(TRIALS):
            seen, sampler = warm_up(known, pools, trial)
            values = drawn(known, sampler, seed=trial)
            bias = float((values.mean() - mean) / (values.std() / math.sqrt(DRAWS)))
            rows.append((seen, float(values.var()) / uniform, bias))
        name = "the paper's: a history for each t" if pools is None else f"{pools} pools of neighbouring t"
        seen, variance = (statistics.median(column) for column in list(zip(*rows, strict=True))[:2])
        print(f"| {name} | {seen:,.0f} | {variance:.1e} | {max((r[2] for r in rows), key=abs):+.1f} |")
    best = float(known.square().mean(dim=1).sqrt().mean()) ** 2 - mean**2
    print(f"| sqrt(E[L_t^2]) itself | - | {best / uniform:.1e} | - |")


if __name__ == "__main__":
    main()
