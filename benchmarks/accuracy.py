"""How exact are the formulas? Each against 50 digits, in float64 and in float32, over both schedules' hardest steps.

The truth is worked out pixel by pixel with mpmath from the betas' own definition and Bayes' rule, never from a table
of ours. An error is relative to the largest value of its image; printed is the worst over all t and images.
    python benchmarks/accuracy.py > docs/results/accuracy.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain as chain_up

import torch
from mpmath import mp, mpf
from torch import Tensor

from diffusion.gaussian import (
    DiffusionConfig,
    build_schedule,
    p_mean_variance,
    predict_eps_from_xstart,
    predict_xstart_from_eps,
    predict_xstart_from_xprev,
    q_mean_variance,
    q_posterior,
    q_sample,
)
from diffusion.guidance import condition_mean, guided_eps, score_from_eps
from diffusion.likelihood import Cdf, discretized_gaussian_log_likelihood, gaussian_kl
from diffusion.losses import diffusion_losses, vlb_term
from diffusion.nll import prior_bpd
from diffusion.sampling import SamplerConfig, ancestral_step, ddim_step, ddim_step_up
from diffusion.schedule import NoiseSchedule, respace

mp.dps = 50
PIXELS = 6
ETA = 0.5
Numbers = list[list[mpf]]  # [image][pixel]
Compared = tuple[str, Tensor, Numbers]  # name, ours, the truth


@dataclass(frozen=True)
class Chain:
    """A schedule in 50 digits, from its definition."""

    name: str
    num_timesteps: int

    @cached_property
    def betas(self) -> list[mpf]:
        T = self.num_timesteps
        if self.name == "linear":
            low, high = mpf("0.1") / T, mpf(20) / T
            return [low + (high - low) * i / (T - 1) for i in range(T)]
        levels = [mp.cos((mpf(i) / T + mpf("0.008")) / mpf("1.008") * mp.pi / 2) ** 2 for i in range(T + 1)]
        return [min(1 - levels[i + 1] / levels[i], mpf("0.999")) for i in range(T)]

    @cached_property
    def bars(self) -> list[mpf]:
        """alpha-bar after 0, 1, ..., T steps."""
        bars = [mpf(1)]
        for beta in self.betas:
            bars.append(bars[-1] * (1 - beta))
        return bars

    def posterior_variance(self, t: int) -> mpf:
        """Bayes: the prior N(., 1 - bar_{t-1}) has its precision, the step to x_t adds (1 - beta) / beta."""
        return 1 / (1 / (1 - self.bars[t]) + (1 - self.betas[t]) / self.betas[t])

    def posterior_mean(self, t: int, x_start: mpf, x_t: mpf) -> mpf:
        if t == 0:
            return x_start
        seen = mp.sqrt(1 - self.betas[t]) * x_t / self.betas[t]
        return self.posterior_variance(t) * (mp.sqrt(self.bars[t]) * x_start / (1 - self.bars[t]) + seen)


def tables(chain: Chain, schedule: NoiseSchedule) -> Iterator[tuple[str, Tensor, list[mpf]]]:
    """Every table of a schedule: name, ours, the truth."""
    after, before = chain.bars[1:], chain.bars[:-1]
    T = chain.num_timesteps
    small = [mpf(0)] + [chain.posterior_variance(t) for t in range(1, T)]
    clipped = [small[1], *small[1:]]
    large = [small[1], *chain.betas[1:]]
    truths = {
        "betas": chain.betas,
        "alphas_cumprod": after,
        "alphas_cumprod_prev": before,
        "alphas_cumprod_next": [*after[1:], mpf(0)],
        "sqrt_alphas_cumprod": [mp.sqrt(bar) for bar in after],
        "sqrt_one_minus_alphas_cumprod": [mp.sqrt(1 - bar) for bar in after],
        "log_one_minus_alphas_cumprod": [mp.log(1 - bar) for bar in after],
        "sqrt_recip_alphas_cumprod": [mp.sqrt(1 / bar) for bar in after],
        "sqrt_recipm1_alphas_cumprod": [mp.sqrt(1 / bar - 1) for bar in after],
        "posterior_variance": small,
        "posterior_log_variance_clipped": [mp.log(v) for v in clipped],
        "posterior_mean_coef1": [b * mp.sqrt(p) / (1 - a) for b, p, a in zip(chain.betas, before, after, strict=True)],
        "posterior_mean_coef2": [
            (1 - p) * mp.sqrt(1 - b) / (1 - a) for b, p, a in zip(chain.betas, before, after, strict=True)
        ],
        "log_betas": [mp.log(b) for b in chain.betas],
        "fixed_large_variance": large,
        "fixed_large_log_variance": [mp.log(v) for v in large],
    }
    for name, truth in truths.items():
        yield name, getattr(schedule, name), truth


class Truth:
    """The papers' formulas in 50 digits, of one pixel at one t."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.bars = chain, chain.bars

    def noised(self, t: int, x_start: mpf, eps: mpf) -> mpf:
        return mp.sqrt(self.bars[t + 1]) * x_start + mp.sqrt(1 - self.bars[t + 1]) * eps

    def start(self, t: int, x_t: mpf, eps: mpf) -> mpf:
        return (x_t - mp.sqrt(1 - self.bars[t + 1]) * eps) / mp.sqrt(self.bars[t + 1])

    def start_of_mean(self, t: int, x_t: mpf, x_prev: mpf) -> mpf:
        """The posterior mean is linear in x_start: where it passes through x_prev."""
        at_zero = self.chain.posterior_mean(t, mpf(0), x_t)
        return (x_prev - at_zero) / (self.chain.posterior_mean(t, mpf(1), x_t) - at_zero)

    def eps_of(self, t: int, x_t: mpf, x_start: mpf) -> mpf:
        return (x_t - mp.sqrt(self.bars[t + 1]) * x_start) / mp.sqrt(1 - self.bars[t + 1])

    def clipped(self, t: int, x_t: mpf, eps: mpf) -> mpf:
        return min(mpf(1), max(mpf(-1), self.start(t, x_t, eps)))

    def p_mean(self, t: int, x_t: mpf, eps: mpf) -> mpf:
        return self.chain.posterior_mean(t, self.clipped(t, x_t, eps), x_t)

    def p_log_variance(self, t: int, v: mpf) -> mpf:
        fraction = (v + 1) / 2
        smallest = mp.log(self.chain.posterior_variance(max(t, 1)))
        return fraction * mp.log(self.chain.betas[t]) + (1 - fraction) * smallest

    def p_variance(self, t: int, v: mpf) -> mpf:
        return mp.exp(self.p_log_variance(t, v))

    def kl(self, t: int, mean1: mpf, log_variance1: mpf, mean2: mpf, log_variance2: mpf) -> mpf:
        spread = mp.exp(log_variance1) + (mean1 - mean2) ** 2
        return (log_variance2 - log_variance1 + spread / mp.exp(log_variance2) - 1) / 2

    def decoder(self, cdf: Callable[[mpf], mpf], t: int, x_start: mpf, mean: mpf, log_variance: mpf) -> mpf:
        deviation = mp.exp(log_variance / 2)
        above = cdf((x_start + mpf(1) / 255 - mean) / deviation) if x_start < mpf("0.999") else mpf(1)
        below = cdf((x_start - mpf(1) / 255 - mean) / deviation) if x_start > mpf("-0.999") else mpf(0)
        return mp.log(max(above - below, mpf("1e-12")))

    def bits(self, t: int, x_start: mpf, x_t: mpf, eps: mpf, v: mpf) -> mpf:
        """The pixel's part of L_t, unclipped."""
        mean, log_variance = self.chain.posterior_mean(t, self.start(t, x_t, eps), x_t), self.p_log_variance(t, v)
        if t == 0:
            return -self.decoder(page, t, x_start, mean, log_variance) / mp.log(2)
        q_mean, q_log_variance = self.chain.posterior_mean(t, x_start, x_t), mp.log(self.chain.posterior_variance(t))
        return self.kl(t, q_mean, q_log_variance, mean, log_variance) / mp.log(2)

    def prior(self, t: int, x_start: mpf) -> mpf:
        last = self.bars[-1]
        return self.kl(t, mp.sqrt(last) * x_start, mp.log(1 - last), mpf(0), mpf(0)) / mp.log(2)

    def ancestral(self, t: int, x_t: mpf, eps: mpf, v: mpf, noise: mpf) -> mpf:
        return self.p_mean(t, x_t, eps) + (mp.sqrt(self.p_variance(t, v)) * noise if t else 0)

    def guided_mean(self, t: int, x_t: mpf, eps: mpf, v: mpf, gradient: mpf) -> mpf:
        return self.p_mean(t, x_t, eps) + self.p_variance(t, v) * gradient

    def ddim(self, t: int, x_t: mpf, eps: mpf, noise: mpf) -> mpf:
        x_start, alpha, before = self.clipped(t, x_t, eps), self.bars[t + 1], self.bars[t]
        variance = mpf(ETA) ** 2 * (1 - before) / (1 - alpha) * (1 - alpha / before)
        direction = mp.sqrt(1 - before - variance) * self.eps_of(t, x_t, x_start)
        return mp.sqrt(before) * x_start + direction + (mp.sqrt(variance) * noise if t else 0)

    def ddim_up(self, t: int, x_t: mpf, eps: mpf) -> mpf:
        x_start, after = self.clipped(t, x_t, eps), self.bars[t + 2] if t + 2 < len(self.bars) else mpf(0)
        return mp.sqrt(after) * x_start + mp.sqrt(1 - after) * self.eps_of(t, x_t, x_start)


