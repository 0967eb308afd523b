"""Weights in the published layout are sampled from and scored by one command; what does not belong together is refused.

The networks are small ones, put among the published: names, shapes and layout of a file are made as those are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.classifier import ClassifierConfig
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.openai_checkpoints import from_published, to_published
from diffusion.published import PUBLISHED, PublishedModel
from diffusion.sampling import SamplerConfig, sample, to_uint8
from diffusion.superres import SuperResConfig
from diffusion.trunk import UNetConfig
from orchestrator.errors import PapertableError
from pipelines.cli import Places
from pipelines.drawn import SAMPLES_FILE
from pipelines.evaluate_published import evaluate_published

UNET = UNetConfig(
    image_size=8, channels=3, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
    num_heads=2,
)  # fmt: skip
PROCESS = DiffusionConfig(num_timesteps=20, vlb_weight="1/T", rescale_timesteps=False)
SMALL = {
    "small_diffusion": PublishedModel(network=UNET, diffusion=PROCESS),
    "small_classifier": PublishedModel(
        network=ClassifierConfig(encoder=replace(UNET, num_heads=None, num_head_channels=16), num_classes=10),
        diffusion=PROCESS,
    ),
    "small_upsampler": PublishedModel(
        network=SuperResConfig(
            unet=replace(UNET, image_size=16, attention_resolutions=(8,), num_classes=10), small_size=8
        ),
        diffusion=PROCESS,
    ),
}
FEW = ("sample.count=40", "metrics.kid_subset_size=20", "sample.sampler.respacing=4")
ENLARGED = "upsample.sampler.respacing=4"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A .pt file of each, by the name of its model, and reference.npz."""
    found = {}
    for name, model in SMALL.items():
        monkeypatch.setitem(PUBLISHED, name, model)
        torch.manual_seed(1)
        network = model.build()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        found[name] = str(tmp_path / f"{name}.pt")
        torch.save(to_published(network, attention_layout="legacy"), found[name])
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    found["reference"] = str(tmp_path / "reference.npz")
    np.savez(found["reference"], arr_0=images)
    return found


def evaluate(files: dict[str, str], tmp_path: Path, *settings: str, **options: str) -> int:
    return evaluate_published(
        Path(files["reference"]), files["small_diffusion"], options.pop("openai", "small_diffusion"),
        network="efficientnet-lite0", places=Places(store=str(tmp_path / "store")), set=_last_of_each(FEW + settings),
        device="cpu", output=tmp_path / "numbers.json", **options,
    )  # fmt: skip


def test_a_published_file_is_sampled_from_and_scored(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(files, tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["Precision", "Recall", "KID", "Frechet distance"]
    protocol = json.loads((tmp_path / "numbers.json").read_text())["fd"]["protocol"]
    assert protocol["sampler"] == "ancestral, respacing 4"
    assert protocol["weights"].startswith("published small_diffusion, SHA-256 ")
    (samples,) = (tmp_path / "store" / "sample").glob(f"*/{SAMPLES_FILE}")
    with np.load(samples, allow_pickle=False) as stored:
        images = stored["arr_0"]
    network = from_published(files["small_diffusion"]).requires_grad_(False)
    alone = sample(
        SamplerConfig(respacing="4"), PROCESS, build_schedule(PROCESS), network,
        index=torch.arange(40), seed=0, image_shape=(3, 8, 8),
    )  # fmt: skip
    assert np.abs(to_uint8(alone).numpy().astype(int) - images).max() <= 1


def test_a_classifier_steers_it_and_an_upsampler_enlarges_it(files: dict[str, str], tmp_path: Path) -> None:
    steered = {"classifier": files["small_classifier"], "upsampler": files["small_upsampler"]}
    assert evaluate(files, tmp_path, "sample.guidance_scale=2", ENLARGED, **steered) == 0
    protocol = json.loads((tmp_path / "numbers.json").read_text())["fd"]["protocol"]
    assert protocol["guidance"] == "classifier, scale 2"
    assert protocol["classifier"].startswith("published small_classifier, SHA-256 ")
    assert protocol["upsampler weights"].startswith("published small_upsampler")
    (samples,) = (tmp_path / "store" / "upsample").glob(f"*/{SAMPLES_FILE}")
    with np.load(samples, allow_pickle=False) as stored:
        assert stored["arr_0"].shape == (40, 16, 16, 3)
        assert stored["arr_1"].min() >= 0


def test_the_same_command_again_draws_nothing_anew(files: dict[str, str], tmp_path: Path) -> None:
    evaluate(files, tmp_path)
    (record,) = (tmp_path / "store" / "sample").glob("*/record.json")
    before = record.stat().st_mtime_ns
    evaluate(files, tmp_path)
    assert record.stat().st_mtime_ns == before


def _last_of_each(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple({setting.partition("=")[0]: setting for setting in settings}.values())


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ((), {"openai": "adm-imagenet64"}, "small_diffusion, not 64x64_diffusion"),
        ((), {"openai": "adm-imagenet65"}, "adm-imagenet64"),
        ((), {"classifier": "small_classifier"}, "guidance_scale=0"),
        (("sample.guidance_scale=1",), {}, "--classifier is not given"),
        (("sample.guidance_scale=1",), {"classifier": "small_diffusion"}, "not a classifier"),
        ((), {"upsampler": "small_classifier"}, "not a network that makes images larger"),
        (
            ("sample.sampler.respacing=21",),
            {},
            r"respacing='21' with --checkpoint: diffusion\.num_timesteps=20",
        ),
        (("sample.count=30",), {}, r"sample\.count=30: .* take 40"),
        ((ENLARGED,), {}, "no second stage"),
        ((ENLARGED,), {"upsampler": "small_upsampler"}, "one of 10 classes, but the samples are of no classes"),
        (("sample.ema=0.5",), {}, r"sample\.ema=0\.5"),
        (
            ("sample.guidance_scale=1", "sample.seed=1", ENLARGED),
            {"classifier": "small_classifier", "upsampler": "small_upsampler"},
            r"upsample\.seed=1: that is sample\.seed",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_before_anything_is_drawn(
    files: dict[str, str], tmp_path: Path, settings: tuple[str, ...], options: dict[str, str], said: str
) -> None:
    named = {name: files.get(value, value) for name, value in options.items()}
    with pytest.raises(ValueError, match=said):
        evaluate(files, tmp_path, *settings, **named)
    assert not (tmp_path / "store" / "sample").exists()


def test_a_file_that_is_not_there_or_carries_code_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PapertableError, match="no such file"):
        evaluate({**files, "small_diffusion": str(tmp_path / "none.pt")}, tmp_path)
    with pytest.raises(PapertableError, match="it is not loaded"):
        evaluate({**files, "small_diffusion": f"{files['small_diffusion']}#sha256={'0' * 64}"}, tmp_path)
    torch.save({"weights": torch.nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="carries code"):
        evaluate({**files, "small_diffusion": str(tmp_path / "code.pt")}, tmp_path)
