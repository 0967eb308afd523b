"""Inside autocast the formulas stay in float32: only a network computes in 16 bits."""

from __future__ import annotations

import pytest
import torch

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.guidance import classifier_guide
from diffusion.losses import diffusion_losses
from diffusion.nll import nll_full
from diffusion.sampling import SamplerConfig, sample

CONFIG = DiffusionConfig(num_timesteps=30)
SCHEDULE = build_schedule(CONFIG)
X_START = (torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) % 256) / 127.5 - 1
INDEX = torch.arange(2)
WEIGHT = torch.eye(3)


def model(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """The same numbers in and out of autocast, said in the dtype that autocast gives a matrix product."""
    rows = x_t.flatten(2).transpose(1, 2) @ WEIGHT
    said = (x_t * 8).round() / 16
    return torch.cat([said, 0.25 * said], dim=1).to(rows.dtype)


def classifier(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    return torch.stack([x_t.sum(dim=(1, 2, 3)), x_t.square().sum(dim=(1, 2, 3))], dim=1)


def losses() -> list[torch.Tensor]:
    terms = diffusion_losses(
        CONFIG, SCHEDULE, model, x_start=X_START, t=torch.tensor([0, 20]), eps=X_START.flip(dims=(3,))
    )
    assert terms.vlb is not None
    return [terms.simple, terms.vlb, terms.objective]


def bound() -> list[torch.Tensor]:
    found = nll_full(CONFIG, SCHEDULE, model, x_start=X_START, index=INDEX, seed=0)
    return [found.terms, found.prior_bpd, found.xstart_mse, found.eps_mse]


def guided_images() -> list[torch.Tensor]:
    guide = classifier_guide(classifier, y=torch.tensor([0, 1]), guidance_scale=2.0)
    return [
        sample(
            SamplerConfig(kind=kind), CONFIG, SCHEDULE, model, index=INDEX, seed=0, image_shape=(3, 4, 4), guide=guide
        )
        for kind in ("ancestral", "ddim")
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize("compute", [losses, bound, guided_images])
def test_numbers_are_those_without_autocast_and_no_narrower(compute) -> None:  # type: ignore[no-untyped-def]
    plain = compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X_START, INDEX).dtype == torch.bfloat16
        inside = compute()
    for ours, expected in zip(inside, plain, strict=True):
        assert ours.dtype == expected.dtype
        # The network's 16 bits hold its answers exactly; what is left is float32's rounding over thirty steps.
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
