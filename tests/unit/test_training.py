"""Does training repeat itself bit for bit: after a resume, and on every worker?"""

import pickle
from copy import deepcopy
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import nn

from diffusion.divergence import CHECK_EVERY_STEPS, TrainingDiverged
from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.losses import diffusion_losses
from diffusion.randomness import TIMESTEP, TRAIN_NOISE, normal, uniform
from diffusion.timestep_sampler import LossSecondMomentConfig, LossSecondMomentSampler, UniformConfig
from diffusion.training import (
    TrainConfig,
    build_train_state,
    train_step,
)
from diffusion.unet import UNet, UNetConfig

BATCH = 8
SHORT_CHAIN = DiffusionConfig(num_timesteps=20, schedule="cosine")
# 20 t in pools of 4, two losses each: leaves its warm-up within the first steps of a test.
IMPORTANCE = LossSecondMomentConfig(history_per_term=2, pools=6)

# float32 rounds sums in another order, and the fused optimizer rounds otherwise: some 1e-7 a step.
SAME_STEPS = {"rtol": 1e-5, "atol": 1e-6}


def fresh_state(*, dropout=0.0, timesteps=None, device="cpu", **changes):
    torch.manual_seed(0)
    config = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
        num_heads=1, dropout=dropout,
    )  # fmt: skip
    settings = {"lr": 1e-3, "ema": EmaConfig(rates=(0.9,)), "timesteps": timesteps or UniformConfig(), **changes}
    train = TrainConfig(images=1000, batch_size=BATCH, **settings)
    return build_train_state(train, SHORT_CHAIN, UNet(config, out_channels=2).to(device))


def batch(step):
    return torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(step))


def train(state, steps, *, module=None, rows=None):
    rows = torch.arange(BATCH) if rows is None else rows
    schedule = build_schedule(SHORT_CHAIN)
    return [
        train_step(
            state,
            module or state.model,
            SHORT_CHAIN,
            schedule,
            x_start=batch(step)[rows],
            index=rows,
            step=step,
            seed=3,
        )
        for step in steps
    ]


def assert_equal_tensors(first, second):
    assert set(first) == set(second)
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


