"""Decoded images on a node: made once, never read half-made, removed when nobody uses them, in a folder of ours."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import PreflightError
from pipelines import decoded
from pipelines.decoded import Decoded, DecodedCache, cache_folder, decoded_bytes
from tests.small_data import noise, write_data_set

SHARDS, SHARD_ROWS = 6, 5
IMAGES = noise(SHARDS * SHARD_ROWS)


@pytest.fixture
def cache(tmp_path: Path) -> DecodedCache:
    manifest = write_data_set(tmp_path / "data", IMAGES, shard_rows=SHARD_ROWS)
    (tmp_path / "cache").mkdir()
    return DecodedCache(tmp_path / "cache", 2**20, tmp_path / "data", manifest)


def shards(cache: DecodedCache) -> list[dict[str, Any]]:
    return list(cache.manifest.of_split("train"))


def holds(found: Decoded, rows: slice) -> bool:
    expected = IMAGES[rows].transpose(0, 3, 1, 2)
    return np.array_equal(found.pixels, expected) and found.labels.tolist() == list(range(len(IMAGES)))[rows]


def files(cache: DecodedCache, what: str = "*.npy") -> list[Path]:
    return sorted(cache.folder.glob(what))


def test_a_shard_is_decoded_once_and_found_from_then_on(cache: DecodedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = shards(cache)
    assert holds(cache.open([first]), slice(0, 5))
    assert holds(cache.open([first, second]), slice(0, 10))
    monkeypatch.delattr(decoded, "read_images")
    assert holds(cache.open([first]), slice(0, 5))
    assert holds(cache.open([first, second]), slice(0, 10))


@pytest.mark.parametrize("what", ["pixels", "labels"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "header", "shape", "gone"])
def test_a_file_that_is_not_as_it_should_be_is_decoded_anew(cache: DecodedCache, what: str, damage: str) -> None:
    (shard, *_) = shards(cache)
    cache.open([shard]).close()
    (file,) = files(cache, f"*-{what}.npy")
    whole = file.read_bytes()
    file.unlink()  # what is mapped already stays as it was
    if damage == "shape":
        np.save(file, np.load(files(cache)[0])[:2])
    elif damage != "gone":
        file.write_bytes({"empty": b"", "truncated": whole[:-1], "header": b"no" + whole[2:]}[damage])
    assert holds(cache.open([shard]), slice(0, 5))
    assert file.read_bytes() == whole


DIES = """
import os, signal, sys
from pathlib import Path
from pipelines import decoded
from pipelines.shards import Manifest, read_images
data, folder = map(Path, sys.argv[1:])
def read_or_die(dataset, shard, manifest):
    if shard["file"] == "train-00003.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_images(dataset, shard, manifest)
decoded.read_images = read_or_die
manifest = Manifest.read(data)
decoded.DecodedCache(folder, 2**20, data, manifest).open(list(manifest.of_split("train")))
"""


def test_what_a_killed_process_left_is_neither_waited_for_nor_read(cache: DecodedCache) -> None:
    killed = subprocess.run([sys.executable, "-c", DIES, cache.dataset, cache.folder], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(files(cache, "*.partial")) == 1
    assert not files(cache)
    assert holds(cache.open(shards(cache)), slice(None))


def room_for(cache: DecodedCache, count: int) -> DecodedCache:
    return replace(cache, limit=count * decoded_bytes(cache.manifest, rows=SHARD_ROWS, files=1))


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(cache: DecodedCache) -> None:
    small = room_for(cache, 3)
    old, used, recent, *others = shards(cache)
    small.open([old]).close()
    in_use = small.open([used])
    small.open([recent]).close()
    for age, shard in ((30, used), (20, old), (10, recent)):
        file = small.folder / f"{shard['sha256']}-pixels.npy"
        os.utime(file, (file.stat().st_mtime - age,) * 2)
        os.utime(file.with_name(file.name.replace("pixels", "labels")), (file.stat().st_mtime,) * 2)

    def kept() -> list[bool]:
        return [(small.folder / f"{shard['sha256']}-pixels.npy").exists() for shard in (old, used, recent)]

    small.open([others[0]]).close()
    assert kept() == [False, True, True]
    small.open([others[1]])
    assert kept() == [False, True, False]
    assert sum(file.stat().st_size for file in small.folder.iterdir()) <= small.limit
    in_use.close()
    small.open([others[2]])
    assert kept() == [False, False, False]


def test_what_others_keep_in_the_folder_is_not_ours_to_remove_but_what_killed_processes_left_is(
    cache: DecodedCache,
) -> None:
    theirs = cache.folder / "somebody-elses.npy"
    theirs.write_bytes(bytes(10_000))
    left = cache.folder / f"{'0' * 64}-pixels.npy.abc.partial"
    left.write_bytes(bytes(10_000))
    room_for(cache, 1).open(shards(cache)[:1])
    assert theirs.exists()
    assert not left.exists()


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(
    cache: DecodedCache, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(PreflightError, match=rf"{cache.folder} \(No space left on device\).*PAPERTABLE_CACHE"):
        cache.open(shards(cache))
    assert not files(cache, "*-*")


def test_the_folder_is_the_named_one_or_one_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PAPERTABLE_CACHE")
    assert cache_folder() == tmp_path / f"papertable-{os.getuid()}"
    monkeypatch.setenv("PAPERTABLE_CACHE", str(tmp_path / "named" / "deep"))
    assert cache_folder() == tmp_path / "named" / "deep"
    for folder in tmp_path.iterdir():
        assert folder.stat().st_mode & 0o022 == 0
    assert (tmp_path / f"papertable-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_have_a_hand_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PAPERTABLE_CACHE")
    folder = tmp_path / f"papertable-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PreflightError, match=f"{folder}.*is a link.*PAPERTABLE_CACHE"):
        cache_folder()
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PreflightError, match="may be written to by others"):
        cache_folder()
    folder.chmod(0o700)
    cache_folder()
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(PreflightError, match=f"{folder}.*File exists"):
        cache_folder()
    folder.unlink()
    other = os.getuid() + 1
    (tmp_path / f"papertable-{other}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PreflightError, match="belongs to another user"):
        cache_folder()
