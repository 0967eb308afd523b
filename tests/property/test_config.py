"""Configs: JSON both ways, settings by dotted name, and errors that say what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import canonical_json, diff, fingerprint, flatten, from_dict, override, parse_settings, to_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class Even:
    kind: Literal["even"] = "even"


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    kind: Literal["learned"] = "learned"
    history: int = 10
    share: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    lr: float = 1e-3
    sampler: Even | Learned = field(default_factory=Even)
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"train.lr={self.lr}: must be more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    train: Train
    name: str = "run"
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["fast", "exact"] = "fast"
    loud: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    kind: Literal["long", "short"] = "long"
    steps: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    walk: Walk


finite = st.floats(1e-6, 1e6)
samplers = st.one_of(st.builds(Even), st.builds(Learned, history=st.integers(1, 99), share=finite))
trains = st.builds(Train, lr=finite, sampler=samplers, limit=st.none() | st.integers())
runs = st.builds(
    Run, train=trains, name=st.text(), sizes=st.lists(st.integers()).map(tuple),
    mode=st.sampled_from(["fast", "exact"]), loud=st.booleans(),
)  # fmt: skip


@given(config=runs)
def test_a_config_survives_json(config: Run) -> None:
    assert from_dict(Run, json.loads(json.dumps(to_dict(config)))) == config


@given(config=runs, other=runs)
def test_configs_have_the_same_fingerprint_only_when_they_are_equal(config: Run, other: Run) -> None:
    assert (fingerprint(to_dict(config)) == fingerprint(to_dict(other))) == (config == other)


@given(config=runs, lr=finite)
def test_overriding_changes_that_setting_and_no_other(config: Run, lr: float) -> None:
    changed = override(config, {"train.lr": lr})
    assert changed.train.lr == lr
    assert set(diff(config, changed)) <= {"train.lr"}


def test_choosing_a_member_of_a_union_takes_its_defaults_in_whatever_order_it_is_written() -> None:
    config = Run(train=Train())
    expected = Learned(history=3)
    assert override(config, {"train.sampler.history": 3, "train.sampler.kind": "learned"}).train.sampler == expected
    assert override(config, {"train.sampler.kind": "learned", "train.sampler.history": 3}).train.sampler == expected
    kept = override(Run(train=Train(sampler=Learned(history=7))), {"train.sampler.kind": "learned"})
    assert kept.train.sampler == Learned(history=7)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train.learning_rate": 1}, r"train\.learning_rate: unknown key\. Allowed: lr, sampler, limit"),
        ({"train.lrr": 1}, r"did you mean 'lr'\?"),
        ({"trian.lr": 1}, r"trian\.lr: unknown key; did you mean 'train'\?"),
        ({"train.lr": "fast"}, r"train\.lr='fast': input should be a valid number"),
        ({"train.lr": -1.0}, r"train\.lr=-1\.0: must be more than 0"),
        ({"train.limit": 1.5}, r"train\.limit=1\.5"),
        ({"loud": 1}, "loud=1: input should be a valid boolean"),
        ({"mode": "fsat"}, "mode='fsat': input should be 'fast' or 'exact'"),
        ({"sizes": [1, "2"]}, r"sizes\[1\]='2': input should be a valid integer"),
        ({"train.sampler.kind": "lerned"}, r"train\.sampler\.kind='lerned': .*did you mean 'learned'"),
        ({"train.sampler.history": 3}, r"train\.sampler\.history: unknown key"),
        ({"name.length": 3}, r"name\.length: unknown key; name is a single value"),
        ({"train": 3}, "train=3: must be an object with the keys lr, sampler, limit"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        override(Run(train=Train()), changes)


def test_a_whole_number_serves_as_a_float_but_text_never_as_a_number() -> None:
    assert override(Run(train=Train()), {"train.lr": 1}).train.lr == 1.0
    with pytest.raises(ValueError, match="valid number"):
        override(Run(train=Train()), {"train.lr": "1"})


def test_a_missing_setting_without_a_default_is_named() -> None:
    with pytest.raises(ValueError, match="train: missing"):
        from_dict(Run, {"name": "x"})


def test_settings_from_a_command_line_are_json_except_where_text_is_wanted() -> None:
    settings = ["train.lr=3e-4", "name=250", "sizes=[4,5]", "train.limit=null", "mode=exact"]
    run = Run(train=Train(limit=3))
    assert override(run, parse_settings(run, settings)) == Run(
        train=Train(lr=3e-4), name="250", sizes=(4, 5), mode="exact"
    )
    with pytest.raises(ValueError, match="write KEY=VALUE"):
        parse_settings(run, ["train.lr"])


def test_an_object_changes_the_settings_it_names_and_no_others() -> None:
    run = Run(train=Train(lr=0.5, limit=3))
    changes = parse_settings(run, ['train={"limit": 4}'])
    assert changes == {"train.limit": 4}
    assert override(run, changes) == override(run, {"train": {"limit": 4}}) == Run(train=Train(lr=0.5, limit=4))
    with pytest.raises(ValueError, match=r"train\.limit is set twice"):
        parse_settings(run, ['train={"limit": 4}', "train.limit=5"])


@pytest.mark.parametrize("text", ["train={}", "train.sampler={}", "nosuch={}"])
def test_an_empty_object_is_not_ignored(text: str) -> None:
    run = Run(train=Train())
    with pytest.raises(ValueError, match="an empty object sets nothing"):
        override(run, parse_settings(run, [text]))


def test_a_kind_that_chooses_no_other_class_resets_nothing() -> None:
    changed = override(Sampling(walk=Walk(steps=3)), {"walk.kind": "short"})
    assert changed == Sampling(walk=Walk(kind="short", steps=3))


def test_flat_parameters_are_scalars_by_dotted_name() -> None:
    flat = flatten(Run(train=Train(sampler=Learned())))
    assert flat["train.sampler.history"] == 10
    assert flat["sizes"] == "[1, 2]"


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        canonical_json({"x": float("nan")})
    with pytest.raises(ValueError, match=r"train\.lr"):
        override(Run(train=Train()), {"train.lr": float("inf")})
