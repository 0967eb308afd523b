"""What does a step of training do, and does training repeat itself bit for bit after a resume?"""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from diffusion.divergence import CHECK_EVERY_STEPS, TrainingDiverged
from diffusion.gaussian import build_schedule
from diffusion.loss_scale import LossScaleAtFloor
from diffusion.losses import diffusion_losses
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.randomness import TIMESTEP, TRAIN_NOISE, normal, uniform
from diffusion.timestep_sampler import LossSecondMomentSampler, UniformConfig
from diffusion.train_config import LossScaleConfig, TrainConfig, TreeConfig
from diffusion.training import train_step
from tests.small_steps import BATCH, IMPORTANCE, SHORT_CHAIN, assert_equal_tensors, batch, fresh_state, train

# float32 rounds sums in another order, and the fused optimizer rounds otherwise: some 1e-7 a step.
SAME_STEPS = {"rtol": 1e-5, "atol": 1e-6}


def means(measured):
    return dict(zip(measured.names, measured.means, strict=True))


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
    objective = DiffusionObjective(SHORT_CHAIN, build_schedule(SHORT_CHAIN).to("meta"))
    for step in range(CHECK_EVERY_STEPS - 1):
        train_step(state, state.model, objective, Examples(x_start, index), step=step, seed=3)
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


def test_a_repeated_step_repeats_its_dropout_and_every_other_step_and_shard_has_its_own():
    state = fresh_state(dropout=0.5)
    listening = Listening(state.model)
    train(state, [0, 1, 0], module=listening)
    first, other, again = (listening.heard[2 * number : 2 * number + 2] for number in range(3))
    assert first == again
    assert len({tuple(shard) for shard in first + other}) == 4


def test_training_learns():
    state = fresh_state()
    losses = [float(measured.means[0]) for measured in train(state, range(60))]
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
        found = {name: mean.float() for name, mean in means(measured).items()}
        torch.testing.assert_close({**found, "grad_norm": measured.grad_norm}, expected, **SAME_STEPS)
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
        ({"clip_grad_norm": 0.0}, "clip_grad_norm=0.0"),
        ({"lr_warmup_images": -1}, "lr_warmup_images=-1"),
        ({"loss_scale": LossScaleConfig(growth=0.5)}, "loss_scale changes nothing at train.precision='float32'"),
        ({"reduction": TreeConfig(shards=256)}, "cannot be cut into train.reduction.shards=256"),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"images": 1280, **changes})


def test_gradient_checkpointing_changes_no_bit_also_under_autocast_and_dropout():
    settings = {"dropout": 0.3, "precision": "bf16"}
    plain, frugal = (fresh_state(gradient_checkpointing=on, **settings) for on in (False, True))
    for state in (plain, frugal):
        train(state, range(4))
    assert frugal.model.gradient_checkpointing
    assert_equal_tensors(plain.tensors(), frugal.tensors())


def test_a_long_gradient_is_cut_to_length_and_reported_as_it_was():
    free, cut = fresh_state(betas=(0.0, 0.0), eps=1.0), fresh_state(betas=(0.0, 0.0), eps=1.0, clip_grad_norm=1e-3)
    measured, shortened = (train(state, [0])[0].grad_norm for state in (free, cut))
    assert torch.equal(measured, shortened)
    assert measured > 1e-3
    first = [moment for name, moment in cut.tensors().items() if name.endswith("exp_avg")]
    assert float(torch.cat([m.flatten() for m in first]).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"lr_anneal": "iddpm"}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"lr_anneal": "adm"}, [1, 1, 0.8, 0.6, 0.4]),
        ({"lr_warmup_images": 32}, [0.25, 0.5, 0.75, 1, 1]),
        ({"lr_warmup_images": 16, "lr_anneal": "iddpm"}, [0.5, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_the_learning_rate_is_the_published_function_of_the_step(settings, expected):
    config = TrainConfig(images=40, batch_size=8, lr=2e-3, reduction=TreeConfig(shards=1), **settings)
    assert [config.lr_at(step) for step in range(5)] == pytest.approx([2e-3 * share for share in expected])


def test_a_step_is_taken_at_its_learning_rate():
    settings = {"images": 24, "betas": (0.0, 0.0), "eps": 1e-20}
    state = fresh_state(lr_anneal="iddpm", **settings)
    bias = state.model.out[2].bias
    for step, share in enumerate([1, 2 / 3, 1 / 3]):
        before = bias.detach().clone()
        (measured,) = train(state, [step])
        assert measured.lr == pytest.approx(1e-3 * share)
        # Without memory Adam's step is lr times the gradient's sign.
        torch.testing.assert_close((bias - before).abs(), torch.full_like(bias, 1e-3 * share), rtol=1e-3, atol=0)


def overflow(state):
    """Let the next gradients be too large for float16, whatever the loss."""
    state.model.out[2].weight.register_hook(lambda gradient: gradient * float("inf"))


def test_float16_skips_a_step_whose_gradient_overflows_and_halves_its_scale():
    state = fresh_state(precision="fp16", dropout=0.3)
    train(state, range(2))
    assert state.loss_scale.log2 == pytest.approx(20.002)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    overflow(state)
    (measured,) = train(state, [2])
    assert measured.skipped
    assert measured.loss_scale_log2 == pytest.approx(20.002)
    assert_equal_tensors(state.tensors(), before)
    assert state.meta() == {**state.meta(), "step": 3, "loss_scale_log2": pytest.approx(19.002)}


def test_float16_that_overflows_at_any_scale_ends_with_an_error_that_says_so():
    state = fresh_state(precision="fp16", loss_scale=LossScaleConfig(initial_log2=2.0, floor_log2=1.0))
    overflow(state)
    train(state, [0])
    with pytest.raises(LossScaleAtFloor, match=r"in step 1: .* loss scale of 2\^1 ") as raised:
        train(state, [1])
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_learn_what_float32_learns_and_keep_float32_weights(precision):
    scale = {"loss_scale": LossScaleConfig(initial_log2=8.0)} if precision == "fp16" else {}
    states = [fresh_state(eps=1e-3), fresh_state(precision=precision, eps=1e-3, **scale)]
    full, half = (torch.stack([m.means[0] for m in train(state, range(20))]) for state in states)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)
    assert not torch.equal(half, full)
    assert {tensor.dtype for name, tensor in states[1].tensors().items() if name.startswith("model.")} == {
        torch.float32
    }


def test_the_loss_scale_goes_on_after_a_resume():
    first, second = fresh_state(precision="fp16"), fresh_state(precision="fp16")
    train(first, range(3))
    second.load_tensors(first.tensors(), first.meta())
    assert second.loss_scale.log2 == first.loss_scale.log2 != 20.0