def page(x: mpf) -> mpf:
    """The published approximation of the normal CDF."""
    return (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3))) / 2


class Case:
    """Images at some steps of a chain, in one dtype, and what is true of the very same numbers."""

    def __init__(self, chain: Chain, schedule: NoiseSchedule, config: DiffusionConfig, dtype: torch.dtype) -> None:
        T = chain.num_timesteps
        self.chain, self.schedule, self.config, self.truth = chain, schedule, config, Truth(chain)
        self.steps = [0, 1, 2, T // 4, T // 2, 3 * T // 4, T - 2, T - 1]
        self.t = torch.tensor(self.steps)
        generator = torch.Generator().manual_seed(0)
        levels = torch.randint(0, 256, (len(self.steps), PIXELS), generator=generator)
        levels[:, 0], levels[:, 1] = 0, 255
        normals = torch.randn(4, len(self.steps), PIXELS, generator=generator, dtype=torch.float64).to(dtype)
        # The grey levels as the dtype has them: its own rounding of them is no error of a formula.
        self.x_start = self.image((levels.to(torch.float64) / 127.5 - 1).to(dtype))
        self.eps, self.said, v, self.noise = (self.image(values) for values in normals)
        self.v = v.clamp(-1, 1)
        self.x_t = q_sample(schedule, x_start=self.x_start, t=self.t, eps=self.eps)
        self.p = p_mean_variance(
            config, schedule, torch.cat([self.said, self.v], dim=1), x_t=self.x_t, t=self.t, clip_denoised=True
        )

    def image(self, values: Tensor) -> Tensor:
        return values.reshape(len(self.steps), 1, 1, PIXELS)

    def each(self, of: Callable[..., mpf], *images: Tensor) -> Numbers:
        """of(t, pixel, ...) for every pixel."""
        rows = [image.reshape(len(self.steps), PIXELS).double().tolist() for image in images]
        return [
            [of(t, *(mpf(row[number][pixel]) for row in rows)) for pixel in range(PIXELS)]
            for number, t in enumerate(self.steps)
        ]


def forward(case: Case) -> Iterator[Compared]:
    """q, and the conversions between x_start, eps and x_prev."""
    truth, schedule, t, x_start, x_t = case.truth, case.schedule, case.t, case.x_start, case.x_t
    bars, said = case.chain.bars, case.said
    yield "q_sample", x_t, case.each(truth.noised, x_start, case.eps)
    mean, variance, log_variance = q_mean_variance(schedule, x_start=x_start, t=t)
    yield "q_mean_variance: mean", mean, case.each(lambda t, x: mp.sqrt(bars[t + 1]) * x, x_start)
    yield "q_mean_variance: variance", variance, case.each(lambda t, x: 1 - bars[t + 1], x_start)
    yield "q_mean_variance: log variance", log_variance, case.each(lambda t, x: mp.log(1 - bars[t + 1]), x_start)
    mean, _, _ = q_posterior(schedule, x_start=x_start, x_t=x_t, t=t)
    yield "q_posterior: mean", mean, case.each(case.chain.posterior_mean, x_start, x_t)
    ours = predict_xstart_from_eps(schedule, x_t=x_t, t=t, eps=said)
    yield "predict_xstart_from_eps", ours, case.each(truth.start, x_t, said)
    ours = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=x_start)
    yield "predict_eps_from_xstart", ours, case.each(truth.eps_of, x_t, x_start)
    ours = predict_xstart_from_xprev(schedule, x_t=x_t, t=t, x_prev=mean)
    yield "predict_xstart_from_xprev", ours, case.each(truth.start_of_mean, x_t, mean)


