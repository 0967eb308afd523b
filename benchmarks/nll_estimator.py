"""How many forwards does an NLL cost? The estimator against the full loop, on a trained model of 8x8 digits, T = 4000.

Both on the same images. Printed: error per image at K forwards, for importance-drawn and for uniform t; bias; coverage
of the 95 % interval; and at how many forwards 10,000 images are known to +-0.01 bits/dim.
    PYTHONPATH=. python benchmarks/nll_estimator.py > docs/results/nll_estimator.md
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from benchmarks._trained import trained_model
from diffusion.nll import nll_estimate, nll_full, pilot, summarize
from pipelines.trained import TrainedModel

IMAGES = 24
LOOPS = 2  # full loops, each with noise of its own: their mean is the truth
RUNS = 40
PILOT_IMAGES = 8
TRAIN_STEPS = 220
DRAWS = (5, 11, 23)
NORMAL_95 = 1.96


class Counted:
    """A network that counts the images it is asked about."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.forwards = network, 0

    def __call__(self, x_t: Tensor, model_t: Tensor) -> Tensor:
        self.forwards += len(x_t)
        return self.network(x_t, model_t)


def truth(model: TrainedModel, x_start: Tensor) -> Tensor:
    """Bits/dim by every full loop: (loops, images)."""
    index, loops = torch.arange(len(x_start)), []
    for seed in range(LOOPS):
        found = nll_full(model.diffusion, model.schedule, model.network, x_start=x_start, index=index, seed=1000 + seed)
        loops.append(found.total_bpd)
        print(f"full loop {seed + 1} of {LOOPS}", file=sys.stderr)
    return torch.stack(loops)


def estimates(model: TrainedModel, x_start: Tensor, density: Tensor, draws: int, runs: int) -> Tensor:
    """(runs, images): independent estimates from draws + 1 forwards an image."""
    return torch.stack(
        [
            nll_estimate(
                model.diffusion, model.schedule, model.network, x_start=x_start, index=torch.arange(len(x_start)),
                seed=7, density=density, draws=draws, round=number,
            )
            for number in range(runs)
        ]
    )  # fmt: skip


def coverage(found: Tensor, loops: Tensor) -> tuple[int, int]:
    """How many of the 95 % intervals of two rounds hold the truth, whose own noise is allowed for; and of how many."""
    own = float((loops.var(dim=0).mean() / loops.numel()).sqrt())
    inside, pairs = 0, found.reshape(-1, 2, found.shape[1])
    for pair in pairs:
        estimate = summarize(pair)
        assert estimate.interval_of_draws is not None
        half_width = math.hypot(estimate.interval_of_draws, NORMAL_95 * own)
        inside += abs(estimate.mean_bpd - float(loops.mean())) <= half_width
    return inside, len(pairs)


def row(name: str, draws: int, found: Tensor, loops: Tensor) -> tuple[str, float]:
    """A line of the table, and the root of the mean square error of an image."""
    noise = float(loops.var(dim=0).mean()) / LOOPS  # of the truth: it is in the difference, too, and comes off
    rms = math.sqrt(max(float(((found - loops.mean(dim=0)) ** 2).mean()) - noise, 0.0))
    error = math.hypot(float(found.mean(dim=1).std()) / math.sqrt(RUNS), math.sqrt(noise / IMAGES))
    inside, of = coverage(found, loops)
    bias = float(found.mean() - loops.mean()) / error
    return f"| {draws + 1} | {name} | {rms:.3f} | {bias:+.1f} | {inside} of {of} |", rms


def main() -> None:
    """Print the tables as markdown."""
    torch.set_num_threads(2)
    model, test = trained_model(steps=TRAIN_STEPS)
    x_start, T = test[-IMAGES:], model.schedule.num_timesteps  # the pilot sees others
    heard = Counted(model.network)
    density = pilot(model.diffusion, model.schedule, heard, x_start=test[:PILOT_IMAGES], seed=0)
    uniform = torch.full_like(density, 1 / len(density))
    loops = truth(model, x_start)
    print(
        f"# NLL: the estimator against the full loop\n\n"
        f"A network of {sum(p.numel() for p in model.network.parameters()):,} parameters after {TRAIN_STEPS} steps on\n"
        f"8x8 digits, T = {T}. {IMAGES} test images; {LOOPS} full loops give {float(loops.mean()):.4f} bits/dim, and\n"
        f"differ by {float(loops.std(dim=0).mean()):.4f} an image. {RUNS} independent estimates a line.\n"
        f"`PYTHONPATH=. python benchmarks/nll_estimator.py`\n\n"
        f"| forwards an image | t drawn by | rms error an image | bias, standard errors | 95 % intervals that hold |\n"
        f"|---:|---|---:|---:|---:|"
    )
    errors: dict[int, float] = {}
    for draws in DRAWS:
        line, errors[draws + 1] = row("importance", draws, estimates(model, x_start, density, draws, RUNS), loops)
        print(line)
        print(row("uniform", draws, estimates(model, x_start, uniform, draws, RUNS), loops)[0])
    print()
    for images in (10_000, 1_000):
        enough = min((k for k, rms in errors.items() if 3 * rms / math.sqrt(images) <= 0.01), default=None)
        cost = f"more than {max(errors)}" if enough is None else f"{enough} (1/{T / enough:.0f} of the full loop's)"
        print(f"- {images:,} images to +-0.01 bits/dim (99.7 %): {cost} forwards an image.")
    spread = float(loops.mean(dim=0).std())
    print(f"- The images differ by {spread:.3f} bits/dim: 10,000 of them leave {spread / 100:.4f}, whatever the draws.")
    total = math.hypot(spread / 100, errors[12] / 100)
    print(f"- Standard error of their mean with 12 forwards each, images and draws together: {total:.4f} bits/dim.")
    print(f"- The pilot takes {heard.forwards} forwards, once.")
    print(f"\nMore than {IMAGES} images are extrapolated: independent ones, so errors fall as 1 / sqrt(images).")


if __name__ == "__main__":
    main()
