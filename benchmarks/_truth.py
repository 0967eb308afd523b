"""The papers' process in 50 digits: schedules from their definition, posteriors by Bayes' rule, one pixel at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mpmath import mp, mpf

mp.dps = 50


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

    def mean_of_clipped(self, t: int, x_t: mpf, x_start: mpf) -> mpf:
        return self.chain.posterior_mean(t, min(mpf(1), max(mpf(-1), x_start)), x_t)

    def small(self, t: int) -> mpf:
        return self.chain.posterior_variance(t) if t else mpf(0)

    def large(self, t: int) -> mpf:
        return self.chain.betas[t] if t else self.chain.posterior_variance(1)

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

    def guided_start(self, t: int, x_t: mpf, eps: mpf, gradient: mpf) -> mpf:
        eps = self.eps_of(t, x_t, self.clipped(t, x_t, eps))
        return self.start(t, x_t, eps - mp.sqrt(1 - self.bars[t + 1]) * gradient)

    def ddim(self, eta: mpf, t: int, x_t: mpf, eps: mpf, noise: mpf) -> mpf:
        x_start, alpha, before = self.clipped(t, x_t, eps), self.bars[t + 1], self.bars[t]
        variance = eta**2 * (1 - before) / (1 - alpha) * (1 - alpha / before)
        direction = mp.sqrt(1 - before - variance) * self.eps_of(t, x_t, x_start)
        return mp.sqrt(before) * x_start + direction + (mp.sqrt(variance) * noise if t else 0)

    def ddim_up(self, t: int, x_t: mpf, eps: mpf) -> mpf:
        x_start, after = self.clipped(t, x_t, eps), self.bars[t + 2] if t + 2 < len(self.bars) else mpf(0)
        return mp.sqrt(after) * x_start + mp.sqrt(1 - after) * self.eps_of(t, x_t, x_start)


def page(x: mpf) -> mpf:
    """The published approximation of the normal CDF."""
    return (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3))) / 2
