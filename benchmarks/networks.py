"""How fast are training steps, and forwards for sampling, beside what a user would take instead? Ratios in one run.

Same parameters, same function (checked first), but for lucidrains' network, which is another one. All are given the
fastest AdamW and average there is; the yardstick has those of the published code, loops over parameters.
Implementations take turns round by round; printed are medians as multiples of the published way's speed, the quarter
and three-quarter points of the rounds' ratios, and the share of the better peak that useful work reaches.

    PYTHONPATH=. python benchmarks/networks.py > docs/results/networks.md
    PYTHONPATH=. python benchmarks/networks.py --sizes 32 --precision bf16 --compile --impl mine.py:factory

factory(config: UNetConfig, out_channels: int) -> nn.Module, called as module(x_t, t).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._lucidrains import cost_of_lucidrains, lucidrains
from benchmarks._published_way import computed_as_published
from diffusion import fused
from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.diffusers_export import to_diffusers
from diffusion.ema import Ema, EmaConfig
from diffusion.flops import cost_of
from diffusion.guidance import log_probability_gradient
from diffusion.metrics.inception import declare_missing_torchvision_operators
from diffusion.precision import DTYPES, Precision, autocast
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet

N = TypeVar("N", UNet, NoisyClassifier)

ROUNDS = 7
WARM_UP = 2
EMA_RATE = 0.9999
REFERENCE = "published way"


@dataclass(frozen=True)
class Case:
    """A size of image, the network for it, and the batch."""

    config: UNetConfig
    batch: int


CASES = {
    8: Case(UNetConfig(image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
                       attention_resolutions=(4,), num_heads=2), 32),
    32: Case(UNetConfig(image_size=32, model_channels=64, num_res_blocks=3), 32),
    64: Case(UNetConfig(image_size=64, model_channels=64, num_res_blocks=3), 16),
}  # fmt: skip
"""8 is the tiny preset's network; the others are IDDPM's for CIFAR-10 at half its width, 13 million parameters."""


class Contestant:
    """A network with its optimizer and average, as its users run it."""

    def __init__(
        self, network: nn.Module, call: Callable[[Tensor, Tensor], Tensor], *, loops: bool = False,
        channels_last: bool = False, fuse: bool = False, classifier: NoisyClassifier | None = None,
    ) -> None:  # fmt: skip
        self.network, self.call, self.loops, self.channels_last = network, call, loops, channels_last
        self.fuse, self.classifier = fuse, classifier
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=not loops)
        self.average = Ema(EmaConfig(rates=(EMA_RATE,)), network)
        self.slow_average = [parameter.detach().clone() for parameter in network.parameters()]
        self.steps = 0

    def train_step(self, x: Tensor, t: Tensor, target: Tensor, precision: Precision) -> None:
        """Forward, backward, AdamW, average."""
        self.optimizer.zero_grad()
        with fused.used(self.fuse):
            with autocast(x.device, precision):
                loss = functional.mse_loss(self.call(x, t).float(), target)
            loss.backward()
        self.optimizer.step()
        if not self.loops:
            self.average.update(self.network, step=self.steps)
        else:
            with torch.no_grad():
                for kept, parameter in zip(self.slow_average, self.network.parameters(), strict=True):
                    kept.mul_(EMA_RATE).add_(parameter, alpha=1 - EMA_RATE)
        self.steps += 1

    @torch.inference_mode()
    def forward(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """What sampling asks of it at each step."""
        with fused.used(self.fuse), autocast(x.device, precision):
            return self.call(x, t)

    @torch.no_grad()
    def guided(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """forward, and the classifier's gradient."""
        return self.forward(x, t, precision) + self.gradient(x, t, precision)

    def gradient(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """Of log p(class 0)."""
        assert self.classifier is not None
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        with fused.used(self.fuse), autocast(x.device, precision):
            return log_probability_gradient(self.classifier, x_t=x, model_t=t, y=y)


def contestants(case: Case, options: argparse.Namespace, device: str) -> dict[str, Contestant]:
    """All implementations, with the same weights where they are the same function."""
    torch.manual_seed(0)
    plain = _randomized(UNet(case.config, out_channels=3)).to(device)
    encoder = replace(case.config, num_heads=None, num_head_channels=case.config.model_channels // 2)
    classifier = _randomized(NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=10))).to(device)
    classifier = classifier.eval().requires_grad_(False)
    last = copy.deepcopy(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    slow = computed_as_published(copy.deepcopy(plain))
    found = {
        REFERENCE: Contestant(slow, slow, loops=True, classifier=computed_as_published(classifier)),
        "ours, torch's operators": Contestant(ours, ours, channels_last=True, classifier=last),
    }
    found["ours, contiguous"] = Contestant(plain, plain)
    if device == "cpu":
        fused.compile()
        fast = copy.deepcopy(ours)
        found["ours, fused norm"] = Contestant(fast, fast, channels_last=True, fuse=True, classifier=last)
    found["diffusers"] = _diffusers(plain, device, channels_last=False)
    found["diffusers, channels_last"] = _diffusers(plain, device, channels_last=True)
    another = lucidrains(case.config).to(device)
    found["lucidrains (another network)"] = Contestant(another, another)
    if options.compile:
        compiled = copy.deepcopy(ours)
        found["ours, torch.compile"] = Contestant(compiled, torch.compile(compiled, dynamic=False), channels_last=True)
        theirs = _diffusers(plain, device, channels_last=True)
        theirs.call = torch.compile(theirs.call, dynamic=False)
        found["diffusers, torch.compile"] = theirs
    for spec in options.impl:
        path, _, name = spec.partition(":")
        module_spec = importlib.util.spec_from_file_location("contestant", path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        network = getattr(module, name)(case.config, 3).to(device)
        found[spec] = Contestant(network, network)
    return found


def _diffusers(network: UNet, device: str, *, channels_last: bool) -> Contestant:
    declare_missing_torchvision_operators()
    from diffusers import UNet2DModel

    exported = to_diffusers(network)
    theirs = UNet2DModel(**exported.config)
    theirs.load_state_dict(exported.weights)
    theirs = theirs.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return Contestant(theirs, lambda x, t: theirs(x, t, return_dict=False)[0], channels_last=channels_last)


def _randomized(network: N) -> N:
    """Nothing at its initial value: zero-initialised layers would hide what is behind them."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def check_same(found: dict[str, Contestant], x: Tensor, t: Tensor) -> None:
    """Raises AssertionError unless all but lucidrains give the reference's output, and its classifier's gradient."""
    expected, gradient = found[REFERENCE].forward(x, t, "float32"), found[REFERENCE].gradient(x, t, "float32")
    for name, one in found.items():
        if "another" not in name and ":" not in name:
            assert (one.forward(x, t, "float32") - expected).abs().max() < 1e-4 * expected.abs().max(), name
            if one.classifier is not None:
                assert (one.gradient(x, t, "float32") - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peaks(precision: Precision, device: str) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and of a 3x3 convolution of 128 channels, channels last."""
    dtype = DTYPES[precision]
    a, b = torch.randn(2, 2048, 2048, device=device, dtype=dtype)
    image = torch.randn(16, 128, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(128, 128, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        product = min(timed(lambda: a @ b, device) for _ in range(7))
        convolution = min(timed(lambda: conv(image), device) for _ in range(7))
    return 2 * 2048**3 / product, 2 * 9 * 128 * 128 * 16 * 32 * 32 / convolution


def compare(
    case: Case, options: argparse.Namespace, device: str, precision: Precision
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round: [what][implementation]."""
    found = contestants(case, options, device)
    size = case.config.image_size
    x = torch.randn(case.batch, 3, size, size, device=device)
    t, target = torch.rand(case.batch, device=device) * 1000, torch.randn_like(x)
    check_same(found, x, t)
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
        print(f"\n{what}\n\n| | ms | over the published way | over diffusers at its best | of the peak |")
        print("|---|---:|---|---|---:|")
        for name, seconds in of_what.items():
            median = statistics.median(seconds)
            over = f"{_ratio(of_what[REFERENCE], seconds)} | {'-' if best is None else _ratio(best, seconds)}"
            flops = work if "another" not in name else work * other.macs / cost.macs
            share = "-" if ":" in name or not work else f"{flops / median / peak:.0%}"
            label = f"{name}, {other.parameters / 1e6:.1f} M" if "another" in name else name
            print(f"| {label} | {1000 * median:.1f} | {over} | {share} |")


def _ratio(theirs: list[float], ours: list[float]) -> str:
    """Median of the rounds' ratios, and their quarters."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(theirs, ours, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Print the tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true", help="also compile ours: minutes on a CPU")
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
            product, convolution = peaks(precision, device)
            for size in options.sizes:
                case = CASES[size]
                parameters = cost_of(UNet(case.config, out_channels=3)).parameters
                on = f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
                print(f"\n## {size}x{size}, batch {case.batch}, {parameters / 1e6:.1f} M parameters, {precision}{on}")
                print(f"\nPeaks: matrix product {product / 1e9:.0f} GFLOP/s, 3x3 convolution {convolution / 1e9:.0f}.")
                report(case, compare(case, options, device, precision), max(product, convolution))


if __name__ == "__main__":
    main()
