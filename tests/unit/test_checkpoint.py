"""Checkpoints: what verifies is read, whatever a kill or a disk did to the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.checkpoint import CheckpointDirectory

FIRST, SECOND = {"state": b"one" * 100, "meta": b"{}"}, {"state": b"two" * 100, "meta": b"{}"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = CheckpointDirectory(tmp_path)
    directory.save(FIRST, clock=10)
    directory.save(SECOND, clock=20)
    return tmp_path


def load(path: Path) -> tuple[int | None, list[str]]:
    damage: list[str] = []
    checkpoint = CheckpointDirectory(path).load_latest(on_damage=damage.append)
    return (None if checkpoint is None else checkpoint.clock), damage


def test_the_newest_state_comes_back_as_it_was(saved: Path) -> None:
    checkpoint = CheckpointDirectory(saved).load_latest(on_damage=pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.clock, dict(checkpoint.files)) == (20, SECOND)
    assert (saved / "LATEST").read_text() == "step-000000000020"


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize("size", [0, 1, 150, 299])
def test_a_cut_file_sends_back_to_the_state_before(saved: Path, size: int) -> None:
    file = saved / "step-000000000020" / "state"
    file.write_bytes(file.read_bytes()[:size])
    clock, damage = load(saved)
    assert clock == 10
    assert "step-000000000020" in damage[0]
    assert "state is not what was written" in damage[0]


def test_every_single_flipped_bit_of_a_small_state_is_noticed(tmp_path: Path) -> None:
    CheckpointDirectory(tmp_path).save({"state": b"abc"}, clock=1)
    file = tmp_path / "step-000000000001" / "state"
    for bit in range(24):
        flipped = bytearray(b"abc")
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert load(tmp_path)[0] is None


@pytest.mark.parametrize("name", ["state", "meta", "manifest.json"])
def test_a_missing_file_sends_back_to_the_state_before(saved: Path, name: str) -> None:
    (saved / "step-000000000020" / name).unlink()
    clock, damage = load(saved)
    assert clock == 10
    assert name in damage[0]


def test_a_kill_between_files_and_pointer_loses_nothing(saved: Path) -> None:
    (saved / "LATEST").write_text("step-000000000099")  # a pointer to what is not there
    assert load(saved) == (20, [])


def test_what_a_kill_left_of_a_save_is_replaced_by_the_next(saved: Path) -> None:
    half = saved / "step-000000000030"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    assert load(saved)[0] == 20
    CheckpointDirectory(saved).save(FIRST, clock=30)
    assert load(saved) == (30, [])


def test_only_the_newest_are_kept(saved: Path) -> None:
    CheckpointDirectory(saved, keep=2).save(FIRST, clock=30)
    assert sorted(folder.name for folder in saved.glob("step-*")) == ["step-000000000020", "step-000000000030"]


def test_damage_to_all_states_leaves_none_and_names_each(saved: Path) -> None:
    for folder in saved.glob("step-*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["state"]["sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
    clock, damage = load(saved)
    assert clock is None
    assert len(damage) == 2


def test_damaged_states_do_not_crowd_out_the_ones_that_follow_them(saved: Path) -> None:
    for folder in (saved / "step-000000000040", saved / "step-000000000050"):
        shutil.copytree(saved / "step-000000000020", folder)
        (folder / "state").write_bytes(b"damaged")
    CheckpointDirectory(saved).save(FIRST, clock=30)
    assert load(saved) == (30, [])
    assert (saved / (saved / "LATEST").read_text()).is_dir()
