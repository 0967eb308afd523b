"""A reference is kept as moments of all its images, and samples are compared with that file as with the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion.metrics.features import Features
from orchestrator.backend import LocalBackend
from orchestrator.config import override
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.evaluate_files import compare_files
from pipelines.features import EfficientNetConfig, Extracted, reference_step
from pipelines.moments import STATISTICS_FILE, Moments, evenly
from pipelines.named_data import remember
from pipelines.plan import check
from pipelines.presets import tiny
from pipelines.reference import main
from pipelines.shards import read_split, sha256_of

NETWORK = "efficientnet-lite0"
SMALL = ("features.size=32",)
DIGITS = DataConfig(source="digits", image_size=8, test_percent=5)


def pictures(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 256, (count, 1, 1, 3)) + rng.integers(-60, 60, (count, 16, 16, 3))
    return flat.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    reference, samples = folder / "images.npz", folder / "samples.npz"
    np.savez(reference, pictures(0, 300))
    np.savez(samples, pictures(1, 50))
    return reference, samples


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    reference = reference_step(EfficientNetConfig(size=32), dataset=dataset_step(DIGITS))
    materialize([reference], store, backend=LocalBackend(), resources=Resources())
    remember("digits", DIGITS, store)
    return store


def scored(reference: Path, samples: Path, output: Path) -> dict[str, dict[str, float]]:
    small = (*SMALL, "metrics.kid_subset_size=20", "metrics.replicates=20")
    assert compare_files(reference, samples, network=NETWORK, set=small, device="cpu", output=output) == 0
    found: dict[str, dict[str, float]] = json.loads(output.read_text())
    return found


def test_samples_are_compared_with_the_file_as_with_its_images(files: tuple[Path, Path], tmp_path: Path) -> None:
    written, alone = tmp_path / "reference.npz", tmp_path / "moments.npz"
    assert main(str(files[0]), written, network=NETWORK, set=SMALL, device="cpu") == 0
    assert main(str(files[0]), alone, network=NETWORK, set=SMALL, device="cpu", images=0) == 0
    of_images = scored(*files, tmp_path / "images.json")
    of_file = scored(written, files[1], tmp_path / "file.json")
    of_moments = scored(alone, files[1], tmp_path / "moments.json")
    # Of 300 images in 1,280 dimensions; the moments know it, and say so.
    assert of_file["fd"]["notes"] == of_images["fd"]["notes"] == of_moments["fd"]["notes"]
    assert "300 reference images are singular" in of_file["fd"]["notes"][0]
    assert of_file["fd"]["value"] == of_moments["fd"]["value"] == pytest.approx(of_images["fd"]["value"], rel=1e-6)
    for name in ("kid", "precision", "recall"):
        assert of_file[name]["value"] == of_images[name]["value"]
    assert set(of_moments) == {"fd"}
    said = of_file["fd"]["protocol"]
    assert (said["reference"], said["dataset"]) == ("300 images", sha256_of(files[0])[:12])
    # Distances to one set's moments are comparable, in whichever file these are; precision is over the file's images.
    assert of_file["fd"]["fingerprint"] == of_moments["fd"]["fingerprint"]


def test_the_moments_are_of_all_images_and_some_of_them_stand_beside(files: tuple[Path, Path], tmp_path: Path) -> None:
    main(str(files[0]), tmp_path / "few.npz", network=NETWORK, set=SMALL, device="cpu", images=7)
    main(str(files[0]), tmp_path / "all.npz", network=NETWORK, set=SMALL, device="cpu")
    with np.load(tmp_path / "few.npz") as few, np.load(tmp_path / "all.npz") as whole:
        np.testing.assert_array_equal(few["arr_0"], pictures(0, 300)[evenly(300, most=7)])
        np.testing.assert_array_equal(whole["arr_0"], pictures(0, 300))
        np.testing.assert_array_equal(few["sigma"], whole["sigma"])


def test_the_reference_step_leaves_such_a_file(store: ArtifactStore, files: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = dataset_step(DIGITS)
    artifact = store.path(reference_step(EfficientNetConfig(size=32), dataset=dataset))
    found = Extracted.load(artifact)
    assert found.images["dataset"] == sha256_of(store.path(dataset) / "manifest.json")[:12]
    with np.load(artifact / STATISTICS_FILE, allow_pickle=False) as stored:
        assert stored["mu"].dtype == stored["sigma"].dtype == np.float64
        np.testing.assert_allclose(stored["mu"], found.features.pool.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(stored["sigma"], np.cov(found.features.pool, rowvar=False), rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(stored["arr_0"], read_split(store.path(dataset), "test").images)
        assert json.loads(str(stored["protocol"]))["images"] == found.images
        assert "mu_s" not in stored
    by_name = tmp_path / "digits.npz"
    main("digits", by_name, network=NETWORK, set=SMALL, device="cpu", store=str(store.root))
    of_step = scored(artifact / STATISTICS_FILE, files[1], tmp_path / "step.json")
    of_name = scored(by_name, files[1], tmp_path / "name.json")
    assert of_step["fd"]["value"] == pytest.approx(of_name["fd"]["value"], rel=1e-9)
    assert of_step["fd"]["fingerprint"].partition("-")[0] == of_name["fd"]["fingerprint"].partition("-")[0]


def test_samples_may_be_compared_with_the_images_that_training_saw(store: ArtifactStore) -> None:
    step = reference_step(EfficientNetConfig(size=32), dataset=dataset_step(DIGITS), split="train")
    assert step.key != reference_step(EfficientNetConfig(size=32), dataset=dataset_step(DIGITS)).key
    materialize([step], store, backend=LocalBackend(), resources=Resources())
    images = len(read_split(store.path(dataset_step(DIGITS)), "train").images)
    found = Extracted.load(store.path(step))
    assert found.images["reference"] == f"{images} train images"
    assert len(found.features.pool) == images
    config = override(tiny(), {"metrics.kid_subset_size": images + 1, "sample.count": 2000, "reference": "train"})
    with pytest.raises(
        ValueError, match=rf"kid_subset_size={images + 1}: digits at 8 pixels has {images} training images"
    ):
        check(config, {"dataset": store.path(dataset_step(DIGITS))}, data_mib=1024)


def test_moments_are_the_same_however_the_features_come() -> None:
    rng = np.random.default_rng(0)
    pool, spatial = (rng.standard_normal((100, width)).astype(np.float32) for width in (5, 3))
    found = Moments.of(Features(pool[i : i + 7], spatial[i : i + 7]) for i in range(0, 100, 7))
    assert found.spatial is not None
    for stats, values in ((found.pool, pool), (found.spatial, spatial)):
        np.testing.assert_allclose(stats.mean, values.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(stats.cov, np.cov(values, rowvar=False), rtol=1e-6)


def test_moments_of_another_network_are_refused_before_anything_is_seen(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    main(str(files[0]), tmp_path / "reference.npz", network=NETWORK, set=SMALL, device="cpu")
    with pytest.raises(ValueError, match=r"moments are of features by .*'size': 32.*and samples would be .*'size': 64"):
        compare_files(tmp_path / "reference.npz", files[1], network=NETWORK)


def test_what_no_reference_can_be_made_of_is_refused_by_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    new = tmp_path / "new.npz"
    virtual = tmp_path / "virtual.npz"
    np.savez(virtual, arr_0=pictures(0, 3), mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "one.npz", pictures(0, 1))
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        main(str(files[0]), tmp_path / "new.txt", network=NETWORK)
    with pytest.raises(ValueError, match="is there already"):
        main(str(files[0]), virtual, network=NETWORK)
    with pytest.raises(ValueError, match="folder is not there"):
        main(str(files[0]), tmp_path / "nowhere" / "new.npz", network=NETWORK)
    with pytest.raises(ValueError, match="--images -1: 0 or more"):
        main(str(files[0]), new, network=NETWORK, images=-1)
    with pytest.raises(ValueError, match="--split train: a file has no splits"):
        main(str(files[0]), new, network=NETWORK, split="train")
    with pytest.raises(ValueError, match="holds mu, sigma already"):
        main(str(virtual), new, network=NETWORK)
    with pytest.raises(DamagedArtifact, match="holds 1 images: moments are of at least 2"):
        main(str(tmp_path / "one.npz"), new, network=NETWORK)
    with pytest.raises(PreflightError, match="unknown data set 'flowers'"):
        main("flowers", new, network=NETWORK, store=str(tmp_path))
    assert not new.exists()
