"""From a folder of images to a trained model: prepared once, known by name, and by its content ever after."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines import data_commands, import_images, shards, single
from pipelines.cli import run
from pipelines.data import dataset_step
from pipelines.data_commands import Export, Inspect, List, Verify, main
from pipelines.named_data import known, named
from pipelines.own_split import own_side
from pipelines.prepare_command import Prepare
from pipelines.preprocess import ImageRefused
from pipelines.shards import ImageSet, Manifest, read_images, read_split
from pipelines.sources import Entry

SHORT = [
    "--set", "train.images=256", "--set", "diffusion.num_timesteps=30", "--set", "sample.sampler.respacing=",
    "--set", "metrics.kid_subset_size=2", "--set", "model.attention_resolutions=[8]",
]  # fmt: skip


ROOT = Path(__file__).parents[2]
SLOW = """
import sys, time, os
from functools import partial
from pathlib import Path
from orchestrator.backend import LocalBackend
from orchestrator.signals import Background, interruptible
from orchestrator.step import Resources


def work(folder, item):
    (Path(folder) / f"at-work-{os.getpid()}").touch()
    time.sleep(60)


if __name__ == "__main__":
    backend = LocalBackend(processes=2)
    try:
        with interruptible():
            call = Background(lambda: backend.map(partial(work, sys.argv[1]), range(9), resources=Resources()))
            while not call.wait(0.1):
                pass
    except BaseException:
        backend.stop()
        raise
