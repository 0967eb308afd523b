"""The fused operator is the formula it stands for, with its gradients, whatever the shape."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion import fused
from diffusion.layers import GroupNorm
from diffusion.unet import UNet
from tests.networks import BASE, close, draw, randomized

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_use() -> Iterator[None]:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    fused.compile()
    with fused.used(True):
        yield


def both(norm, x, emb, grad, silu):
    """Output and gradients by the operator in float32, and by torch in float64."""
    found = []
    for wide in (False, True):
        norm_, x_, emb_, grad_ = (copy.deepcopy(norm), x, emb, grad)
        if wide:
            norm_, x_, grad_ = norm_.double(), x.double(), grad.double()
            emb_ = None if emb is None else emb.double()
        inputs = [x_.detach().requires_grad_(), norm_.weight, norm_.bias]
        if emb_ is not None:
            emb_ = emb_.detach().requires_grad_()
            inputs.append(emb_)
        out = fused.norm_act(norm_, inputs[0], emb_, silu=silu)
        assert ("NormAct" in type(out.grad_fn).__name__) is not wide
        found.append([out.detach(), *torch.autograd.grad(out, inputs, grad_)])
    return zip(*found, strict=True)


@given(
    batch=st.integers(1, 3), groups_of=st.sampled_from([1, 2, 3, 8]), height=st.integers(1, 20),
    width=st.integers(1, 20), with_emb=st.booleans(), silu=st.booleans(), seed=st.integers(0, 100),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
@settings(max_examples=60)
def test_output_and_gradients_are_the_formulas(batch, groups_of, height, width, with_emb, silu, seed, layout):
    channels = 32 * groups_of
    assume(groups_of * height * width >= 8)  # of one or two numbers a norm leaves the signs, and hardly a gradient
    norm = randomized(GroupNorm(channels), seed=seed)
    x = (draw(batch, channels, height, width, seed=seed) * 3 + 2).contiguous(memory_format=layout)
    emb = draw(batch, 2 * channels, seed=seed + 1) if with_emb else None
    grad = draw(batch, channels, height, width, seed=seed + 2)
    for ours, expected in both(norm, x, emb, grad, silu):
        close(ours, expected, 1e-5)


def test_large_and_far_off_values_stay_exact():
    norm, emb, grad = randomized(GroupNorm(64)), draw(2, 128, seed=2), draw(2, 64, 48, 48, seed=3)
    x = draw(2, 64, 48, 48) * 1e-2 + 1e2  # 2304 pixels whose mean is 10,000 of their deviations
    for ours, expected in both(norm, x, emb, grad, True):
        # float32 has x to 4e-6, and the norm divides by 1e-2: nobody could do better than 4e-4.
        close(ours, expected, 2e-3)
    for scale in (1e-30, 1e4):
        for ours, expected in both(norm, draw(2, 64, 4, 4) * scale, emb, draw(2, 64, 4, 4, seed=3), True):
            assert ours.isfinite().all()
            close(ours, expected, 1e-4) if expected.abs().max() > 1e-30 else None


def test_what_is_no_number_stays_none():
    norm, x = randomized(GroupNorm(32)), draw(1, 32, 4, 4)
    x[0, 3, 1, 2] = float("nan")
    out = fused.norm_act(norm, x)
    assert out[0, 3].isnan().all()  # 32 groups of one channel
    assert out[0, 4].isfinite().all()


def test_the_same_bits_come_out_of_any_number_of_threads():
    norm, x, emb = randomized(GroupNorm(64)), draw(5, 64, 9, 7), draw(5, 128, seed=2)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        x_ = x.clone().requires_grad_()
        out = fused.norm_act(norm, x_, emb)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), [x_, norm.weight])))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, first) for other in found[1:] for one, first in zip(other, found[0], strict=True))


@pytest.mark.parametrize("conditioning", ["adagn", "additive"])
def test_a_network_with_it_is_the_network_without(conditioning):
    network = randomized(UNet(replace(BASE, conditioning=conditioning), out_channels=3))
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    found = []
    for on, recompute in ((True, False), (True, True), (False, False)):
        network.zero_grad()
        network.gradient_checkpointing = recompute
        with fused.used(on):
            out = network(x, t)
            out.square().mean().backward()
        # Together: some gradients are nothing but rounding, such as those of a bias that the next norm takes away.
        found.append((out.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])))
    for ours, again, torchs in zip(*found, strict=True):
        assert torch.equal(ours, again)
        close(ours, torchs.double(), 1e-5)


def test_other_dtypes_and_autocast_take_torchs_way():
    norm, conv = randomized(GroupNorm(32)), torch.nn.Conv2d(32, 32, 1)
    x = draw(1, 32, 4, 4).requires_grad_()

    def way(norm, x):
        return type(fused.norm_act(norm, x).grad_fn).__name__

    assert way(norm, x) == "_NormActBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert way(norm, conv(x)) == "SiluBackward0"
    assert way(copy.deepcopy(norm).double(), x.double()) == "SiluBackward0"
    with fused.used(False):
        assert way(norm, x) == "SiluBackward0"
    assert way(norm, x) == "_NormActBackward"


def test_parameters_and_embeddings_that_learn_nothing_cost_nothing_of_the_gradient():
    norm, x, emb = randomized(GroupNorm(32)).requires_grad_(False), draw(2, 32, 4, 4), draw(2, 64)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(fused.norm_act(norm, x, emb).sum(), x)
    with fused.used(False):
        (torchs,) = torch.autograd.grad(fused.norm_act(norm, x, emb).sum(), x)
    close(ours, torchs.double(), 1e-5)


@pytest.mark.parametrize("shape", [(1, 64), (2, 63)])
def test_an_embedding_of_another_shape_is_refused(shape):
    norm, x = randomized(GroupNorm(32)), draw(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="two values an image and channel"):
        torch.ops.papertable.norm_act(x, norm.weight, norm.bias, draw(*shape), 32, 1e-5, True)


def test_a_lock_that_a_killed_process_left_does_not_stop_the_next(tmp_path):
    program = "from diffusion import fused; fused.compile(); print('ready')"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not list(tmp_path.glob("*/lock")):
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert list(tmp_path.glob("*/lock"))
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert again.stdout.splitlines()[-1:] == ["ready"], again.stderr
