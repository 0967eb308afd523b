"""Images that no network of photographs knows are seen by a small classifier of the data set itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from diffusion.classifier import ClassifierConfig, NoisyClassifier, Pool
from diffusion.metrics.classifier import ClassifierFeatures
from diffusion.trunk import UNetConfig
from orchestrator.backend import LocalBackend
from orchestrator.config import override
from orchestrator.materialize import materialize
from orchestrator.step import Resources, Step, StepContext, walk
from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.drawn import PROTOCOL_FILE, SAMPLES_FILE
from pipelines.evaluate import MetricsConfig, metrics_step
from pipelines.evaluate_files import compare_files
from pipelines.features import features_step, reference_step
from pipelines.own_classifier import OwnClassifierConfig, own_classifier_step
from pipelines.plan import check, plan
from pipelines.presets import tiny
from pipelines.shards import read_split

DIGITS = DataConfig(source="digits", image_size=8)
SMALL = OwnClassifierConfig(model_channels=32, channel_mult=(1,), images=2560, batch_size=64, lr=3e-3)


def network(pool: Pool = "adaptive") -> NoisyClassifier:
    encoder = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(),
        num_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    built = NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=10, pool=pool)).eval()
    for parameter in built.out.parameters():
        torch.nn.init.normal_(parameter)  # some begin at zero
    return built


@dataclass(frozen=True)
class Drawn:
    """Samples by no model."""

    what: Literal["digits", "noise"]


def draw(config: Drawn, ctx: StepContext) -> None:
    images = read_split(ctx.inputs["dataset"], "train").images[:200]
    if config.what == "noise":
        images = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    np.savez(ctx.output / SAMPLES_FILE, arr_0=images)
    (ctx.output / PROTOCOL_FILE).write_text(json.dumps({"samples": len(images)}))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, dict[str, Step]]:
    store, dataset = ArtifactStore(str(tmp_path_factory.mktemp("store"))), dataset_step(DIGITS)
    reference = reference_step(SMALL, dataset=dataset)
    steps = {}
    for what in ("digits", "noise"):
        samples = Step(name="sample", version=1, config=Drawn(what), inputs={"dataset": dataset}, run=draw)  # type: ignore[arg-type]
        features = features_step(SMALL, samples=samples, dataset=dataset)
        steps[what] = metrics_step(MetricsConfig(), features=features, reference=reference)
    materialize(steps.values(), store, backend=LocalBackend(), resources=Resources())
    return store, steps


def test_digits_are_nearer_to_digits_than_noise_is_and_surer_of_their_class(
    measured: tuple[ArtifactStore, dict[str, Step]],
) -> None:
    store, steps = measured
    digits, noise = (store.metrics(steps[what]) for what in ("digits", "noise"))
    assert digits.metrics["fd_high"] < noise.metrics["fd_low"]
    assert digits.metrics["kid"] < noise.metrics["kid"]
    assert 1 <= noise.metrics["classifier_score"] < digits.metrics["classifier_score"] <= 10
    assert digits.metrics["classifier_score_low"] < digits.metrics["classifier_score_high"]


def test_its_numbers_are_never_called_fid_or_inception_score_and_name_its_weights(
    measured: tuple[ArtifactStore, dict[str, Step]],
) -> None:
    store, steps = measured
    said = store.metrics(steps["digits"])
    assert not {"fid", "sfid", "is"} & said.metrics.keys()
    assert set(said.protocol) == {"fd", "fd_infinity", "kid", "precision", "recall", "classifier_score"}
    (trained,) = store.root.glob("train_classifier/*/record.json")  # one, for reference and samples of both
    sha256 = json.loads(trained.read_text())["files"]["model.safetensors"]["sha256"]
    assert said.protocol["fd"]["network"] == f"classifier {sha256[:12]}"
    assert said.protocol["fd"]["resize"] == "none"


def test_a_preset_takes_it_by_its_kind_and_trains_one_for_all_rows() -> None:
    rows = [override(tiny(), {"features.kind": "classifier", "train.images": images}) for images in (1280, 2560)]
    assert rows[0].features == OwnClassifierConfig()
    classifiers = {step.key for row in rows for step in walk(plan(row).values()) if step.name == "train_classifier"}
    assert classifiers == {own_classifier_step(OwnClassifierConfig(), dataset=dataset_step(DIGITS)).key}


def test_what_does_not_fit_the_data_set_is_refused_before_work_begins(
    measured: tuple[ArtifactStore, dict[str, Step]],
) -> None:
    store, _ = measured
    sources = {"dataset": store.path(dataset_step(DIGITS))}
    with pytest.raises(ValueError, match=r"features\.num_classes=7: the data set has 10 classes"):
        check(override(tiny(), {"features.kind": "classifier", "features.num_classes": 7}), sources, data_mib=1024)
    with pytest.raises(ValueError, match=r"features\.kind='classifier'.*"):
        plan(override(tiny(), {"features.kind": "classifier", "features.channel_mult": [1, 2, 2, 2, 2]}))
    with pytest.raises(ValueError, match=r"features\.kind='classifier': must be one of"):
        compare_files(Path("a.npz"), Path("b.npz"), network="efficientnet-lite0", set=("features.kind=classifier",))
    with pytest.raises(ValueError, match=r"\(9, 9, 1\): this classifier was trained on \(8, 8, 1\)"):
        ClassifierFeatures(network(), weights_sha256="0" * 64)(np.zeros((2, 9, 9, 1), dtype=np.uint8))


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_the_last_layer_makes_the_logits_of_the_features(pool: Pool) -> None:
    built, x, zero = network(pool), torch.randn(5, 1, 8, 8), torch.zeros(5)
    with torch.no_grad():
        pooled, logits = built.pooled_and_logits(x, zero)
        assert pooled.shape == (5, built.pooled_channels)
        assert torch.equal(logits, built(x, zero))
        last = next(layer for layer in reversed(built.out) if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d))
        by_hand = pooled @ last.weight.flatten(start_dim=1).T + last.bias
    torch.testing.assert_close(by_hand, logits)


def test_the_pool_of_attention_has_no_such_features() -> None:
    encoder = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(),
        num_heads=None, num_head_channels=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="choose another pool"):
        _ = NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=10)).pooled_channels
