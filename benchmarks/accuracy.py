"""How exact are the formulas? Each against 50 digits, in float64 and in float32, over both schedules' hardest steps.

The truth is worked out pixel by pixel with mpmath from the betas' own definition and Bayes' rule, never from a table
of ours. An error is relative to the largest value of its image; printed is the worst over all t and images.
    PYTHONPATH=. python benchmarks/accuracy.py > docs/results/accuracy.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain as chain_up

import torch
from mpmath import mp, mpf
from torch import Tensor

from benchmarks._truth import Chain, Truth, page
from diffusion.gaussian import (
    DiffusionConfig,
    Prediction,
    build_schedule,
    p_mean_variance,
    predict_eps_from_xstart,
    predict_xstart_from_eps,
    predict_xstart_from_xprev,
    q_mean_variance,
    q_posterior,
    q_sample,
)
from diffusion.guidance import condition_mean, condition_score, eps_from_score, guided_eps, score_from_eps
from diffusion.likelihood import Cdf, discretized_gaussian_log_likelihood, gaussian_kl
from diffusion.losses import diffusion_losses, vlb_term
from diffusion.nll import prior_bpd
from diffusion.sampling import SamplerConfig, ancestral_step, ddim_step, ddim_step_up
from diffusion.schedule import NoiseSchedule, respace

PIXELS = 6
ETAS = (0.0, 0.5, 1.0)
Numbers = list[list[mpf]]  # [image][pixel]
Compared = tuple[str, Tensor, Numbers]  # name, ours, the truth


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
    yield from other_predictions(case)
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


def other_predictions(case: Case) -> Iterator[Compared]:
    """p of networks that say something else than eps and a variance in its range."""
    truth, t, x_t, said = case.truth, case.t, case.x_t, case.said

    def p(output: Tensor, **choices: str) -> Prediction:
        config = replace(case.config, **{"loss": "simple", **choices})  # type: ignore[arg-type]
        return p_mean_variance(config, case.schedule, output, x_t=x_t, t=t, clip_denoised=True)

    ours = p(said, prediction="x_start", variance="fixed_small")
    yield "mean of predicted x_start", ours.mean, case.each(truth.mean_of_clipped, x_t, said)
    yield "fixed_small: variance", ours.variance, case.each(lambda t, x: truth.small(t), x_t)
    ours = p(said, variance="fixed_large")
    yield "fixed_large: log variance", ours.log_variance, case.each(lambda t, x: mp.log(truth.large(t)), x_t)
    ours = p(torch.cat([said, case.v - 2], dim=1), variance="learned", loss="vlb")
    yield "learned: variance", ours.variance, case.each(lambda t, v: mp.exp(v), case.v - 2)


def steps(case: Case) -> Iterator[Compared]:
    """Sampling and guidance."""
    truth, schedule, t, x_t, said, noise = case.truth, case.schedule, case.t, case.x_t, case.said, case.noise
    bars = case.chain.bars
    step = ancestral_step(SamplerConfig(), schedule, case.p, x_t=x_t, t=t, noise=noise)
    yield "ancestral_step", step, case.each(truth.ancestral, x_t, said, case.v, noise)
    for eta in ETAS:
        step = ddim_step(SamplerConfig(kind="ddim", eta=eta), schedule, case.p, x_t=x_t, t=t, noise=noise)
        yield f"ddim_step, eta {eta}", step, case.each(partial(truth.ddim, mpf(eta)), x_t, said, noise)
    yield "ddim_step_up", ddim_step_up(schedule, case.p, x_t=x_t, t=t), case.each(truth.ddim_up, x_t, said)
    ours = condition_mean(case.p, noise).mean
    yield "condition_mean: mean", ours, case.each(truth.guided_mean, x_t, said, case.v, noise)
    guided = condition_score(schedule, case.p, x_t=x_t, t=t, gradient=noise)
    yield "condition_score: x_start", guided.pred_xstart, case.each(truth.guided_start, x_t, said, noise)
    ours = guided_eps(schedule, said, t=t, gradient=noise)
    yield "guided_eps", ours, case.each(lambda t, e, g: e - mp.sqrt(1 - bars[t + 1]) * g, said, noise)
    ours = score_from_eps(schedule, said, t=t)
    yield "score_from_eps", ours, case.each(lambda t, e: -e / mp.sqrt(1 - bars[t + 1]), said)
    ours = eps_from_score(schedule, said, t=t)
    yield "eps_from_score", ours, case.each(lambda t, s: -s * mp.sqrt(1 - bars[t + 1]), said)


NOTES = """\
Large errors are the published formulas' own, which are kept: they take differences of numbers that are nearly equal.
x_start from x_prev, divided by a coefficient of 1e-4; vlb_term at small t, where true and predicted mean differ by
little; the approximate CDF in the tails, a difference of two tanh near 1, down to the floor of 1e-12 (the exact CDF is
taken from the near side, and keeps its digits).
"""


def means(rows: Numbers) -> Numbers:
    """Of every image."""
    return [[sum(row, mpf(0)) / len(row)] for row in rows]


def worst(ours: Tensor, truth: Numbers) -> float:
    """Largest error of an image, relative to its largest value, over all images."""
    assert ours.isfinite().all(), "max() would not see a nan"
    errors = []
    for values, exact in zip(ours.double().reshape(len(truth), -1).tolist(), truth, strict=True):
        scale = max(abs(value) for value in exact)
        if scale:
            errors.append(max(abs(mpf(v) - e) for v, e in zip(values, exact, strict=True)) / scale)
    return float(max(errors))


def main() -> None:
    """Print the tables as markdown."""
    print("# How exact the formulas are\n")
    print("Largest relative error against 50 digits (`PYTHONPATH=. python benchmarks/accuracy.py`). Linear and cosine,")
    print(
        "T = 1000 and 4000. Formulas: t = 0, 1, 2, T/4, T/2, 3T/4, T-2, T-1, learned range, x_start clipped where the"
    )
    print("papers clip it; relative to the largest pixel of an image. float32: inputs of float32, tables looked up as")
    print("float32, as published.\n")
    print(NOTES)
    found: dict[str, dict[str, float]] = {}
    of_tables: dict[str, float] = {}
    for name in ("linear", "cosine"):
        for T in (1000, 4000):
            chain = Chain(name, T)
            config = DiffusionConfig(num_timesteps=T, schedule=name)  # type: ignore[arg-type]
            schedule = build_schedule(config)
            for table, ours, truth in tables(chain, schedule):
                error = max(worst(ours[t : t + 1], [[truth[t]]]) if truth[t] else abs(float(ours[t])) for t in range(T))
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
