"""How fast are training steps, and forwards for sampling, beside what a user would take instead? Ratios in one run.

Same parameters, same function (checked first), but for lucidrains' network, which is another one. All are given the
fastest AdamW and average there is; the yardstick has those of the published code, loops over parameters.
Implementations take turns round by round; printed are images a second, medians as multiples of the published way's
speed, the quarter and three-quarter points of the rounds' ratios, and the share of the better measured peak that useful
work reaches: on a GPU, model FLOP utilisation.

    PYTHONPATH=. python benchmarks/networks.py > docs/results/networks.md
    PYTHONPATH=. python benchmarks/networks.py --cases 32 --precision bf16 --compile --impl mine.py:factory
    PYTHONPATH=. python benchmarks/networks.py --cases iddpm-cifar10 adm-64 --precision bf16 --compile --cuda-graphs

factory(config: UNetConfig, out_channels: int) -> nn.Module, called as module(x_t, t), or module(x_t, t, y).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks._contestants import REFERENCE, Contestant, contestants
from benchmarks._lucidrains import cost_of_lucidrains
from diffusion.flops import cost_of
from diffusion.precision import DTYPES, Precision, allow_tf32
from diffusion.published import PUBLISHED
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet

ROUNDS = 7
WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """A network, and the batch."""

    config: UNetConfig
    batch: int


def _published(name: str) -> UNetConfig:
    return replace(cast(UNetConfig, PUBLISHED[name].network), dropout=0.0, attention_layout="legacy")


CASES = {
    "8": Case(UNetConfig(image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
                         attention_resolutions=(4,), num_heads=2), 32),
    "32": Case(UNetConfig(image_size=32, model_channels=64, num_res_blocks=3), 32),
    "64": Case(UNetConfig(image_size=64, model_channels=64, num_res_blocks=3), 16),
    "iddpm-cifar10": Case(_published("cifar10_uncond_50M_500K"), 128),
    "adm-64": Case(_published("64x64_diffusion"), 32),
}  # fmt: skip
"""8 is the tiny preset's network; 32 and 64 are IDDPM's for CIFAR-10 at half its width, 13 million parameters; the
others are the papers' own, for GPUs, without dropout and in the layout of attention that the yardstick has."""
ON_CPUS = ("8", "32", "64")


