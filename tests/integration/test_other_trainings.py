"""Classifiers and networks that make images larger, trained on the digits; workers in processes of their own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from diffusion.classifier import NoisyClassifier
from diffusion.superres import SuperResUNet
from diffusion.train_config import AllReduceConfig, TreeConfig
from orchestrator.backend import LocalBackend, Resumable, SpmdContext
from orchestrator.journal import read_points
from orchestrator.materialize import materialize
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines import classifier_runs, superres_runs
from pipelines.plan import plan
from pipelines.presets import tiny
from pipelines.train_classifier import HeldOutConfig

BATCH = 64


def short(**changes: Any) -> Any:
    return {"images": 10 * BATCH, "batch_size": BATCH, **changes}


def classifier(**changes: Any) -> Step:
    run = classifier_runs.tiny()
    run = replace(run, train=replace(run.train, **short(**changes)), held_out=HeldOutConfig(every_images=5 * BATCH))
    return classifier_runs.plan(run)["train_classifier"]


def trained(step: Step, folder: Path, *, workers: int = 1) -> Path:
    store, backend = ArtifactStore(str(folder)), LocalBackend() if workers == 1 else Processes()
    materialize([step], store, backend=backend, resources=Resources(workers=workers, checkpoint_steps=10))
    return store.path(step)


def test_a_classifier_keeps_the_weights_of_its_lowest_held_out_loss(tmp_path: Path) -> None:
    # A rate at which it gets worse again before it ends.
    output = trained(classifier(lr=0.05, lr_anneal="none"), tmp_path)
    losses = {p.step: p.value for p in read_points(output / "journal.jsonl")[0] if p.key == "held_out_loss"}
    metrics = json.loads((output / "metrics.json").read_text())["metrics"]
    assert set(losses) == {10 * BATCH}  # both windows end there; the first was measured in the middle of it
    assert metrics["held_out_loss"] <= losses[10 * BATCH]
    assert 0 <= metrics["held_out_accuracy_q3"] <= 1
    network = NoisyClassifier.from_checkpoint(output / "model.safetensors")
    assert network.config.num_classes == 10


def test_a_network_that_enlarges_is_trained_and_read_again(tmp_path: Path) -> None:
    run = superres_runs.tiny()
    run = replace(run, train=replace(run.train, **short()))
    output = trained(superres_runs.plan(run)["train_superres"], tmp_path)
    network = SuperResUNet.from_checkpoint(output / "model.safetensors")
    assert network.superres.small_size == 4


@pytest.mark.parametrize("name", ["adm-64", "adm-128", "adm-256", "adm-512"])
def test_the_papers_classifiers_are_set_up_as_published(name: str) -> None:
    run = classifier_runs.PRESETS[name]()
    assert run.train.precision == "fp16"
    assert run.train.loss_scale.initial_log2 == 16
    assert run.train.ema.rates == ()
    assert run.data.image_size == -(-run.model.encoder.image_size * 5 // 4)  # cropped to 0.8 to 1 of a side


def test_a_classifier_that_is_spread_over_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="each needs the whole classifier"):
        classifier(reduction=AllReduceConfig(sharded=True))


def test_the_papers_upsamplers_are_set_up() -> None:
    for name in ("adm-64-256", "adm-128-512"):
        assert superres_runs.PRESETS[name]().train.batch_size == 256


class Processes(LocalBackend):
    """Workers that are processes of this machine."""

    def spmd(
        self, fn: Callable[[SpmdContext, Any], Any], payload: Any, *, name: str, resources: Resources,
        resumable: Resumable | None = None,
    ) -> Any:  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = (resources.workers, Path(folder), fn, payload)
            torch.multiprocessing.spawn(worker, args=arguments, nprocs=resources.workers)
            return json.loads((Path(folder) / "said").read_text())


def worker(rank: int, workers: int, folder: Path, fn: Callable[[SpmdContext, Any], Any], payload: Any) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    said = fn(SpmdContext(rank=rank, world_size=workers, local_rank=rank, device="cpu"), payload)
    if rank == 0:
        (folder / "said").write_text(json.dumps(said))
    dist.destroy_process_group()


def last_state(output: Path) -> dict[str, torch.Tensor]:
    return load_file(max(output.glob("checkpoints/step-*")) / "state.safetensors")


def test_held_out_images_shared_by_two_workers_choose_the_same_weights(tmp_path: Path) -> None:
    step = classifier(reduction=TreeConfig(shards=2))
    one, two = (trained(step, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    for name in ("model.safetensors", "metrics.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_network_spread_over_workers_learns_what_ddp_learns_and_is_kept_whole(tmp_path: Path) -> None:
    base = tiny()

    def step(*, sharded: bool) -> Step:
        config = replace(base.train, eps=1e-3, **short(images=4 * BATCH, reduction=AllReduceConfig(sharded=sharded)))
        return plan(replace(base, train=config))["train"]

    spread, ddp = (trained(step(sharded=sharded), tmp_path, workers=2) for sharded in (True, False))
    theirs, ours = last_state(ddp), last_state(spread)
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-4, msg=name)
    assert load_file(spread / "model.safetensors").keys() == load_file(ddp / "model.safetensors").keys()
