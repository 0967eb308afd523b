"""Does a number fall with compute as a power law? L(C) = E + (C / C0)^-a (Improved DDPM, figure 10), with intervals.

The fit is by least squares that heed outliers little, from several starts. Its intervals are of a bootstrap over sizes
and seeds: what a size deviates from the law by, and what seeds of one size deviate from each other, are drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.stats import norm
from scipy.stats import t as student

Floats = NDArray[np.float64]
Parameters = tuple[float, float, float | None]
"""Exponent, logarithm of the height in the middle, and offset, None where there is none."""
EXPONENTS = (0.01, 5.0)
"""Between which a is looked for."""
STARTS = np.geomspace(0.02, 4.0, 32)
BEST_STARTS, ROUNDS = 3, 3
FLAT = 1e-3
"""A law whose falling part is less than that of the values' spread, in the middle, falls nowhere."""
REPLICATES = 400
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = offset + (C / C0)^-exponent, C in the unit of the points it was fitted to."""

    exponent: float
    """a."""
    log_scale: float
    """Natural logarithm of C0, which is easily beyond what a float holds."""
    offset: float
    """E: what no compute takes away; 0 of a law without it."""

    def at(self, compute: Floats | float) -> Floats:
        """L(C)."""
        return np.asarray(self.offset + np.exp(-self.exponent * (np.log(compute) - self.log_scale)))


@dataclass(frozen=True)
class Interval:
    """A value, and where 95 % of such fits would have it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FittedLaw:
    """A law, and the laws of the bootstrap."""

    law: PowerLaw
    replicates: tuple[PowerLaw, ...]
    freedom: float
    """Degrees of freedom of what points deviate by."""
    residuals: Floats
    """(n,): points less the law, in the points' order."""

    def interval(self, of: str) -> Interval:
        """Of exponent, log_scale or offset; an exponent is more than 0, an offset not less."""
        value, others = getattr(self.law, of), [getattr(law, of) for law in self.replicates]
        if of == "exponent":
            return self._in_logs(value, others)
        found = self._interval(value, others)
        return replace(found, low=max(0.0, found.low)) if of == "offset" else found

    def prediction(self, compute: float) -> Interval:
        """Of L(C) itself, not of one more run, which deviates by its seed besides."""
        return self._in_logs(float(self.law.at(compute)), [float(law.at(compute)) for law in self.replicates])

    def _in_logs(self, value: float, others: Sequence[float]) -> Interval:
        """Of what is more than 0, and stays so when it is widened."""
        found = self._interval(float(np.log(value)), list(np.log(others)))
        return Interval(value, float(np.exp(found.low)), float(np.exp(found.high)))

    def _interval(self, value: float, others: Sequence[float]) -> Interval:
        """Percentiles, widened as Student's t is wider than a normal: points are few."""
        low, high = np.quantile(others, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        wider = student.ppf((1 + CONFIDENCE) / 2, self.freedom) / norm.ppf((1 + CONFIDENCE) / 2)
        return Interval(value, value + (low - value) * wider, value + (high - value) * wider)


def fit(compute: Floats, values: Floats, *, with_offset: bool = True, relative: bool = False) -> PowerLaw:
    """The law of points (n,), whose deviations are of one size or, by choice, relative to their values.

    Raises ValueError for points that no law, or more than one, goes through.
    """
    _check(compute, values, with_offset=with_offset)
    middle, away, weights = _around_the_middle(compute, values, relative=relative)
    candidates = [_linear(np.exp(away), values, weights, exponent, with_offset) for exponent in STARTS]
    starts = [start for _, start in sorted(candidates, key=lambda candidate: candidate[0])[:BEST_STARTS]]
    for _ in range(ROUNDS):
        spread = _spread(starts[0], away, values, weights)
        ends = sorted((_refined(away, values, weights, start, spread) for start in starts), key=lambda end: end[0])
        starts = [end for _, end in ends]
    exponent, log_height, _ = starts[0]
    if not EXPONENTS[0] * 1.01 < exponent < EXPONENTS[1] / 1.01 or np.exp(log_height) * weights.max() < FLAT:
        raise ValueError(
            f"these values do not fall with compute as a power law does: the nearest has exponent {exponent:.3g}; "
            f"look at the points first"
        )
    return _law(starts[0], middle)


def _around_the_middle(compute: Floats, values: Floats, *, relative: bool) -> tuple[float, Floats, Floats]:
    """The middle of log compute, what is away from it, and weights.

    Exponent and scale then hardly hang on each other: the law is offset + exp(log_height - exponent * away).
    """
    middle = float(np.log(compute).mean())
    spread = values if relative else np.full(len(values), float(np.ptp(values)))
    return middle, np.log(compute) - middle, 1 / spread


def _law(found: Parameters, middle: float) -> PowerLaw:
    exponent, log_height, offset = found
    return PowerLaw(exponent, middle + log_height / exponent, offset or 0.0)


def fit_with_intervals(
    compute: Floats, values: Floats, sizes: Sequence[str], *,
    seed: int, with_offset: bool = True, relative: bool = False, replicates: int = REPLICATES,
) -> FittedLaw:  # fmt: skip
    """See fit; sizes: which size of model each point is of, or which length of training: its seeds are alike in that.

    Raises ValueError as fit does.
    """
    law = fit(compute, values, with_offset=with_offset, relative=relative)
    fitted = law.at(compute)
    scale = fitted if relative else np.ones_like(fitted)
    deviations = _Deviations.estimated((values - fitted) / scale, sizes, parameters=3 if with_offset else 2)
    rng = np.random.default_rng(seed)
    middle, away, weights = _around_the_middle(compute, values, relative=relative)
    height = law.exponent * (law.log_scale - middle)
    start = (law.exponent, height, law.offset if with_offset else None)
    width = _spread(start, away, values, weights)
    drawn = (fitted + scale * deviations.drawn(rng) for _ in range(replicates))
    laws = [_law(_refined(away, again, weights, start, width)[1], middle) for again in drawn]
    return FittedLaw(law, tuple(laws), deviations.freedom, values - fitted)


def without_largest(compute: Floats, values: Floats, sizes: Sequence[str]) -> tuple[Floats, Floats, list[str]]:
    """The points of all but the size with the most compute: what the others say of it is then a prediction."""
    largest = sizes[int(np.argmax(compute))]
    kept = np.array([size != largest for size in sizes])
    return compute[kept], values[kept], [size for size in sizes if size != largest]


def _check(compute: Floats, values: Floats, *, with_offset: bool) -> None:
    if compute.shape != values.shape or compute.ndim != 1:
        raise ValueError(f"compute of shape {compute.shape} and values of {values.shape}: one of each, for every point")
    if not (np.isfinite(compute).all() and np.isfinite(values).all() and (compute > 0).all() and (values > 0).all()):
        raise ValueError("a power law goes through points with finite values and compute, all more than 0")
    if np.ptp(values) <= 1e-12 * float(np.abs(values).max()):
        raise ValueError(f"all values are {values[0]:g}: they do not fall with compute")
    different, parameters = len(np.unique(compute)), 3 if with_offset else 2
    if different < parameters or len(compute) <= parameters:
        raise ValueError(
            f"{len(compute)} points at {different} different computes: a law of {parameters} parameters takes at least "
            f"{parameters + 1} points at {parameters} computes; measure more sizes, or fit it without an offset"
        )


def _linear(
    compute: Floats, values: Floats, weights: Floats, exponent: float, with_offset: bool
) -> tuple[float, Parameters]:
    """With that exponent: how far off the best law is, and its exponent, logarithm of height, and offset."""
    falling = compute**-exponent
    columns = np.stack([falling, np.ones_like(falling)][: 2 if with_offset else 1], axis=1)
    found, rest = nnls(columns * weights[:, None], values * weights)
    height = max(float(found[0]), 1e-12 * float(values.mean()))
    return rest, (exponent, float(np.log(height)), float(found[1]) if with_offset else None)


def _spread(law: Parameters, away: Floats, values: Floats, weights: Floats) -> float:
    """What deviations from a law have for a standard deviation, by their median: one gone wrong moves it little."""
    deviations = _residuals(np.array([np.log(law[0]), law[1], law[2] or 0.0]), away, values, weights)
    return max(1.4826 * float(np.median(np.abs(deviations))), 1e-12)


def _refined(
    away: Floats, values: Floats, weights: Floats, start: Parameters, spread: float
) -> tuple[float, Parameters]:
    """Where least squares end from there, deviations of more than 1.5 spreads weighing less: the cost, and the law."""
    exponent, log_height, offset = start
    first = [np.log(exponent), log_height] if offset is None else [np.log(exponent), log_height, offset]
    low, high = np.log(EXPONENTS)
    lower = [low, -np.inf] if offset is None else [low, -np.inf, 0.0]
    upper = [high, np.inf] if offset is None else [high, np.inf, float(values.min())]
    end = least_squares(
        _residuals, np.clip(first, lower, upper), jac=_jacobian, bounds=(lower, upper), args=(away, values, weights),
        loss="soft_l1", f_scale=1.5 * spread, x_scale="jac",
    )  # fmt: skip
    law = (float(np.exp(end.x[0])), float(end.x[1]), None if offset is None else float(end.x[2]))
    return float(end.cost), law


def _residuals(parameters: Floats, away: Floats, values: Floats, weights: Floats) -> Floats:
    offset = parameters[2] if len(parameters) > 2 else 0.0
    return (offset + np.exp(parameters[1] - np.exp(parameters[0]) * away) - values) * weights


def _jacobian(parameters: Floats, away: Floats, values: Floats, weights: Floats) -> Floats:
    falling = np.exp(parameters[1] - np.exp(parameters[0]) * away)
    columns = [-np.exp(parameters[0]) * away * falling, falling, np.ones_like(falling)][: len(parameters)]
    return np.stack(columns, axis=1) * weights[:, None]


@dataclass(frozen=True)
class _Deviations:
    """How points deviate from the law: each size by something of its own, and its seeds from that."""

    of: NDArray[np.int64]
    """The number of each point's size."""
    sizes: Floats
    """Deviations that the sizes have of their own."""
    seeds: Floats
    """Deviations of the points from their size."""
    freedom: float
    """Degrees of freedom (Satterthwaite 1946): few where the sizes deviate, many where the seeds do."""

    @classmethod
    def estimated(cls, deviations: Floats, sizes: Sequence[str], *, parameters: int) -> _Deviations:
        """From the points' deviations from a law of so many parameters."""
        names = sorted(set(sizes))
        of = np.array([names.index(size) for size in sizes])
        count, groups = len(deviations), len(names)
        if groups == count:
            none = np.zeros(groups)
            return cls(of, none, deviations * np.sqrt(count / (count - parameters)), count - parameters)
        means = np.array([deviations[of == number].mean() for number in range(groups)])
        within = deviations - means[of]
        variance_within = float(np.sum(within**2)) / (count - groups)
        by_seeds = variance_within * groups / count
        if groups <= parameters:  # the law goes through the means: what sizes deviate by is not to be seen
            return cls(of, np.zeros(groups), within * np.sqrt(count / (count - groups)), count - groups)
        # What means of sizes vary by because their seeds do is no deviation of the sizes.
        by_sizes = max(0.0, float(np.sum(means**2)) / (groups - parameters) - by_seeds)
        own = means * np.sqrt(by_sizes / np.mean(means**2)) if by_sizes else np.zeros(groups)
        share = by_sizes / (by_sizes + by_seeds) if by_sizes else 0.0
        freedom = 1 / (share**2 / (groups - parameters) + (1 - share) ** 2 / (count - groups))
        return cls(of, own, within * np.sqrt(count / (count - groups)), freedom)

    def drawn(self, rng: np.random.Generator) -> Floats:
        """Deviations of all points, drawn anew."""
        return rng.choice(self.sizes, len(self.sizes))[self.of] + rng.choice(self.seeds, len(self.seeds))