def bound(case: Case) -> Iterator[Compared]:
    """p, likelihood, losses."""
    truth, schedule, config, t, x_start, x_t = case.truth, case.schedule, case.config, case.t, case.x_start, case.x_t
    yield "p_mean_variance: mean", case.p.mean, case.each(truth.p_mean, x_t, case.said)
    yield "p_mean_variance: log variance", case.p.log_variance, case.each(truth.p_log_variance, case.v)
    yield "p_mean_variance: variance", case.p.variance, case.each(truth.p_variance, case.v)
    pair = (case.said, case.v, case.eps, case.noise)
    yield "gaussian_kl", gaussian_kl(*pair), case.each(truth.kl, *pair)
    mean, log_variance = case.said / 4, case.v - 4
    choices: tuple[tuple[Cdf, Callable[[mpf], mpf]], ...] = (("approximate", page), ("exact", mp.ncdf))
    for name, cdf in choices:
        found = discretized_gaussian_log_likelihood(x_start, mean=mean, log_variance=log_variance, cdf=name)
        yield f"decoder, {name} CDF", found, case.each(partial(truth.decoder, cdf), x_start, mean, log_variance)
    near = case.eps + case.said / 50  # about as far off as a trained network
    output = torch.cat([near, case.v], dim=1)
    term = vlb_term(config, schedule, output, x_start=x_start, x_t=x_t, t=t, clip_denoised=False)
    bits = means(case.each(truth.bits, x_start, x_t, near, case.v))
    yield "vlb_term", term, bits
    losses = diffusion_losses(config, schedule, lambda x, s: output, x_start=x_start, t=t, eps=case.eps)
    simple = means(case.each(lambda t, e, o: (e - o) ** 2, case.eps, near))
    yield "L_simple", losses.simple, simple
    weight = mpf("0.001") * case.chain.num_timesteps
    yield "L_hybrid", losses.objective, [[s[0] + weight * b[0]] for s, b in zip(simple, bits, strict=True)]
    yield "prior_bpd", prior_bpd(schedule, x_start), means(case.each(truth.prior, x_start))


