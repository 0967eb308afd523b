"""How often do the intervals of a power law hold its parameters? Of points drawn anew on a curve of Improved DDPM.

PYTHONPATH=. python benchmarks/power_law.py > docs/results/power_law.md
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from orchestrator.power_law import PowerLaw, fit, fit_with_intervals

NLL = PowerLaw(exponent=0.17, log_scale=-np.log(3.0e-15), offset=3.40)  # IDDPM, figure 10
FID = PowerLaw(exponent=0.22, log_scale=-np.log(2.5e-25), offset=4.00)
DRAWS, REPLICATES = 500, 200
LARGEST = 5.2e19


@dataclass(frozen=True)
class Case:
    """Points on the curve of NLL: computes over a factor, seeds of each, and what they deviate by in bits/dim."""

    sizes: int
    over: float
    seeds: int
    of_seeds: float
    of_sizes: float = 0.0


CASES = (
    Case(8, 100, 3, 0.005),
    Case(12, 1000, 1, 0.01),
    Case(12, 1000, 3, 0.01),
    Case(12, 1000, 3, 0.005, of_sizes=0.005),
)


def held(case: Case, draws: int) -> list[float]:
    """Shares of the intervals that hold exponent, C0, offset, and L at 8 times the largest compute."""
    compute = np.repeat(np.geomspace(LARGEST / case.over, LARGEST, case.sizes), case.seeds)
    sizes, rng = [str(size) for size in compute], np.random.default_rng(1)
    hits = np.zeros(4)
    for draw in range(draws):
        own = np.repeat(rng.standard_normal(case.sizes), case.seeds)
        values = NLL.at(compute) + case.of_seeds * rng.standard_normal(len(compute)) + case.of_sizes * own
        found = fit_with_intervals(compute, values, sizes, seed=draw, replicates=REPLICATES)
        intervals = [*map(found.interval, ("exponent", "log_scale", "offset")), found.prediction(8 * LARGEST)]
        truth = [NLL.exponent, NLL.log_scale, NLL.offset, float(NLL.at(8 * LARGEST))]
        hits += [interval.low <= true <= interval.high for interval, true in zip(intervals, truth, strict=True)]
    return list(hits / draws)


def main() -> None:
    """Print the tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS)
    draws = parser.parse_args().draws
    print("# How often a power law's intervals hold\n\n`PYTHONPATH=. python benchmarks/power_law.py`\n")
    print("Fitted to points on the papers' curves, at the computes of the four widths of figure 10 and a thirtieth:\n")
    print("| | exponent | 1 / C0 | offset |\n|---|---:|---:|---:|")
    compute = 2.3e19 * np.outer([1 / 30, 1], [0.25, 0.56, 1.0, 2.25]).ravel()
    for name, law in (("NLL, bits/dim", NLL), ("FID", FID)):
        found = fit(compute, law.at(compute))
        print(f"| {name} | {found.exponent:.6f} | {np.exp(-found.log_scale):.4g} | {found.offset:.6f} |")
    print(f"\nOf {draws} sets of points on the curve of NLL, the 95 % intervals that held:\n")
    print("| sizes, over a factor | seeds | seeds deviate by | sizes by | exponent | C0 | offset | L at 8 C |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        print(f"{case}", file=sys.stderr)
        shares = " | ".join(f"{share:.1%}" for share in held(case, draws))
        spread = f"{case.of_seeds} | {case.of_sizes}"
        print(f"| {case.sizes}, {case.over:g} | {case.seeds} | {spread} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
