"""Where a command keeps things, whatever folder its workers are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import Places


def test_a_folder_for_checkpoints_is_the_same_one_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Places(checkpoints="kept").resources().checkpoints == str(tmp_path / "kept")
    assert Places(checkpoints="~/kept").resources().checkpoints == str(tmp_path / "home" / "kept")
    assert Places(checkpoints="s3://bucket/kept").resources().checkpoints == "s3://bucket/kept"
    assert Places().resources().checkpoints is None


def test_in_a_job_a_relative_folder_for_checkpoints_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match="--checkpoints kept: inside a Ray job"):
        Places(store="/somewhere", checkpoints="kept").resources()
