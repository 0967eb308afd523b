"""Prices: what a file of them may say, and what a share of a machine costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.prices import Instance, read_price

GOOD: dict[str, Any] = {
    "currency": "USD",
    "instances": {"small": {"per_hour": 0.1, "cpus": 2}, "large": {"per_hour": 8, "gpus": 4, "cpus": 32}},
}


def written(folder: Path, said: object) -> str:
    file = folder / "prices.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return str(file)


def test_a_machine_is_paid_by_the_share_of_it_that_is_scarcer(tmp_path: Path) -> None:
    price = read_price(written(tmp_path, GOOD), "large")
    assert price.instance.cost(3600, cpus=1, gpus=1) == 2.0
    assert price.instance.cost(1800, cpus=32, gpus=1) == 4.0
    assert (price.money(1.234), price.money(0.00123)) == ("1.23 USD", "0.0012 USD")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("{", "cannot be read as JSON"),
        ([], "has list"),
        ({"currency": "USD"}, "has currency; its keys must be currency and instances"),
        ({**GOOD, "prices": 1}, "has currency, instances, prices"),
        ({**GOOD, "currency": 3}, "currency=3"),
        ({**GOOD, "instances": {}}, "instances={}"),
        ({**GOOD, "instances": {"large": {"per_hour": -1, "cpus": 1}}}, "instances.large: per_hour=-1"),
        ({**GOOD, "instances": {"large": {"per_hour": 1, "cpu": 1}}}, "did you mean 'cpus'"),
        ({**GOOD, "instances": {"large": {"per_hour": "1", "cpus": 1}}}, "per_hour='1'"),
        ({**GOOD, "instances": {"large": {"per_hour": 1, "cpus": 0}}}, "cpus=0"),
        ({**GOOD, "instances": {"larger": {"per_hour": 1, "cpus": 1}}}, "did you mean 'larger'"),
    ],
)
def test_a_file_of_another_layout_is_refused(said: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--prices|--instance") as refused:
        read_price(written(tmp_path, said), "large")
    assert complaint in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot be read"):
        read_price(str(tmp_path / "nowhere.json"), "large")


def test_gpus_have_no_price_on_a_machine_without() -> None:
    with pytest.raises(ValueError, match="the instance has none"):
        Instance(per_hour=1, cpus=2).cost(1, cpus=1, gpus=1)