"""


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
    assert not (again / ".blocks").exists()
    assert manifest_text(again) == manifest_text(whole)


def test_a_first_look_that_was_killed_goes_on_where_it_was(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_images, "BLOCK", 20)
    whole = prepared(flowers, tmp_path / "whole")
    looked, content_of = [], import_images.content_of

    def dies(entry: Entry) -> object:
        looked.append(entry.name)
        if len(looked) == 45:
            raise KeyboardInterrupt
        return content_of(entry)

    monkeypatch.setattr(import_images, "content_of", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(flowers, tmp_path / "store")
    again = prepared(flowers, tmp_path / "store")
    assert len(looked) == 45 + 20 + 60  # two blocks were kept; then all are read once more to be made smaller
    assert manifest_text(again) == manifest_text(whole)
    assert not any((tmp_path / "store" / ".looking").iterdir())


def test_two_preparations_of_one_source_at_once_do_not_disturb_each_other(flowers: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "pipelines/data.py", "prepare", str(flowers), "--store", str(tmp_path / "store")]
    both = [
        subprocess.Popen([*arguments, "--image-size", size, "--name", f"at-{size}"], cwd=ROOT) for size in ("8", "16")
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]


def test_a_disk_that_is_full_is_said_and_leaves_no_data_set(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(flowers, tmp_path / "whole")
    for module, function in ((import_images, "write_whole"), (shards.pq, "write_table")):
        with monkeypatch.context() as patched:
            patched.setattr(module, function, full)
            with pytest.raises(PreflightError, match="No space left on device"):
                prepared(flowers, tmp_path / "store")
        assert not list((tmp_path / "store").glob("dataset/*/record.json"))
    assert manifest_text(prepared(flowers, tmp_path / "store")) == manifest_text(whole)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_source_that_changed_after_a_killed_look_is_noticed(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_images, "BLOCK", 20)

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_images, "content_digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(flowers, tmp_path / "store")  # every block is known, the whole is not
    Image.new("RGB", (20, 20)).save(flowers / "rose" / "000.png")
    with pytest.raises(PreflightError, match="has changed while it was read: prepare it again"):
        prepared(flowers, tmp_path / "store")
    assert Manifest.read(prepared(flowers, tmp_path / "store")).images == {"train": 47, "test": 13}


def test_the_same_images_elsewhere_are_the_same_data_set_and_others_are_not(flowers: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = prepared(flowers, store)
    moved = flowers.rename(tmp_path / "moved")
    assert prepared(moved, store) == first
    Image.new("RGB", (20, 20)).save(moved / "rose" / "100.png")
    assert prepared(moved, store, replace=True) != first


def test_what_cannot_be_read_stops_it_or_is_left_out_and_said(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flowers / "rose" / "bad.png").write_bytes(b"no picture")
    (flowers / "tulip" / "empty.jpg").write_bytes(b"")
    with pytest.raises(PreflightError, match=r"rose/bad\.png.*tulip/empty\.jpg.*2 of 62 images.*--on-error skip"):
        prepared(flowers, tmp_path / "store")
    dataset = prepared(flowers, tmp_path / "store", on_error="skip")
    with pytest.raises(PreflightError, match=r"without 2 images that were left out.*--on-error skip again"):
        prepared(flowers, tmp_path / "store")
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


def test_a_block_that_is_not_whole_is_read_again(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(flowers, tmp_path / "whole")
    save = np.savez

    def dies(file: Path, **arrays: object) -> None:
        Path(file).write_bytes(b"")
        Path(file).rename(Path(file).with_name("000000000000.npz"))
        raise KeyboardInterrupt

    monkeypatch.setattr(import_images.np, "savez", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(flowers, tmp_path / "store")
    monkeypatch.setattr(import_images.np, "savez", save)
    assert manifest_text(prepared(flowers, tmp_path / "store")) == manifest_text(whole)


def test_a_passing_trouble_with_an_image_does_not_stick(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = import_images.decode

    def refuses(content: bytes, *, name: str, channels: int) -> object:
        raise ImageRefused(name, "no decoder for it today")

    monkeypatch.setattr(import_images, "decode", refuses)
    with pytest.raises(PreflightError, match="no decoder for it today"):
        prepared(flowers, tmp_path / "store")
    monkeypatch.setattr(import_images, "decode", decode)
    assert sum(Manifest.read(prepared(flowers, tmp_path / "store")).images.values()) == 60


def test_a_name_does_not_come_to_mean_other_images_by_accident(flowers: Path, tmp_path: Path) -> None:
    first = prepared(flowers, tmp_path / "store")
    with pytest.raises(ValueError, match="'flowers' is another data set already"):
        prepared(flowers, tmp_path / "store", image_size=12)
    assert named(ArtifactStore(str(tmp_path / "store")), "flowers") == first
    assert prepared(flowers, tmp_path / "store", image_size=12, replace=True) != first


def test_a_source_keeps_the_split_it_brings(tmp_path: Path) -> None:
    source = tmp_path / "mnist"
    source.mkdir()
    for prefix, count in (("train", 12), ("t10k", 5)):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (count, 4, 4))
        (source / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(range(count * 16)))
        labels = b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(number % 3 for number in range(count))
        (source / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    dataset = prepared(source, tmp_path / "store", image_size=4, channels=1, test_percent=None)
    assert Manifest.read(dataset).images == {"train": 12, "test": 5}
    np.testing.assert_array_equal(read_split(dataset, "test").images.ravel(), np.arange(80, dtype=np.uint8))


def test_a_folder_of_train_and_test_may_bring_its_split_too(flowers: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(flowers.rglob("*.png"))):
        folder = tmp_path / "split" / ("test" if number % 4 == 0 else "train") / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    manifest = Manifest.read(prepared(tmp_path / "split", tmp_path / "store", test_percent="own"))
    assert manifest.images == {"train": 45, "test": 15}
    assert manifest.classes == ("aster", "rose", "tulip")
    with pytest.raises(ValueError, match="not every image is in a folder or file that is called train, test or val"):
        prepared(flowers, tmp_path / "store", test_percent="own")


def test_a_split_that_a_folder_brings_is_neither_kept_nor_mixed_without_a_word(flowers: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(flowers.rglob("*.png"))):
        folder = tmp_path / "ImageNet" / "data" / ("val" if number % 4 == 0 else "train") / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    store = tmp_path / "store"
    with pytest.raises(ValueError, match=r"is split into train and val already: say --test-percent own .* or a share"):
        prepared(tmp_path / "ImageNet", store, test_percent=None)
    kept = prepared(tmp_path / "ImageNet", store, test_percent="own")
    assert Manifest.read(kept).images == {"train": 45, "test": 15}
    mixed = prepared(tmp_path / "ImageNet", store, test_percent=30, replace=True)
    assert Manifest.read(kept).classes == Manifest.read(mixed).classes == ("aster", "rose", "tulip")
    assert "own split into train, val was mixed, and 30 %" in (mixed / "metrics.json").read_text()
    (tmp_path / "ImageNet" / "data" / "val" / "rose").rename(tmp_path / "ImageNet" / "data" / "test")
    with pytest.raises(ValueError, match="is split into test, train, val, and a data set here into two"):
        prepared(tmp_path / "ImageNet", store, test_percent="own", replace=True)


def test_names_that_only_begin_like_a_split_are_none() -> None:
    names = ["train-00000-of-00001.parquet/000000001", "test_batch.bin/000000001", "data/VAL/x.png", "t10k/1"]
    assert [own_side(name) for name in names] == ["train", "test", "val", "test"]
    others = ["trainer/1.png", "tests_of_mine/1.png", "valley/1.png", "train_01.png", "train.png"]
    assert [own_side(name) for name in others] == [None] * 5


def test_the_picture_is_from_all_over_a_data_set_and_reads_few_of_its_shards(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MOST_SHARD_ROWS", 2)
    dataset = prepared(flowers, tmp_path / "store")
    read: list[str] = []

    def counting(dataset: Path, shard: dict[str, str], manifest: Manifest) -> ImageSet:
        read.append(shard["file"])
        return read_images(dataset, shard, manifest)

    monkeypatch.setattr(data_commands, "read_images", counting)
    Inspect(name="flowers", output=tmp_path / "sheet.png", store=str(tmp_path / "store"))()
    there = sorted(file.name for file in dataset.glob("train-*"))
    assert len(read) == 8 < len(there)
    assert read[0] == there[0]
    assert read[-1] >= there[-4]


def test_what_is_no_image_is_counted_and_named(flowers: Path, tmp_path: Path) -> None:
    (flowers / "photo.heic").write_bytes(b"")
    (flowers / "README").write_bytes(b"")
    dataset = prepared(flowers, tmp_path / "store")
    notes = json.loads((dataset / "metrics.json").read_text())["notes"]
    assert "2 other files were ignored, such as 'README', 'photo.heic'" in notes


def test_unlabelled_images_are_exported_as_such_and_come_back(flowers: Path, tmp_path: Path) -> None:
    prepared(flowers, tmp_path / "store", labels="none", test_percent=50)
    for output in (tmp_path / "out.npz", tmp_path / "out"):
        Export(name="flowers", output=output, store=str(tmp_path / "store"))()
        again = prepared(output, tmp_path / "store", name=f"again{output.suffix}", test_percent=90)
        assert Manifest.read(again).classes == ()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_preparation_that_was_ended(flowers: Path, tmp_path: Path, signum: int) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    process = subprocess.Popen([sys.executable, str(slow), str(tmp_path)], cwd=ROOT)
    while len(list(tmp_path.glob("at-work-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    workers = [int(file.name.rpartition("-")[2]) for file in tmp_path.glob("at-work-*")]
    process.send_signal(signum)
    process.wait(timeout=20)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_source_that_changes_while_it_is_read_is_refused(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.prepare_command.digest_of", lambda *_, **__: "a" * 64)
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
    manifest = dataset / "manifest.json"
    said = manifest.read_text()
    manifest.write_text(said.replace('"mean"', '"main"'))
    with pytest.raises(DamagedArtifact, match=r"manifest\.json"):
        Verify(name="blumen-8", store=store)()
    manifest.write_text(said)
    shard = dataset / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match=r"train-00000\.parquet"):
        Verify(name="blumen-8", store=store)()


def test_a_model_trains_on_a_prepared_data_set_by_its_name(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    prepared(flowers, tmp_path / "store", image_size=16)
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
        (["prepare", "digits", "--image-size", "9"], 2, "digits is available at 4 or 8"),
        (["prepare", "FLOWERS"], 2, "--image-size is needed"),
        (["prepare", "FLOWERS", "--image-size", "0"], 2, "data.image_size=0"),
        (["prepare", "FLOWERS", "--image-size", "8", "--test-percent", "95"], 2, "data.test_percent=95"),
        (["prepare", "FLOWERS", "--image-size", "8", "--processes", "0"], 2, "--processes 0"),
        (["prepare", "FLOWERS", "--image-size", "8", "--name", "a/b"], 2, "--name 'a/b'"),
        (["export", "flowers", "FLOWERS"], 3, "unknown data set 'flowers'"),
        (["prepare", "digits", "--channels", "3"], 2, "--channels 3: digits has its own"),
        (["prepare", "digits", "--labels", "none"], 2, "--labels none: digits has its own"),
        (["prepare", "digits", "--test-percent", "own"], 2, "digits bring no split"),
        (["prepare", "x" * 300, "--image-size", "8"], 3, "cannot be looked at"),
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