def check_same(found: dict[str, Contestant], x: Tensor, t: Tensor) -> None:
    """Raises AssertionError unless all but lucidrains give the reference's output, and its classifier's gradient."""
    expected, gradient = found[REFERENCE].forward(x, t, "float32"), found[REFERENCE].gradient(x, t, "float32")
    for name, one in found.items():
        if "another" not in name and ":" not in name:
            assert (one.forward(x, t, "float32") - expected).abs().max() < 1e-4 * expected.abs().max(), name
            if one.classifier is not None:
                assert (one.gradient(x, t, "float32") - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def timed(work: Callable[[], object], device: str, *, times: int = 1) -> float:
    """Seconds of one call, of so many in a row."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / times


def peaks(precision: Precision, device: str) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and of a large 3x3 convolution, channels last: large for the device."""
    dtype = DTYPES[precision]
    side, batch, width, times = (2048, 16, 128, 1) if device == "cpu" else (8192, 128, 512, 20)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image = torch.randn(batch, width, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(width, width, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        product = min(timed(lambda: a @ b, device, times=times) for _ in range(7))
        convolution = min(timed(lambda: conv(image), device, times=times) for _ in range(7))
    return 2 * side**3 / product, 2 * 9 * width**2 * batch * 32 * 32 / convolution


def compare(
    case: Case, options: argparse.Namespace, device: str, precision: Precision
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round: [what][implementation]."""
    found = contestants(case.config, options, device)
    size = case.config.image_size
    x = torch.randn(case.batch, 3, size, size, device=device)
    t, target = torch.rand(case.batch, device=device) * 1000, torch.randn_like(x)
    allow_tf32(False)
    check_same(found, x, t)
    allow_tf32(options.tf32)
    last = x.to(memory_format=torch.channels_last)
    rounds: dict[str, dict[str, list[float]]] = {"training step": {}, "sampling forward": {}, "guided step": {}}
    for number in range(WARM_UP + options.rounds):
        for name, one in found.items():
            seen = last if one.channels_last else x
            seconds = {
                "training step": timed(lambda: one.train_step(seen, t, target, precision), device),  # noqa: B023
                "sampling forward": timed(lambda: one.forward(seen, t, precision), device),  # noqa: B023
            }
            if one.classifier is not None:
                seconds["guided step"] = timed(lambda: one.guided(seen, t, precision), device)  # noqa: B023
            for what, taken in seconds.items():
                if number >= WARM_UP:
                    rounds[what].setdefault(name, []).append(taken)
        print(f"{size}x{size}: round {number + 1} of {WARM_UP + options.rounds}", file=sys.stderr)
    return rounds


def report(case: Case, rounds: dict[str, dict[str, list[float]]], peak: float) -> None:
    """One table a kind of work."""
    cost, other = cost_of(UNet(case.config, out_channels=3)), cost_of_lucidrains(case.config)
    for what, of_what in rounds.items():
        work = cost.flops * case.batch * {"training step": 3, "sampling forward": 1, "guided step": 0}[what]
        peers = [seconds for name, seconds in of_what.items() if name.startswith("diffusers")]
        best = min(peers, key=statistics.median) if peers else None
        print(f"\n{what}\n\n| | ms | img/s | over the published way | over diffusers at its best | of the peak |")
        print("|---|---:|---:|---|---|---:|")
        for name, seconds in of_what.items():
            median = statistics.median(seconds)
            over = f"{_ratio(of_what[REFERENCE], seconds)} | {'-' if best is None else _ratio(best, seconds)}"
            flops = work if "another" not in name else work * other.macs / cost.macs
            share = "-" if ":" in name or not work else f"{flops / median / peak:.0%}"
            label = f"{name}, {other.parameters / 1e6:.1f} M" if "another" in name else name
            print(f"| {label} | {1000 * median:.1f} | {case.batch / median:,.0f} | {over} | {share} |")


def _ratio(theirs: list[float], ours: list[float]) -> str:
    """Median of the rounds' ratios, and their quarters."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(theirs, ours, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Print the tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=None, choices=list(CASES), help="all on a GPU, else the small")
    parser.add_argument("--batch", type=int, default=None, help="another than the case's")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true", help="also compile ours: minutes on a CPU")
    parser.add_argument("--cuda-graphs", action="store_true", help="with --compile: ours once more, as CUDA graphs")
    parser.add_argument("--tf32", action="store_true", help="let float32 on a GPU be TF32")
    parser.add_argument("--only", nargs="+", default=[], help="those whose name has one of these words; a GPU's memory")
    parser.add_argument("--impl", nargs="+", default=[], metavar="path.py:factory")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"# Networks, side by side\n\n{where}, torch {torch.__version__}, {options.rounds} rounds, taking turns.")
    print("`PYTHONPATH=. python benchmarks/networks.py`. The published way is guided-diffusion's, as _published_way.py")
    print("has it, with loops over parameters for AdamW and average; all others have torch's fused AdamW and foreach.")
    print("lucidrains' is another network; its parameters stand in its row.")
    for precision in options.precision:
        for threads in options.threads if device == "cpu" else [1]:
            torch.set_num_threads(threads)
            allow_tf32(options.tf32)
            product, convolution = peaks(precision, device)
            for name in options.cases or (CASES if device == "cuda" else ON_CPUS):
                case = CASES[name]
                case = replace(case, batch=options.batch or case.batch)
                parameters = cost_of(UNet(case.config, out_channels=3)).parameters
                on = f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
                title = f"{name}x{name}" if name in ON_CPUS else name
                print(f"\n## {title}, batch {case.batch}, {parameters / 1e6:.1f} M parameters, {precision}{on}")
                print(f"\nPeaks: matrix product {product / 1e9:.0f} GFLOP/s, 3x3 convolution {convolution / 1e9:.0f}.")
                report(case, compare(case, options, device, precision), max(product, convolution))


if __name__ == "__main__":
    main()
