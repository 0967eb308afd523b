"""Are the averages of the weights the published ones, and the precise ones precise?"""

import pytest
import torch
from torch import nn

from diffusion.ema import Ema, EmaConfig


def linear(value, dtype=torch.float32):
    model = nn.Linear(2, 1, dtype=dtype)
    fill(model, value)
    return model


def fill(model, value):
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


def test_every_average_begins_as_a_copy_and_forgets_at_its_own_rate():
    model = linear(1.0)
    ema = Ema(EmaConfig(rates=(0.9, 0.5, 0.0)), model)
    expected = {0.9: 1.0, 0.5: 1.0, 0.0: 1.0}
    for step, value in enumerate((2.0, -3.0, 5.0)):
        fill(model, value)
        ema.update(step=step)
        expected = {rate: rate * average + (1 - rate) * value for rate, average in expected.items()}
    for rate, average in expected.items():
        assert ema.weights(rate)["weight"].flatten().tolist() == pytest.approx([average, average], rel=1e-6)
        assert ema.weights(rate)["bias"].item() == pytest.approx(average, rel=1e-6)
    assert ema.weights()["bias"].item() == ema.weights(0.9)["bias"].item()


def test_an_average_does_not_follow_the_model_by_itself_nor_disturb_it():
    model = linear(1.0)
    ema = Ema(EmaConfig(rates=(0.5,)), model)
    nn.init.constant_(model.bias, 3.0)
    assert ema.weights()["bias"].item() == 1.0
    ema.update(step=0)
    assert model.bias.item() == 3.0


def test_the_published_average_is_rounded_as_published():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(64, 64)
    ema, average = Ema(EmaConfig(rates=(0.9999,)), model), model.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model.weight += 0.1 * torch.randn(64, 64, generator=generator)
        ema.update(step=step)
        average.mul_(0.9999).add_(model.weight.detach(), alpha=1 - 0.9999)
    assert torch.equal(ema.weights()["weight"], average)


def test_an_average_that_is_not_kept_is_not_made_up():
    with pytest.raises(ValueError, match=r"rate 0\.5: there are averages at 0\.9999"):
        Ema(EmaConfig(), linear(1.0)).weights(0.5)


def test_with_warmup_an_average_forgets_its_first_copy_sooner():
    model = linear(0.0)
    ema = Ema(EmaConfig(rates=(0.9999,), warmup=True), model)
    fill(model, 1.0)
    left = 1.0
    for step in range(50):
        ema.update(step=step)
        left *= min(0.9999, (1 + step) / (10 + step))
    assert ema.weights()["bias"].item() == pytest.approx(1 - left, rel=1e-5)
    assert left < 1e-6


def test_in_float64_small_steps_of_a_slow_average_are_not_lost_to_rounding():
    """1e-7 of the way to 1 each time: in float32 that is less than half a unit of the last place of 0.999."""
    ends = {}
    for arithmetic in ("published", "float64"):
        model = linear(0.999)
        ema = Ema(EmaConfig(rates=(1 - 1e-5,), arithmetic=arithmetic), model)
        fill(model, 1.0)
        for step in range(1000):
            ema.update(step=step)
        ends[arithmetic] = ema.weights()["bias"].item()
    expected = 1 - 0.001 * (1 - 1e-5) ** 1000
    assert ends["float64"] == pytest.approx(expected, abs=6e-8)
    assert abs(ends["published"] - expected) > 3e-6


def test_the_state_is_every_average_by_rate_and_name_and_comes_in_the_parameters_dtype():
    ema = Ema(EmaConfig(rates=(0.9999, 0.5), arithmetic="float64"), linear(1.0))
    assert sorted(ema.state()) == ["0.5.bias", "0.5.weight", "0.9999.bias", "0.9999.weight"]
    assert {tensor.dtype for tensor in ema.state().values()} == {torch.float64}
    assert ema.weights(0.5)["bias"].dtype == torch.float32
    assert Ema(EmaConfig(), linear(1.0, torch.float64)).weights()["bias"].dtype == torch.float64


@pytest.mark.parametrize("rates", [(1.0,), (-0.1,), (0.9, 0.9), (1 - 1e-11, 1 - 2e-11)])
def test_rates_that_make_no_average_are_refused(rates):
    with pytest.raises(ValueError, match=r"train\.ema\.rates"):
        EmaConfig(rates=rates)


def test_without_any_average_the_weights_are_the_model():
    ema = Ema(EmaConfig(rates=()), linear(1.0))
    assert ema.weights() == {} == ema.state()
