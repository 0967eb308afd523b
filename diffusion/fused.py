"""How is a norm and what follows it computed in one go? An operator of our own, for the CPU, compiled when asked for.

Between two convolutions of a residual block stand a GroupNorm, a scale and shift, and a SiLU: in torch an operator
each, here one, with one for the way back. Nothing but rounding changes: sums are taken per image and channel in a fixed
order, so results do not depend on the number of threads, which share out the images of a batch.

    y = ((x - mean) rstd weight + bias) (1 + scale) + shift,   out = y sigmoid(y)

compile() takes a C++ compiler and ninja, once for a version of torch and a kind of CPU. Inside used(True) the operator
runs for float32 on the CPU; anywhere else, and under torch.compile, the same formula runs as torch's operators. It has
one derivative: for a second one, and for torch.func, leave it off.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=c++20")
VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""By what torch found the CPU capable of. Not -march=native: the compiled file may be found by another machine."""

_used = False


def compile() -> None:
    """Make the operator ready. Raises RuntimeError where it cannot be compiled."""
    if hasattr(torch.ops.papertable, "norm_act"):
        return
    from torch.utils.cpp_extension import _get_build_directory, load  # only here: it looks for compilers

    capability = torch.backends.cpu.get_cpu_capability()
    flags = [*FLAGS, *VECTORS.get(capability, ())]
    with as_file(files("diffusion") / "fused_norm.cpp") as source:
        key = hashlib.sha256("\0".join([torch.__version__, *flags, source.read_text()]).encode()).hexdigest()[:16]
        folder = Path(_get_build_directory(f"papertable_norm_{key}", verbose=False))
        with (folder / "held").open("w") as held:
            # Torch's own lock outlives a process that is killed, and is then waited for without end. The kernel's does
            # not; who holds it may remove the other.
            fcntl.flock(held, fcntl.LOCK_EX)
            (folder / "lock").unlink(missing_ok=True)
            try:
                load(
                    "papertable_norm", [str(source)], extra_cflags=flags, extra_ldflags=["-fopenmp"],
                    build_directory=str(folder), is_python_module=False,
                )  # fmt: skip
            except Exception as error:
                raise RuntimeError(
                    f"the fused norm could not be compiled. It takes a C++ compiler and ninja on the path (pip install "
                    f"ninja, and activate the environment); train.norms='torch' does without: {error}"
                ) from error


@contextmanager
def used(on: bool) -> Iterator[None]:
    """Inside, networks of this process use the operator, which compile() must have made ready; or, by False, do not."""
    global _used
    before, _used = _used, on
    try:
        yield
    finally:
        _used = before


def norm_act(
    norm: nn.GroupNorm, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b c2"] | None = None, *, silu: bool = True
) -> Float[Tensor, "b c h w"]:
    """norm(x), times 1 + the first half of emb, plus its second half; then SiLU; in the dtype of x."""
    if _used and _fits(x, norm):
        return _NormAct.apply(x, norm.weight, norm.bias, emb, norm.num_groups, norm.eps, silu)
    h = norm(x)
    if emb is not None:
        scale, shift = emb.to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    return functional.silu(h) if silu else h


def _fits(x: Tensor, norm: nn.GroupNorm) -> bool:
    return x.is_cpu and x.dtype == norm.weight.dtype == torch.float32 and not torch.compiler.is_compiling()


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, emb: Tensor | None, groups: int, eps: float, silu: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        emb = None if emb is None else emb.float().contiguous()
        out, mean, rstd = torch.ops.papertable.norm_act(x, weight, bias, emb, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, emb, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, emb, mean, rstd = ctx.saved_tensors
        grad_x, grad_weight, grad_bias, grad_emb = torch.ops.papertable.norm_act_backward(
            grad.contiguous(memory_format=torch.channels_last), x, weight, bias, emb, mean, rstd, ctx.groups, ctx.silu
        )
        return grad_x, grad_weight, grad_bias, None if emb is None else grad_emb, None, None, None
