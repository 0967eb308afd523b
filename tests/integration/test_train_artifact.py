"""What a training leaves: its averages, and a journal of its losses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion.ema import EmaConfig
from orchestrator.backend import LocalBackend
from orchestrator.history import HISTORY_FILE
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.plan import plan
from pipelines.presets import tiny


def config(**changes: Any) -> RunConfig:
    base = tiny()
    return replace(base, train=replace(base.train, images=1280, ema=EmaConfig(rates=(0.9, 0.5)), **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step, store = plan(config())["train"], ArtifactStore(str(tmp_path_factory.mktemp("store")))
    materialize([step], store, backend=LocalBackend(), resources=Resources())
    return store.path(step)


def test_every_average_is_kept_and_the_first_is_the_model(trained: Path) -> None:
    first, second = (load_file(trained / name) for name in ("model.safetensors", "ema_0.5.safetensors"))
    assert first.keys() == second.keys()
    assert not torch.equal(first["out.2.weight"], second["out.2.weight"])
    with (trained / "record.json").open() as record:
        assert {"model.safetensors", "ema_0.5.safetensors"} <= set(json.load(record)["files"])


def test_the_fused_norm_trains_the_same_model_but_for_rounding(trained: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    step, store = plan(config(norms="fused"))["train"], ArtifactStore(str(tmp_path))
    materialize([step], store, backend=LocalBackend(), resources=Resources())
    plain, ours = (load_file(path / "model.safetensors") for path in (trained, store.path(step)))
    changed = torch.cat([(plain[name] - ours[name]).flatten() for name in plain])
    size = torch.cat([plain[name].flatten() for name in plain]).abs().mean()
    assert 0 < changed.abs().mean() < 1e-2 * size


def test_a_training_whose_store_was_lost_goes_on_from_checkpoints_that_lay_elsewhere(
    trained: Path, tmp_path: Path
) -> None:
    resources, histories = Resources(checkpoints=str(tmp_path / "kept")), []
    for name in ("first", "second", "third"):
        step, store = plan(config())["train"], ArtifactStore(str(tmp_path / name))
        materialize([step], store, backend=LocalBackend(), resources=resources)
        left = store.path(step)
        assert (left / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
        histories.append([json.loads(line)["resumed_at"] for line in (left / HISTORY_FILE).read_text().splitlines()])
    assert histories == [[0], [1280], [1280]]


def test_the_journal_says_how_long_a_step_waits_for_its_images(trained: Path) -> None:
    (line,) = [json.loads(line)["metrics"] for line in (trained / "journal.jsonl").read_text().splitlines()]
    assert 0 < line["data_wait"] < 128 / line["images_per_second"]


def test_the_journal_has_the_loss_of_each_quarter_of_t_and_their_weighted_mean_is_the_loss(trained: Path) -> None:
    (line,) = [json.loads(line)["metrics"] for line in (trained / "journal.jsonl").read_text().splitlines()]
    quarters = [line[f"loss_q{number}"] for number in range(4)]
    assert min(quarters) < line["loss"] < max(quarters)
    # 1280 uniform t: each quarter holds about a quarter of them.
    assert sum(quarters) / 4 == pytest.approx(line["loss"], rel=0.15)
