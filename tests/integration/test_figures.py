"""Figures of small models that were trained for them: each is drawn, with its numbers, and nothing is run twice."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import figures
from pipelines.cli import run
from pipelines.gradient_noise import GRADIENT_NOISE_FILE
from pipelines.nll import NLL_FILE

SHORT = (
    "--set", "train.images=640", "--set", "diffusion.num_timesteps=40", "--set", "sample.sampler.respacing=",
)  # fmt: skip
SIMPLE = ("--arm", "simple:diffusion.loss=simple,diffusion.variance=fixed_large")
HYBRID = ("--arm", "hybrid:diffusion.loss=hybrid")
VLB = ("--arm", "vlb:diffusion.loss=vlb,model.channel_mult=[1,2]")
FEW = ("--microbatches", "4", "--microbatch", "8", "--importance.pools", "6", "--importance.history-per-term", "2")

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def draw(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command line; its exit code."""

    def command(name: str, *arguments: str) -> int:
        places = () if name == "schedules" else ("--store", str(store))
        monkeypatch.setattr(sys, "argv", ["figures.py", name, *arguments, *places, "--output", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            run(figures.main)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return command


def drawn(folder: Path, name: str) -> Rows:
    """The numbers of a figure, whose picture is whole."""
    with Image.open(folder / f"{name}.png") as picture:
        picture.load()
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def column(rows: Rows, curve: str, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows if row["curve"] == curve])


def test_schedules_are_drawn_without_a_model(draw: Callable[..., int], tmp_path: Path) -> None:
    assert draw("schedules", "--num-timesteps", "30", "100") == 0
    left = drawn(tmp_path, "alphas_cumprod")
    for name in ("linear", "cosine"):
        assert (np.diff(column(left, name, "alphas_cumprod")) < 0).all()
    half = column(left, "cosine", "t_over_T") == 0.5
    assert column(left, "cosine", "alphas_cumprod")[half] > column(left, "linear", "alphas_cumprod")[half]  # IDDPM 3.2
    ratio = column(drawn(tmp_path, "posterior_variance"), "cosine, T = 30", "posterior_variance_over_beta")
    assert ratio[0] == 0
    assert (np.diff(ratio) > 0).all()


def test_terms_of_several_arms_add_up_to_their_bounds_and_are_measured_once(
    draw: Callable[..., int], store: Path, tmp_path: Path
) -> None:
    arguments = (*SHORT, "--set", "nll.images=6", *SIMPLE, *HYBRID)
    assert draw("terms", *arguments) == 0
    rows = drawn(tmp_path, "terms")
    sums = {round(column(rows, arm, "term_bpd").sum(), 6) for arm in ("simple", "hybrid")}
    records = {file: file.stat().st_mtime_ns for file in store.glob("*/*/record.json")}
    measured = set()
    for artifact in store.glob("nll/*"):
        with np.load(artifact / NLL_FILE) as stored:
            measured.add(round(float(stored["nll_bpd"].mean() - stored["prior_bpd"].mean()), 6))
    assert sums == measured
    assert column(rows, "simple", "t_plus_1").tolist() == list(range(1, 41))
    assert draw("terms", *arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in store.glob("*/*/record.json")} == records


def test_learned_variances_are_drawn_between_their_quantiles(draw: Callable[..., int], tmp_path: Path) -> None:
    assert draw("variances", *SHORT, *HYBRID, "--images", "70", "--points", "9") == 0
    rows = drawn(tmp_path, "variances")
    low, mean, high = (column(rows, "hybrid", name) for name in ("low", "variance_fraction", "high"))
    assert column(rows, "hybrid", "t_plus_1")[[0, -1]].tolist() == [1, 40]
    assert ((low < mean) & (mean < high)).all()
    assert (abs(mean - 0.5) < 0.5).all()  # a network that has hardly learned says near 0, the middle


def test_gradient_noise_is_drawn_over_training_for_both_samplers_of_t(
    draw: Callable[..., int], store: Path, tmp_path: Path
) -> None:
    assert draw("gradient-noise", *SHORT[2:], *HYBRID, *VLB, *FEW, "--images-seen", "640", "1280") == 0
    rows = drawn(tmp_path, "gradient_noise")
    for curve in ("hybrid, t uniform", "hybrid, t importance", "vlb, t uniform", "vlb, t importance"):
        assert column(rows, curve, "images_seen").tolist() == [640, 1280]
        low, scale, high = (column(rows, curve, name) for name in ("low", "noise_scale", "high"))
        assert (scale > 0).all()
        np.testing.assert_allclose(high - scale, scale - low)
    for artifact in store.glob("gradient_noise/*"):
        said = json.loads((artifact / "metrics.json").read_text())
        with np.load(artifact / GRADIENT_NOISE_FILE) as stored:
            assert stored["noise_scale"][0] == said["metrics"]["noise_scale_uniform"]
            np.testing.assert_allclose(stored["densities"].sum(axis=1), 1)
        assert said["protocol"]["noise_scale_uniform"]["examples"] == "4 microbatches of 8 training images"
        assert not said["notes"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("terms", "tinny"), "did you mean 'tiny'"),
        (("terms", "--arm", "hybrid"), "write LABEL:KEY=VALUE,KEY=VALUE"),
        (("terms", "--arm", "a:", "--arm", "a:"), "arm 'a': it is there twice"),
        (("terms", "--arm", "a:train.lr=1", "--set", "train.lr=2"), "arm 'a': train.lr is set for all arms, too"),
        (("terms", "--arm", "a:train.images=5"), "arm 'a': train.images=5: must be a multiple"),
        (("terms", "--arm", "a:nll.images=5", "--arm", "b:"), "the arms differ in nll"),
        (("terms", "--set", "nll.images=5000"), "358 held-out images"),
        (("terms", "--set", "nll.terms.kind=drawn"), "nll.terms.kind is set twice"),
        (("terms", "--workers", "2"), "without Ray there is one worker"),
        (("variances", *SIMPLE), "arm 'simple': diffusion.variance='fixed_large': only with"),
        (("variances", "--images", "5000"), "variances.images=5000: there are 358"),
        (("variances", "--points", "1"), "variances.points=1"),
        (("gradient-noise", *SIMPLE, "--loss", "hybrid"), "diffusion.loss='hybrid' learns the variance"),
        (("gradient-noise", *HYBRID, "--images-seen", "100"), "train.images=100: must be a multiple"),
        (("gradient-noise", "--microbatches", "2"), "gradient_noise.microbatches=2"),
        (("schedules", "--num-timesteps", "10"), "num_timesteps=10"),
    ],
)
def test_a_bad_figure_is_refused_before_anything_is_trained_for_it(
    arguments: tuple[str, ...], complaint: str, draw: Callable[..., int], store: Path, capsys: pytest.CaptureFixture
) -> None:
    trained = set(store.glob("train/*"))
    assert draw(*arguments) == 2
    said = capsys.readouterr()
    assert complaint in " ".join((said.out + said.err).split())
    assert set(store.glob("train/*")) == trained
