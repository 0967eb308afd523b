"""How is a norm and what follows it computed in one go? An operator of our own, for the CPU, compiled when asked for.

Between two convolutions of a residual block stand a GroupNorm, a scale and shift, and a SiLU: in torch many passes over
the feature map, here two forward and two back. Nothing but rounding changes: sums are taken per image and channel in a
fixed order, so results do not depend on the number of threads.

    y = ((x - mean) rstd weight + bias) (1 + scale) + shift,   out = y sigmoid(y)

enable() compiles it once and keeps it in torch's cache of extensions; it takes a C++ compiler and ninja. Without it,
for other dtypes, on other devices and under torch.compile, the same formula runs as torch's own operators.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=c++20"]

_enabled = False


def enable() -> None:
    """From now on, networks of this process use the operator. Raises RuntimeError where it cannot be compiled."""
    global _enabled
    if not hasattr(torch.ops.papertable, "norm_act"):
        from torch.utils.cpp_extension import load  # only here: it looks for compilers

        try:
            with as_file(files("diffusion") / "fused_norm.cpp") as source:
                load("papertable_norm", [str(source)], extra_cflags=FLAGS, is_python_module=False)
        except Exception as error:
            raise RuntimeError(
                f"the fused norm could not be compiled; it takes a C++ compiler and ninja (pip install ninja): {error}"
            ) from error
    _enabled = True


def disable() -> None:
    """From now on, networks of this process use torch's operators."""
    global _enabled
    _enabled = False


def norm_act(
    norm: nn.GroupNorm, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b c2"] | None = None, *, silu: bool = True
) -> Float[Tensor, "b c h w"]:
    """norm(x), times 1 + the first half of emb, plus its second half; then SiLU; in the dtype of x."""
    if _enabled and _fits(x, norm):
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
