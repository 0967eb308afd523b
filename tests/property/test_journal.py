"""The journal: every point once, whatever was cut off when."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DamagedArtifact, LeaseLost
from orchestrator.journal import Journal, read_points
from orchestrator.lease import hold

metrics = st.dictionaries(st.sampled_from(["loss", "lr", "x/y"]), st.floats(), min_size=1)


@given(entries=st.lists(metrics, min_size=1, max_size=5), data=st.data())
def test_a_file_cut_anywhere_reads_as_its_whole_lines_and_goes_on_from_there(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, float]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    for step, entry in enumerate(entries):
        Journal(path).log(entry, step=step)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")

    points, following = read_points(path)
    assert following == whole
    assert [(p.key, p.step) for p in points] == [(key, step) for step in range(whole) for key in entries[step]]
    for point in points:
        value = entries[point.step][point.key]
        assert point.value == value or (math.isnan(point.value) and math.isnan(value))

    Journal(path).log({"loss": 1.0}, step=99)
    again, _ = read_points(path, from_line=following)
    assert [(p.key, p.value, p.step) for p in again] == [("loss", 1.0, 99)]


def test_what_a_resumed_trainer_measures_again_stays_as_it_was_first_logged(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for step in (10, 20, 30):
        journal.log({"loss": float(step)}, step=step)
    before = path.read_bytes()
    resumed = Journal(path)
    for step in (20, 30):
        resumed.log({"loss": -1.0}, step=step)
    assert path.read_bytes() == before
    resumed.log({"loss": 40.0}, step=40)
    assert [(p.step, p.value) for p in read_points(path)[0]] == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]


def test_who_was_taken_over_adds_no_line(tmp_path: Path) -> None:
    with hold(tmp_path / "lease", "a step", expires_s=60) as former:
        journal = Journal(tmp_path / "journal.jsonl", fence=former)
        journal.log({"loss": 1.0}, step=1)
    with hold(tmp_path / "lease", "a step", expires_s=60) as present:
        with pytest.raises(LeaseLost, match="lease was taken over by process"):
            journal.log({"loss": 2.0}, step=2)
        Journal(tmp_path / "journal.jsonl", fence=present).log({"loss": 3.0}, step=2)
    assert [p.value for p in read_points(tmp_path / "journal.jsonl")[0]] == [1.0, 3.0]


def test_points_carry_the_time_at_which_they_were_measured(tmp_path: Path) -> None:
    Journal(tmp_path / "j").log({"loss": 1.0}, step=1)
    Journal(tmp_path / "j").log({"loss": 1.0}, step=2)
    points, _ = read_points(tmp_path / "j")
    assert 1_700_000_000_000 < points[0].time_ms <= points[1].time_ms


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for step in range(3):
        journal.log({"loss": 1.0}, step=step)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{" + lines[1], lines[2]]) + "\n")
    with pytest.raises(DamagedArtifact, match="line 2"):
        read_points(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_by_the_journals_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*journal\.jsonl"):
        journal.log({"loss": 1.0}, step=1)
