"""Is the average of the weights the published one?"""

import pytest
from torch import nn

from diffusion.ema import Ema


def linear(value):
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_the_average_begins_as_a_copy_and_forgets_at_its_rate():
    model = linear(1.0)
    ema = Ema(model, rate=0.9)
    expected = 1.0
    for value in (2.0, -3.0, 5.0):
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        ema.update(model)
        expected = 0.9 * expected + 0.1 * value
    assert ema.state()["weight"].flatten().tolist() == pytest.approx([expected, expected], rel=1e-6)
    assert ema.state()["bias"].item() == pytest.approx(expected, rel=1e-6)


def test_the_average_does_not_follow_the_model_by_itself_nor_disturb_it():
    model = linear(1.0)
    ema = Ema(model, rate=0.5)
    nn.init.constant_(model.bias, 3.0)
    assert ema.state()["bias"].item() == 1.0
    ema.update(model)
    assert model.bias.item() == 3.0