def steps(case: Case) -> Iterator[Compared]:
    """Sampling and guidance."""
    truth, schedule, t, x_t, said, noise = case.truth, case.schedule, case.t, case.x_t, case.said, case.noise
    bars = case.chain.bars
    step = ancestral_step(SamplerConfig(), schedule, case.p, x_t=x_t, t=t, noise=noise)
    yield "ancestral_step", step, case.each(truth.ancestral, x_t, said, case.v, noise)
    step = ddim_step(SamplerConfig(kind="ddim", eta=ETA), schedule, case.p, x_t=x_t, t=t, noise=noise)
    yield f"ddim_step, eta {ETA}", step, case.each(truth.ddim, x_t, said, noise)
    yield "ddim_step_up", ddim_step_up(schedule, case.p, x_t=x_t, t=t), case.each(truth.ddim_up, x_t, said)
    ours = condition_mean(case.p, noise).mean
    yield "condition_mean: mean", ours, case.each(truth.guided_mean, x_t, said, case.v, noise)
    ours = guided_eps(schedule, said, t=t, gradient=noise)
    yield "guided_eps", ours, case.each(lambda t, e, g: e - mp.sqrt(1 - bars[t + 1]) * g, said, noise)
    ours = score_from_eps(schedule, said, t=t)
    yield "score_from_eps", ours, case.each(lambda t, e: -e / mp.sqrt(1 - bars[t + 1]), said)


