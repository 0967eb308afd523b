"""From a folder of images to a trained model: prepared once, known by name, and by its content ever after."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines import import_images, single
from pipelines.cli import run
from pipelines.data import dataset_step
from pipelines.data_commands import Export, Inspect, List, Prepare, Verify, known, main, named
from pipelines.shards import Manifest, read_split

SHORT = [
    "--set", "train.images=256", "--set", "diffusion.num_timesteps=30", "--set", "sample.sampler.respacing=",
    "--set", "metrics.kid_subset_size=2",
]  # fmt: skip


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Sixty images of three classes and several sizes."""
    random = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "flowers" / ("rose", "tulip", "aster")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number % 7, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return tmp_path / "flowers"


def prepared(source: Path, store: Path, **options: object) -> Path:
    Prepare(**{"source": str(source), "image_size": 8, "store": str(store), "test_percent": 20, **options})()  # type: ignore[arg-type]
    return named(ArtifactStore(str(store)), str(options.get("name") or source.name.partition(".")[0]))


def manifest_text(dataset: Path) -> str:
    return (dataset / "manifest.json").read_text()


def test_a_folder_becomes_a_data_set_whose_bytes_do_not_depend_on_how_many_read_it(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = prepared(flowers, tmp_path / "alone")
    monkeypatch.setattr(import_images, "BLOCK", 7)
    together = prepared(flowers, tmp_path / "together", processes=2)
    assert manifest_text(alone) == manifest_text(together)
    assert sorted(file.name for file in alone.iterdir()) == sorted(file.name for file in together.iterdir())
    manifest = Manifest.read(alone)
    assert manifest.classes == ("aster", "rose", "tulip")
    assert manifest.shape == (8, 8, 3)
    assert np.sum([manifest.images_per_class[split] for split in ("train", "test")], axis=0).tolist() == [20, 20, 20]


def test_a_preparation_that_was_killed_goes_on_where_it_was(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_images, "BLOCK", 20)
    whole = prepared(flowers, tmp_path / "whole")
    read, decode = [], import_images.decode

    def dies(content: bytes, *, name: str, channels: int) -> object:
        read.append(name)
        if len(read) == 45:
            raise KeyboardInterrupt
        return decode(content, name=name, channels=channels)  # type: ignore[arg-type]

    monkeypatch.setattr(import_images, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(flowers, tmp_path / "store")
    assert not list((tmp_path / "store").glob("dataset/*/manifest.json"))
    again = prepared(flowers, tmp_path / "store")
    assert len(read) == 45 + 20  # two blocks were kept
    assert manifest_text(again) == manifest_text(whole)


def test_the_same_images_elsewhere_are_the_same_data_set_and_others_are_not(flowers: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = prepared(flowers, store)
    moved = flowers.rename(tmp_path / "moved")
    assert prepared(moved, store) == first
    Image.new("RGB", (20, 20)).save(moved / "rose" / "100.png")
    assert prepared(moved, store) != first


def test_what_cannot_be_read_stops_it_or_is_left_out_and_said(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flowers / "rose" / "bad.png").write_bytes(b"no picture")
    (flowers / "tulip" / "empty.jpg").write_bytes(b"")
    with pytest.raises(PreflightError, match=r"rose/bad\.png.*tulip/empty\.jpg.*2 of 62 images.*--on-error skip"):
        prepared(flowers, tmp_path / "store")
    dataset = prepared(flowers, tmp_path / "store", on_error="skip")
    assert sum(Manifest.read(dataset).images.values()) == 60
    assert len(json.loads((dataset / "skipped.json").read_text())) == 2
    Inspect(name="flowers", store=str(tmp_path / "store"), output=tmp_path / "sheet.png")()
    assert "left out, 2" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").width >= 500


def test_archives_and_arrays_are_prepared_like_folders(flowers: Path, tmp_path: Path) -> None:
    folder = prepared(flowers, tmp_path / "store", name="folder")
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", flowers))
    zipped = prepared(archive, tmp_path / "store")
    # The same images in the same order: only the name of where they come from differs, and what they are known by.
    ours, theirs = (json.loads(manifest_text(dataset)) for dataset in (zipped, folder))
    assert zipped != folder
    assert {**ours, "source": ""} == {**theirs, "source": ""}
    images, labels = np.full((40, 12, 12, 1), 7, np.uint8), np.arange(40) % 2
    images[:, 0, 0, 0] = np.arange(40)
    np.savez(tmp_path / "gray.npz", images, labels)
    gray = prepared(tmp_path / "gray.npz", tmp_path / "store", image_size=12, channels=1)
    assert Manifest.read(gray).classes == ("0", "1")
    found = np.concatenate([read_split(gray, split).images for split in ("train", "test")])
    assert sorted(found[:, 0, 0, 0].tolist()) == list(range(40))


def test_a_source_that_changes_while_it_is_read_is_refused(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["a" * 64, "b" * 64])
    monkeypatch.setattr("pipelines.data_commands.digest_of", lambda options: next(digests))
    with pytest.raises(PreflightError, match="has changed while it was read"):
        prepared(flowers, tmp_path / "store")


def test_data_sets_are_listed_verified_and_exported(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    dataset = prepared(flowers, tmp_path / "store", name="blumen-8", channels=1)
    List(store=store)()
    assert "blumen-8" in capsys.readouterr().out
    train = read_split(dataset, "train")
    Export(name="blumen-8", output=tmp_path / "train.npz", store=store)()
    with np.load(tmp_path / "train.npz", allow_pickle=False) as exported:
        np.testing.assert_array_equal(exported["arr_0"], train.images)
        np.testing.assert_array_equal(exported["arr_1"], train.labels)
    Export(name="blumen-8", output=tmp_path / "pngs", store=store, split="train")()
    files = sorted((tmp_path / "pngs").rglob("*.png"))
    assert len(files) == len(train.images)
    # By the same share all of them would be on the training side again.
    again = prepared(tmp_path / "pngs", tmp_path / "store", channels=1, test_percent=60)
    assert sum(Manifest.read(again).images.values()) == len(train.images)
    Verify(name="blumen-8", store=store)()
    shard = dataset / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match=r"train-00000\.parquet"):
        Verify(name="blumen-8", store=store)()


def test_a_model_trains_on_a_prepared_data_set_by_its_name(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    prepared(flowers, tmp_path / "store")
    capsys.readouterr()
    train = single.command("train", "Train.")
    sys.argv = ["train.py", "tiny", "--store", store, "--data", "flowers", *SHORT]
    with pytest.raises(SystemExit) as ended:
        run(train)
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert json.loads(printed.out)["metrics"]["images_seen"] == 256


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["inspect", "roses"], 3, "unknown data set 'roses'"),
        (["verify", "../roses"], 3, "unknown data set"),
        (["prepare", "nowhere", "--image-size", "8"], 3, "nowhere is not there"),
        (["prepare", "digits", "--image-size", "9"], 2, "digits is available at 8"),
        (["prepare", "FLOWERS"], 2, "--image-size is needed"),
        (["prepare", "FLOWERS", "--image-size", "0"], 2, "data.image_size=0"),
        (["prepare", "FLOWERS", "--image-size", "8", "--test-percent", "95"], 2, "data.test_percent=95"),
        (["prepare", "FLOWERS", "--image-size", "8", "--processes", "0"], 2, "--processes 0"),
        (["prepare", "FLOWERS", "--image-size", "8", "--name", "a/b"], 2, "--name 'a/b'"),
        (["export", "flowers", "FLOWERS"], 3, "unknown data set 'flowers'"),
    ],
)
def test_a_mistake_is_one_paragraph_with_its_exit_code(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, complaint: str
) -> None:
    words = [str(flowers) if word == "FLOWERS" else word for word in arguments]
    sys.argv = ["data.py", *words, "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_a_data_set_that_was_removed_says_how_to_make_it_again(flowers: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    dataset = prepared(flowers, tmp_path / "store")
    (dataset / "record.json").unlink()
    with pytest.raises(PreflightError, match="prepare it again"):
        named(store, "flowers")
    step = dataset_step(known(store)["flowers"])
    with pytest.raises(PreflightError, match=r"python pipelines/data\.py prepare SOURCE --image-size 8"):
        materialize([step], store, backend=LocalBackend(), resources=Resources())
