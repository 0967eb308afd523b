"""Two files of images are scored as the published evaluator scores them; what is no such file is refused by name."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from diffusion.metrics.features import Features
from diffusion.metrics.frechet import frechet_distance_of_features
from diffusion.metrics.inception import InceptionFeatures
from diffusion.metrics.inception_score import inception_score
from diffusion.metrics.precision_recall import precision_recall
from diffusion.metrics.stats import GaussianStats
from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.materialize import materialize
from orchestrator.step import Resources, Step, StepContext
from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.drawn import PROTOCOL_FILE, SAMPLES_FILE
from pipelines.evaluate import MetricsConfig, metrics_step
from pipelines.evaluate_files import compare_files
from pipelines.features import InceptionConfig, features_step, reference_step
from pipelines.weights import VARIABLE, WeightsConfig, read_weights
from tests.inception import inception_file

NAME = "inception-2015-12-05.pt"
SMALL = ("metrics.kid_subset_size=20", "metrics.replicates=20")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / NAME
    file.write_bytes(inception_file())
    return file


@pytest.fixture
def sha256(weights: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, str(weights.parent))
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def pictures(seed: int, count: int, *, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 256, (count, 1, 1, channels)) + rng.integers(-60, 60, (count, 16, 16, channels))
    return flat.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    reference, samples = folder / "reference.npz", folder / "samples.npz"
    np.savez(reference, pictures(0, 60), np.zeros(60, dtype=np.int64))  # arr_1: labels, which nobody asks for
    np.savez(samples, pictures(1, 50))
    return reference, samples


def scored(files: tuple[Path, Path], sha256: str, output: Path) -> dict[str, dict[str, float]]:
    assert compare_files(*files, set=(f"features.weights_sha256={sha256}", *SMALL), device="cpu", output=output) == 0
    return json.loads(output.read_text())


def seen(weights: Path, images: np.ndarray) -> Features:
    content = weights.read_bytes()
    return InceptionFeatures(content, weights_sha256=hashlib.sha256(content).hexdigest())(images)


def test_the_published_five_numbers_come_first_by_their_names(
    files: tuple[Path, Path], sha256: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(files, sha256, tmp_path / "out.json")
    lines = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert lines[5:] == ["KID"]
    ours, theirs = seen(weights, pictures(1, 50)), seen(weights, pictures(0, 60))
    for name, role in (("fid", 0), ("sfid", 1)):
        # Blocks of other sizes round otherwise.
        assert found[name]["value"] == pytest.approx(frechet_distance_of_features(ours[role], theirs[role]), rel=1e-5)
    shares = precision_recall(ours.pool, theirs.pool, distances="published")
    turned = precision_recall(theirs.pool, ours.pool, distances="published")
    assert (shares.precision.value, shares.recall.value) != (turned.precision.value, turned.recall.value)
    assert (found["precision"]["value"], found["recall"]["value"]) == (shares.precision.value, shares.recall.value)
    assert found["is"]["value"] == pytest.approx(inception_score(ours.probabilities), rel=1e-6)
    assert found["fid"]["low"] < found["fid"]["value"] < found["fid"]["high"]
    assert found["precision"]["protocol"]["distances"] == "published"
    digest = hashlib.sha256(files[1].read_bytes()).hexdigest()
    assert found["is"]["protocol"]["samples"] == 50
    assert found["is"]["files"]["samples"] == f"samples.npz, SHA-256 {digest}"
    assert found["is"]["protocol"]["measured_with"]["features"].endswith(f"numpy {np.__version__}, on cpu")
    assert "strongly biased" in found["sfid"]["notes"][0]


def test_a_file_that_holds_moments_is_compared_with_by_these(
    files: tuple[Path, Path], sha256: str, weights: Path, tmp_path: Path
) -> None:
    of_many = GaussianStats.of(seen(weights, pictures(2, 80)).pool)
    virtual, alone = tmp_path / "virtual.npz", tmp_path / "moments.npz"
    np.savez(virtual, arr_0=pictures(0, 60), mu=of_many.mean, sigma=of_many.cov)
    np.savez(alone, mu=of_many.mean, sigma=of_many.cov)
    with_images = scored((virtual, files[1]), sha256, tmp_path / "virtual.json")
    of_images = scored(files, sha256, tmp_path / "images.json")
    of_moments = scored((alone, files[1]), sha256, tmp_path / "moments.json")
    assert with_images["fid"]["value"] == of_moments["fid"]["value"] != of_images["fid"]["value"]
    assert with_images["recall"]["value"] == of_images["recall"]["value"]
    assert set(of_moments) == {"fid", "is"}


def test_the_packaged_network_gives_no_fid(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_files(*files, network="efficientnet-lite0", set=SMALL, device="cpu") == 0
    said = capsys.readouterr().out
    assert "FID" not in said
    assert "strongly biased upwards: 1280-dimensional covariances of 50 samples and 60 reference" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds nothing; needs arr_0"),
        ({"arr_0": np.zeros((50, 16, 16, 3), dtype=np.float32)}, "arr_0: images of dtype float32"),
        ({"arr_0": np.zeros((0, 16, 16, 3), dtype=np.uint8)}, r"shape \(0, 16, 16, 3\)"),
        ({"arr_0": np.zeros((50, 3, 16, 16), dtype=np.uint8)}, r"needs uint8 \(n, height, width, 1 or 3\)"),
        ({"mu": np.zeros(2048), "sigma": np.zeros((2048, 2048))}, "holds no images"),
        ({"arr_0": np.array([object()])}, "arr_0: images of dtype object"),
        ({"arr_0": np.zeros((50, 8, 8, 3), np.uint8), "mu": np.zeros(9)}, "holds one of mu and sigma, and needs both"),
        ({"mu": np.zeros(9), "sigma": np.zeros((9, 8))}, r"needs \(d,\) and \(d, d\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [np.nan, 1.0]])}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, "not symmetric"),
    ],
)
def test_samples_that_are_none_are_refused_by_name(
    files: tuple[Path, Path], tmp_path: Path, content: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "odd.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DamagedArtifact, match=rf"odd\.npz: .*{message}"):
        compare_files(files[0], tmp_path / "odd.npz", network="efficientnet-lite0")


def test_a_file_that_is_cut_short_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(DamagedArtifact, match=r"cut\.npz: no npz file that can be read"):
        compare_files(files[0], tmp_path / "cut.npz", network="efficientnet-lite0")


def test_a_compressed_file_whose_bits_flipped_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "odd.npz", pictures(1, 50))
    content = bytearray((tmp_path / "odd.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "odd.npz").write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"odd\.npz: no npz file that can be read"):
        compare_files(files[0], tmp_path / "odd.npz", network="efficientnet-lite0", set=SMALL)


def test_samples_with_moments_of_their_own_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", arr_0=pictures(1, 50), mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="samples are compared by their images"):
        compare_files(files[0], tmp_path / "both.npz")


def test_too_few_images_are_refused_before_the_network_sees_any(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", pictures(1, 39))
    with pytest.raises(ValueError, match=r"few\.npz has 39 images, .* take 40"):
        compare_files(files[0], tmp_path / "few.npz", set=SMALL)


def test_without_the_weights_it_is_said_which_are_needed(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(PreflightError, match=rf"{NAME} \(SHA-256 f58c.*set PAPERTABLE_WEIGHTS"):
        compare_files(*files, set=SMALL)


def test_another_file_by_the_weights_name_is_not_loaded(files: tuple[Path, Path], sha256: str) -> None:
    with pytest.raises(PreflightError, match=f"has SHA-256 {sha256}, not f58c.*: it is not loaded"):
        compare_files(*files, set=SMALL)


@pytest.fixture
def web(weights: Path) -> Iterator[str]:
    """The folder of the weights, served on loopback."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(weights.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_weights_are_read_from_a_folder_a_file_and_the_web(
    weights: Path, sha256: str, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WeightsConfig(name=NAME, sha256=sha256)
    for place in (str(weights), str(weights.parent), f"{weights.parent}/", web, f"{web}/{NAME}"):
        monkeypatch.setenv(VARIABLE, place)
        assert read_weights(config) == weights.read_bytes()
    for place in (f"{web}/nothing", "/nowhere"):
        monkeypatch.setenv(VARIABLE, place)
        with pytest.raises(PreflightError, match=f"{place}/{NAME}.*PAPERTABLE_WEIGHTS names it"):
            read_weights(config)