def means(rows: Numbers) -> Numbers:
    """Of every image."""
    return [[sum(row, mpf(0)) / len(row)] for row in rows]


def worst(ours: Tensor, truth: Numbers) -> float:
    """Largest error of an image, relative to its largest value, over all images."""
    errors = []
    for values, exact in zip(ours.double().reshape(len(truth), -1).tolist(), truth, strict=True):
        scale = max(abs(value) for value in exact)
        if scale:
            errors.append(max(abs(mpf(v) - e) for v, e in zip(values, exact, strict=True)) / scale)
    return float(max(errors))


def main() -> None:
    """Print the tables as markdown."""
    print("# How exact the formulas are\n")
    print("Largest relative error against 50 digits (`python benchmarks/accuracy.py`); schedules linear and cosine,")
    print(
        "T = 1000 and 4000. Formulas: t = 0, 1, 2, T/4, T/2, 3T/4, T-2, T-1, learned range, x_start clipped where the"
    )
    print("papers clip it; relative to the largest pixel of an image. float32: inputs of float32, tables looked up as")
    print("float32, as published.\n")
    found: dict[str, dict[str, float]] = {}
    of_tables: dict[str, float] = {}
    for name in ("linear", "cosine"):
        for T in (1000, 4000):
            chain = Chain(name, T)
            config = DiffusionConfig(num_timesteps=T, schedule=name)  # type: ignore[arg-type]
            schedule = build_schedule(config)
            for table, ours, truth in tables(chain, schedule):
                error = max(worst(ours[t : t + 1], [[truth[t]]]) if truth[t] else float(ours[t]) for t in range(T))
                of_tables[table] = max(of_tables.get(table, 0.0), error)
            kept = respace(schedule, "100").timestep_map.tolist()
            spaced = respace(schedule, "100").alphas_cumprod
            of_tables["alphas_cumprod of respace(100)"] = max(
                of_tables.get("alphas_cumprod of respace(100)", 0.0),
                *(worst(spaced[i : i + 1], [[chain.bars[t + 1]]]) for i, t in enumerate(kept)),
            )
            for dtype in (torch.float64, torch.float32):
                case = Case(chain, schedule, config, dtype)
                for formula, ours, truth in chain_up(forward(case), bound(case), steps(case)):
                    row = found.setdefault(formula, {})
                    label = str(dtype).removeprefix("torch.")
                    row[label] = max(row.get(label, 0.0), worst(ours, truth))
    print("| table (float64) | largest relative error |\n|---|---:|")
    print("\n".join(f"| `{name}` | {error:.1e} |" for name, error in of_tables.items()))
    print("\n| formula | float64 | float32 |\n|---|---:|---:|")
    print("\n".join(f"| {name} | {row['float64']:.1e} | {row['float32']:.1e} |" for name, row in found.items()))


if __name__ == "__main__":
    main()