@pytest.mark.parametrize("timesteps", [UniformConfig(), IMPORTANCE], ids=["uniform", "importance"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_on_from_saved_tensors_gives_the_same_bits_as_never_stopping(dropout, timesteps):
    whole, first, second = (fresh_state(dropout=dropout, timesteps=timesteps) for _ in range(3))
    train(whole, range(12))
    train(first, range(6))
    file = save({name: tensor.contiguous() for name, tensor in first.tensors().items()})
    torch.manual_seed(99)  # the resumed process has drawn other numbers before
    second.load_tensors(load(file), first.meta())
    train(second, range(6, 12))
    assert_equal_tensors(second.tensors(), whole.tensors())
    assert second.meta() == whole.meta() == {**whole.meta(), "images_seen": 12 * BATCH, "step": 12}


def test_importance_sampling_of_t_begins_when_its_history_is_full_and_says_when():
    state = fresh_state(timesteps=IMPORTANCE)
    train(state, range(1))
    assert state.sampler_warm_at is None
    train(state, range(1, 12))
    assert state.sampler_warm_at in range(2 * BATCH, 13 * BATCH, BATCH)


@pytest.mark.parametrize("timesteps", [UniformConfig(), IMPORTANCE], ids=["uniform", "importance"])
def test_a_step_looks_at_nothing_it_computes_so_that_a_gpu_is_never_waited_for(timesteps, monkeypatch):
    """On the meta device there is nothing to look at: whoever tries gets an error."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # torch's own: on such a device it cannot run
    state = fresh_state(timesteps=timesteps, device="meta")
    x_start = torch.empty(BATCH, 1, 8, 8, device="meta")
    index = torch.empty(BATCH, dtype=torch.int64, device="meta")
    schedule = build_schedule(SHORT_CHAIN).to("meta")
    for step in range(CHECK_EVERY_STEPS - 1):
        train_step(state, state.model, SHORT_CHAIN, schedule, x_start=x_start, index=index, step=step, seed=3)
    with pytest.raises(RuntimeError, match="meta tensors"):
        state.divergence.check()  # once in many steps it has to


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"train.tf32=true is of GPUs"):
        fresh_state(tf32=True)


def test_dropout_leaves_the_callers_random_numbers_alone():
    state = fresh_state(dropout=0.5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(state, range(2))
    assert torch.equal(torch.rand(3), expected)


class Listening(nn.Module):
    """Passes everything on to a network and writes down what torch's generator gives during its forward pass."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.heard = []

    def forward(self, *inputs):
        self.heard.append(torch.rand(4).tolist())
        return self.network(*inputs)


def test_a_repeated_step_repeats_its_dropout_and_another_step_has_its_own():
    state = fresh_state(dropout=0.5)
    listening = Listening(state.model)
    train(state, [0, 1, 0], module=listening)
    first, other, again = listening.heard
    assert first == again
    assert first != other


def test_training_learns():
    state = fresh_state()
    losses = [float(measured.loss) for measured in train(state, range(60))]
    assert np.mean(losses[-15:]) < 0.95 * np.mean(losses[:15])


def warmed_up(sampler):
    """The sampler after losses that differ between its pools."""
    sampler.update(torch.arange(20).repeat(2), torch.linspace(0.1, 3, 40, dtype=torch.float64))
    return sampler


def test_steps_are_adamw_on_the_weighted_loss_at_keyed_t_and_eps():
    # A large eps keeps Adam from turning the rounding of gradients that should be 0 into whole steps.
    adamw = {"lr": 3e-3, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.5}
    state = fresh_state(timesteps=IMPORTANCE, **adamw)
    sampler = warmed_up(LossSecondMomentSampler(IMPORTANCE, SHORT_CHAIN.num_timesteps))
    warmed_up(state.timestep_sampler)
    model, schedule = deepcopy(state.model), build_schedule(SHORT_CHAIN)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    rows = torch.arange(BATCH).flip(0)
    for step, measured in enumerate(train(state, range(3), rows=rows)):
        key = {"seed": 3, "step": step, "index": rows}
        t, weights = sampler.sample(uniform(**key, stream=TIMESTEP, count=1)[:, 0])
        eps = normal(**key, stream=TRAIN_NOISE, shape=(1, 8, 8))
        terms = diffusion_losses(SHORT_CHAIN, schedule, model, x_start=batch(step)[rows], t=t, eps=eps)
        loss = (weights * terms.objective).sum() / BATCH
        optimizer.zero_grad()
        loss.backward()
        grad_norm = sum(parameter.grad.square().sum() for parameter in model.parameters()).sqrt()
        optimizer.step()
        sampler.update(t, terms.objective)
        average = [0.9 * old + 0.1 * new for old, new in zip(average, model.parameters(), strict=True)]
        expected = {
            "loss": loss,
            "simple": (weights * terms.simple).sum() / BATCH,
            "vlb": 20 * (weights * terms.vlb).sum() / BATCH,
            "grad_norm": grad_norm,
        }
        torch.testing.assert_close(measured.means(), expected, **SAME_STEPS)
    torch.testing.assert_close(list(state.model.parameters()), list(model.parameters()), **SAME_STEPS)
    torch.testing.assert_close(list(state.ema.state().values()), average, **SAME_STEPS)
    torch.testing.assert_close(state.timestep_sampler.state(), sampler.state(), **SAME_STEPS)


def test_the_average_of_the_weights_is_what_evaluation_gets():
    state = fresh_state()
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    train(state, [0])
    for name, averaged in state.ema_weights().items():
        expected = 0.9 * start[name] + 0.1 * state.model.state_dict()[name]
        torch.testing.assert_close(averaged, expected, rtol=1e-6, atol=1e-7)


def test_divergence_is_reported_with_its_step_and_never_saved():
    state = fresh_state()
    train(state, range(2))
    nn.init.constant_(state.model.out[2].bias, float("nan"))
    train(state, range(2, 4))
    for save_it in (state.tensors, state.tensors, state.ema_weights):
        with pytest.raises(TrainingDiverged, match=r"in step 2: the loss is nan at t = \d+") as raised:
            save_it()
    assert len(raised.value.t) == BATCH
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_divergence_ends_training_within_a_few_steps_even_if_nothing_is_saved():
    state = fresh_state()
    nn.init.constant_(state.model.out[2].bias, float("inf"))
    with pytest.raises(TrainingDiverged) as raised:
        train(state, range(CHECK_EVERY_STEPS))
    assert raised.value.step == 0


def damaged(name, change):
    def damage(tensors):
        return {**{key: tensor for key, tensor in tensors.items() if key != name}, **change(tensors.get(name))}

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged("ema.0.9.out.2.bias", lambda _: {}), r"ema\.0\.9\.out\.2\.bias is missing"),
        (damaged("model.extra", lambda _: {"model.extra": torch.zeros(1)}), r"model\.extra is unknown"),
        (
            damaged("optimizer.out.2.bias.exp_avg", lambda t: {"optimizer.out.2.bias.exp_avg": t[:1]}),
            r"optimizer\.out\.2\.bias\.exp_avg is float32 \(1,\), not float32 \(2,\)",
        ),
        (
            damaged("model.out.2.bias", lambda t: {"model.out.2.bias": t.double()}),
            r"model\.out\.2\.bias is float64 \(2,\), not float32 \(2,\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(damage, message):
    state, trained = fresh_state(), fresh_state()
    train(trained, range(2))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    with pytest.raises(ValueError, match=message):
        state.load_tensors(damage(trained.tensors()), trained.meta())
    assert_equal_tensors(state.tensors(), before)


def test_meta_data_of_another_kind_of_state_is_refused():
    state = fresh_state()
    with pytest.raises(ValueError, match="meta data"):
        state.load_tensors(state.tensors(), {"images_seen": 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"images": 0}, "images=0"),
        ({"shuffle_mib": 0}, "shuffle_mib=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"images": 1280, **changes})


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    state = fresh_state(timesteps=IMPORTANCE)
    module = nn.parallel.DistributedDataParallel(state.model)
    share = BATCH // 2
    measured = train(state, range(8), module=module, rows=torch.arange(rank * share, (rank + 1) * share))
    torch.save((state.tensors(), state.meta(), [(m.means(), m.quartiles) for m in measured]), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_hold_one_state_and_take_the_steps_of_one_worker(tmp_path):
    torch.multiprocessing.spawn(worker, args=(tmp_path / "store", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_equal_tensors(first[0], second[0])
    assert first[1] == second[1]
    alone = fresh_state(timesteps=IMPORTANCE)
    measured = train(alone, range(8))
    assert first[1] == alone.meta()
    for theirs, ours in zip(first[2], measured, strict=True):
        # The same examples, t and eps; gradients are summed in another order, and AdamW passes the rounding on.
        means, quartiles = theirs
        for name in ("loss", "grad_norm"):
            assert float(means[name]) == pytest.approx(float(getattr(ours, name)), rel=1e-4)
        torch.testing.assert_close(quartiles, ours.quartiles, rtol=1e-4, atol=1e-5)
        assert float(quartiles[0].sum() / BATCH) == pytest.approx(float(means["loss"]), rel=1e-5)
    for name, tensor in alone.tensors().items():
        if name.startswith("sampler."):
            torch.testing.assert_close(first[0][name], tensor, rtol=1e-2, atol=1e-4, msg=name)
