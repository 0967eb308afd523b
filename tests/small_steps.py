"""Training steps of a network small enough for a test, on images that are a function of the step."""

import torch

from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.timestep_sampler import LossSecondMomentConfig, UniformConfig
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from diffusion.unet import UNet, UNetConfig

BATCH = 8
SHORT_CHAIN = DiffusionConfig(num_timesteps=20, schedule="cosine")
# 20 t in pools of 4, two losses each: leaves its warm-up within the first steps of a test.
IMPORTANCE = LossSecondMomentConfig(history_per_term=2, pools=6)


def fresh_state(*, dropout=0.0, timesteps=None, device="cpu", **changes):
    """A training that begins; changes are of its TrainConfig."""
    torch.manual_seed(0)
    config = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
        num_heads=1, dropout=dropout,
    )  # fmt: skip
    settings = {
        "lr": 1e-3,
        "ema": EmaConfig(rates=(0.9,)),
        "timesteps": timesteps or UniformConfig(),
        "reduction": TreeConfig(shards=2),
        **changes,
    }
    train = TrainConfig(**{"images": 1000, "batch_size": BATCH, **settings})
    return build_train_state(train, UNet(config, out_channels=2).to(device), num_timesteps=SHORT_CHAIN.num_timesteps)


def batch(step):
    """Images (BATCH, 1, 8, 8) of a step."""
    return torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(step))


def train(state, steps, *, module=None, rows=None):
    """Take the steps on some rows of their batches; what each measured."""
    rows = torch.arange(BATCH) if rows is None else rows
    objective = DiffusionObjective(SHORT_CHAIN, build_schedule(SHORT_CHAIN))
    return [
        train_step(state, module or state.model, objective, Examples(batch(step)[rows], rows), step=step, seed=3)
        for step in steps
    ]


def assert_equal_tensors(first, second):
    """Two states have the same names and the same bits."""
    assert set(first) == set(second)
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