@dataclass(frozen=True)
class Drawn:
    """Samples by no model."""


def test_a_plan_measures_fid_with_the_users_weights_from_the_store(tmp_path: Path, sha256: str) -> None:
    def draw(_: Drawn, ctx: StepContext) -> None:
        np.savez(ctx.output / SAMPLES_FILE, arr_0=pictures(1, 50, channels=1))
        (ctx.output / PROTOCOL_FILE).write_text('{"samples": 50}')

    store, config = ArtifactStore(str(tmp_path)), InceptionConfig(weights_sha256=sha256)
    samples = Step(name="sample", version=1, config=Drawn(), inputs={}, run=draw)
    dataset = dataset_step(DataConfig(source="digits", image_size=8, test_percent=5))
    reference, features = (
        reference_step(config, dataset=dataset),
        features_step(config, samples=samples, dataset=dataset),
    )
    metrics = metrics_step(MetricsConfig(kid_subset_size=20), features=features, reference=reference)
    materialize([metrics], store, backend=LocalBackend(), resources=Resources())
    said = store.metrics(metrics)
    assert {"fid", "fid_se", "sfid", "is", "kid", "precision", "recall_low"} <= set(said.metrics)
    assert "fd" not in said.metrics
    assert said.protocol["fid"]["resize"] == "clean-fid legacy_tensorflow"
    assert said.protocol["recall"]["k"] == 3
    assert "strongly biased" in said.notes[0]
