"""What every place for checkpoints must do: in a folder here, in a bucket in the integration tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.blobs import Blobs, Conflict
from orchestrator.checkpoint import MANIFEST, POINTER, Checkpoint, CheckpointStore, check_writable
from orchestrator.errors import CheckpointsTaken, LeaseLost

FIRST, SECOND, THIRD = ({"state": word * 100, "meta": b"{}"} for word in (b"one", b"two", b"three"))


def saved(blobs: Blobs) -> CheckpointStore:
    """Two states, at 10 and 20, by the first who writes."""
    store = CheckpointStore(blobs)
    store.save(FIRST, clock=10)
    store.save(SECOND, clock=20)
    return store


def found(blobs: Blobs) -> tuple[Checkpoint | None, list[str]]:
    """What a successor goes on from, and the damage it meets."""
    damage: list[str] = []
    return CheckpointStore(blobs).resume(on_damage=damage.append), damage


def clocks(blobs: Blobs) -> list[int]:
    """Of all states that are kept."""
    return sorted({int(name.split("-")[1]) for name in blobs.names() if name.startswith("step-")})


class PlaceContract:
    """Run for every place: a subclass has a fixture `blobs`, an empty one."""

    def test_the_newest_state_comes_back_as_it_was(self, blobs: Blobs) -> None:
        saved(blobs)
        checkpoint, damage = found(blobs)
        assert checkpoint == Checkpoint(20, SECOND)
        assert damage == []

    def test_without_a_checkpoint_there_is_none(self, blobs: Blobs) -> None:
        assert found(blobs) == (None, [])

    @pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
    def test_a_state_that_is_not_what_was_written_sends_back_to_the_one_before(self, blobs: Blobs, harm: str) -> None:
        saved(blobs)
        content = bytearray(SECOND["state"])
        content[150] ^= 1
        harmed = {"cut": SECOND["state"][:150], "flipped": bytes(content), "empty": b""}[harm]
        blobs.write("step-000000000020-000001/state", harmed)
        checkpoint, damage = found(blobs)
        assert checkpoint == Checkpoint(10, FIRST)
        assert len(damage) == 1
        assert "step-000000000020-000001" in damage[0]
        assert "state is not what was written" in damage[0]

    @pytest.mark.parametrize("name", ["state", "meta", MANIFEST])
    def test_a_missing_file_sends_back_to_the_state_before(self, blobs: Blobs, name: str) -> None:
        saved(blobs)
        blobs.delete(f"step-000000000020-000001/{name}")
        checkpoint, damage = found(blobs)
        assert checkpoint == Checkpoint(10, FIRST)
        assert name in damage[0]

    @pytest.mark.parametrize("manifest", [b"", b"[]", b'{"files": 3}', b"\xff\xfe"])
    def test_a_manifest_that_is_none_sends_back_to_the_state_before(self, blobs: Blobs, manifest: bytes) -> None:
        saved(blobs)
        blobs.write(f"step-000000000020-000001/{MANIFEST}", manifest)
        assert found(blobs)[0] == Checkpoint(10, FIRST)

    @pytest.mark.parametrize("pointer", [b"", b"garbage", b'{"clock": 99, "epoch": "x", "folder": "step-99"}'])
    def test_nothing_hangs_on_what_the_pointer_says(self, blobs: Blobs, pointer: bytes) -> None:
        saved(blobs)
        blobs.write(POINTER, pointer)
        assert found(blobs) == (Checkpoint(20, SECOND), [])

    def test_a_state_whose_manifest_is_there_counts_although_the_pointer_was_not_moved(self, blobs: Blobs) -> None:
        store = saved(blobs)
        pointer = blobs.read(POINTER)
        store.save(THIRD, clock=30)
        blobs.write(POINTER, pointer)
        assert found(blobs)[0] == Checkpoint(30, THIRD)

    def test_only_the_newest_are_kept(self, blobs: Blobs) -> None:
        store = saved(blobs)
        store.save(THIRD, clock=30)
        assert clocks(blobs) == [20, 30]

    def test_the_last_state_that_verified_outlives_damaged_ones_until_two_newer_ones_are_there(
        self, blobs: Blobs
    ) -> None:
        saved(blobs)
        blobs.write("step-000000000020-000001/state", b"damaged")
        blobs.write("step-000000000040-000001/state", b"unfinished")
        successor = CheckpointStore(blobs)
        successor.resume(on_damage=lambda _: None)
        successor.save(SECOND, clock=20)
        assert clocks(blobs) == [10, 20]
        assert found(blobs)[0] == Checkpoint(20, SECOND)

    def test_what_a_kill_left_of_a_save_is_replaced_by_the_next(self, blobs: Blobs) -> None:
        saved(blobs)
        blobs.write("step-000000000030-000001/state", b"half")
        assert found(blobs) == (Checkpoint(20, SECOND), [])  # unfinished is not damaged
        CheckpointStore(blobs).save(THIRD, clock=30)
        assert found(blobs) == (Checkpoint(30, THIRD), [])

    def test_who_was_taken_over_can_keep_nothing_and_leaves_nothing(self, blobs: Blobs) -> None:
        former = saved(blobs)
        successor = CheckpointStore(blobs)
        successor.resume(on_damage=pytest.fail)
        with pytest.raises(CheckpointsTaken):
            former.save(THIRD, clock=30)
        assert clocks(blobs) == [10, 20]
        successor.save(FIRST, clock=30)
        assert found(blobs)[0] == Checkpoint(30, FIRST)

    def test_of_many_who_come_at_once_the_last_alone_can_keep_anything(self, blobs: Blobs) -> None:
        saved(blobs)
        stores = [CheckpointStore(blobs) for _ in range(4)]
        threads = [threading.Thread(target=store.claim) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost = 0
        for clock, store in enumerate(stores, 30):
            try:
                store.save(THIRD, clock=clock)
            except CheckpointsTaken:
                lost += 1
        assert lost == 3
        checkpoint, _ = found(blobs)
        assert checkpoint is not None
        assert checkpoint.files == THIRD

    def test_a_claim_waits_for_its_turn_and_who_has_none_takes_nothing(self, blobs: Blobs) -> None:
        store = saved(blobs)

        @contextmanager
        def never() -> Iterator[None]:
            raise LeaseLost("taken over")
            yield

        with pytest.raises(LeaseLost):
            CheckpointStore(blobs).claim(turn=never)
        store.save(THIRD, clock=30)

    def test_a_state_that_its_writer_removed_after_its_successor_had_read_it_does_not_count(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        former, successor = saved(blobs), CheckpointStore(blobs)

        def meanwhile(store: CheckpointStore, pointer: object) -> None:
            monkeypatch.undo()  # once
            checkpoint = successor.resume(on_damage=pytest.fail)
            assert checkpoint is not None
            assert checkpoint.clock == 30
            store._point(pointer)

        monkeypatch.setattr(CheckpointStore, "_point", meanwhile)
        with pytest.raises(CheckpointsTaken):
            former.save(THIRD, clock=30)
        successor.save(FIRST, clock=40)
        assert clocks(blobs) == [10, 20, 40]
        successor.save(FIRST, clock=50)
        assert clocks(blobs) == [40, 50]

    def test_who_finds_its_files_removed_is_told_by_whom(self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
        former = saved(blobs)

        def gone(name: str, content: bytes) -> None:
            raise FileNotFoundError(name)

        with monkeypatch.context() as patched:
            patched.setattr(blobs, "write", gone)
            with pytest.raises(FileNotFoundError):
                former.save(THIRD, clock=30)
        CheckpointStore(blobs).claim()
        monkeypatch.setattr(blobs, "write", gone)
        with pytest.raises(CheckpointsTaken, match="of another store, keeps its checkpoints here now"):
            former.save(THIRD, clock=30)

    def test_who_comes_after_a_lost_pointer_overwrites_nothing(self, blobs: Blobs) -> None:
        former = saved(blobs)
        blobs.delete(POINTER)
        successor = CheckpointStore(blobs)
        successor.resume(on_damage=pytest.fail)
        successor.save(THIRD, clock=20)
        assert blobs.read("step-000000000020-000001/state") == SECOND["state"]
        with pytest.raises(CheckpointsTaken):
            former.save(FIRST, clock=30)
        assert found(blobs)[0] == Checkpoint(20, THIRD)

    def test_the_place_is_tried_before_training_and_left_as_it_was(self, blobs: Blobs) -> None:
        saved(blobs)
        before = sorted(blobs.names())
        check_writable(blobs)
        assert sorted(blobs.names()) == before

    def test_a_reader_takes_nothing_over(self, blobs: Blobs) -> None:
        store = saved(blobs)
        assert CheckpointStore(blobs).clock() == 20
        store.save(THIRD, clock=30)

    def test_of_many_who_change_a_file_at_once_one_does(self, blobs: Blobs) -> None:
        version = blobs.swap("file", b"0", expected=None)
        outcomes: list[str] = []
        start = threading.Barrier(4)

        def change(number: int) -> None:
            start.wait()
            try:
                blobs.swap("file", f"by {number}".encode(), expected=version)
                outcomes.append("changed")
            except Conflict:
                outcomes.append("conflict")

        threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["changed", "conflict", "conflict", "conflict"]
        with pytest.raises(Conflict):
            blobs.swap("file", b"1", expected=None)
        with pytest.raises(Conflict):
            blobs.swap("nothing", b"1", expected=version)

    def test_absent_files_are_said_to_be_absent(self, blobs: Blobs) -> None:
        assert blobs.version("nothing") is None
        with pytest.raises(FileNotFoundError):
            blobs.read("nothing")
        blobs.delete("nothing")
        assert blobs.names() == []
