"""What a user's mistake gets: one paragraph that names it, an exit code, and no Ray started for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.ray_tune import TuneLauncher
from pipelines import ablation, data_commands, single
from pipelines.cli import run

STUDY = "iddpm-cifar10"
PRICES = '{"currency": "EUR", "instances": {"small": {"per_hour": 0.1, "cpus": 2}}}'
SHORT = ["--rows", "1K linear simple", "--set", "train.images=1280", "--set", "sample.sampler.respacing=10"]


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, main: object = ablation.main) -> int:
    """The exit code of a command line, in a process that must not get as far as starting Ray."""

    def start(launcher: TuneLauncher) -> TuneLauncher:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(TuneLauncher, "__enter__", start)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(main)  # type: ignore[arg-type]
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["iddpm-cifar1"], "did you mean 'iddpm-cifar10'"),
        ([STUDY, "--preset", "tinny"], "did you mean 'tiny'"),
        ([STUDY, "--seeds", "0"], "--seeds 0"),
        ([STUDY, "--workers", "0"], "workers=0"),
        ([STUDY, "--workers", "3"], "train.reduction.shards=2"),
        ([STUDY, "--cells-at-once", "0"], "--cells-at-once 0"),
        ([STUDY, "--store", "s3://bucket/x"], "s3:// is not available yet"),
        ([STUDY, "--set", "train.imagess=1280"], "did you mean 'images'"),
        ([STUDY, "--set", "train.images"], "write KEY=VALUE"),
        ([STUDY, "--set", "train.images=many"], "train.images='many'"),
        ([STUDY, "--set", "train.images=100"], "multiple of train.batch_size=128, such as 128"),
        ([STUDY, "--set", "train.lr=1e-3", "--set", "train.lr=1e-4"], "train.lr is set twice"),
        ([STUDY, "--set", "seed=3"], "--seeds"),
        ([STUDY, "--set", "diffusion.schedule=linear"], "what the rows of iddpm-cifar10 differ in"),
        ([STUDY, "--set", 'diffusion={"num_timesteps": 777}'], "--set diffusion.num_timesteps"),
        ([STUDY, "--set", "train.timesteps.kind=loss_second_moment"], "(4K cosine vlb)"),
        ([STUDY, "--set", 'train.timesteps={"kind": [1]}'], "must be one of uniform, loss_second_moment"),
        ([STUDY, "--set", "diffusion.vlb_weight=0"], "diffusion.vlb_weight=0"),
        ([STUDY, "--set", "sample.sampler.respacing=1500"], "num_timesteps=1000"),
        ([STUDY, "--set", "sample.sampler.respacing=often"], "write a count"),
        ([STUDY, "--set", "nll.respacing=1500"], "nll.respacing='1500' with diffusion.num_timesteps=1000"),
        ([STUDY, "--set", "model.num_classes=7"], "model.num_classes=7: the data set has 10 classes"),
        ([STUDY, "--set", "sample.count=100"], "sample.count=100"),
        ([STUDY, "--set", "sample.count=2", "--set", "metrics.kid_subset_size=2"], "at least 3 images"),
        ([STUDY, "--set", "features.kind=vgg"], "features.kind='vgg'"),
        ([STUDY, "--checkpoint-seconds", "nan"], "checkpoint_seconds=nan"),
        ([STUDY, "--data-mib", "0"], "data_mib=0"),
        ([STUDY, "--workers", "4", "--min-workers", "3"], "min_workers=3: must be workers=4, halved"),
        ([STUDY, "--gpus-per-worker", "1.5"], "gpus_per_worker=1.5"),
        ([STUDY, "--store", "file://artifacts"], "file:///FOLDER"),
        ([STUDY, "--tracking-uri", "./mlruns"], "sqlite:///FILE"),
        ([STUDY, "--tracking-uri", "htp://127.0.0.1"], "sqlite:///FILE"),
        ([STUDY, "--max-hours", "0"], "--max-hours 0"),
        ([STUDY, "--max-cost", "5"], "add --prices and --instance"),
        ([STUDY, "--prices", "prices.json"], "Name both"),
        ([STUDY, "--instance", "large"], "Name both"),
        ([STUDY, "--prices", "nowhere.json", "--instance", "large"], "--prices nowhere.json: cannot be read"),
        (["--preset", "tiny"], "which study? There are: iddpm-cifar10"),
        ([STUDY, "--set", "nll.images=100000"], "358 held-out images"),
        ([STUDY, "--set", "metrics.kid_subset_size=400"], "358 held-out images"),
    ],
)
def test_a_bad_configuration_is_named_and_ends_with_2(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(arguments, monkeypatch) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: ")
    assert complaint in said


def test_a_store_that_cannot_be_written_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert refused([STUDY, "--store", str(tmp_path / "file")], monkeypatch) == 3
    assert "cannot be written" in " ".join(capsys.readouterr().err.split())


def test_data_that_are_not_there_end_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PAPERTABLE_FASHION_MNIST", str(tmp_path))
    for main, arguments in (
        (ablation.main, [STUDY, "--preset", "reduced"]),
        (data_commands.main, ["prepare", "fashion-mnist"]),
    ):
        assert refused([*arguments, "--store", str(tmp_path / "store")], monkeypatch, main) == 3
        assert "dataset-fashion-mnist" in " ".join(capsys.readouterr().err.split())


def test_a_database_whose_driver_is_missing_ends_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "mssql+pymssql://127.0.0.1/x"
    assert refused([STUDY, "--store", str(tmp_path), "--tracking-uri", uri], monkeypatch) == 3


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prices.json").write_text(PRICES)
    priced = ["--prices", str(tmp_path / "prices.json"), "--instance", "small"]
    assert refused([STUDY, "--store", str(tmp_path / "store"), "--dry-run", *SHORT, *priced], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "to run: dataset, reference, train, nll" in said
    assert "1 to train, 0 to evaluate only, 0 done" in said
    assert "EUR, of small" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--instance", "smal"], "did you mean 'small'"),
        (["--instance", "small", "--gpus-per-worker", "1"], "--instance small has no GPUs"),
        (["--instance", "small", "--max-cost", "-1"], "--max-cost -1"),
    ],
)
def test_prices_that_do_not_fit_are_refused_before_any_work(
    options: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prices.json").write_text(PRICES)
    store = ["--store", str(tmp_path / "store")]
    assert refused([STUDY, *store, "--prices", str(tmp_path / "prices.json"), *options], monkeypatch) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "store").exists()


def test_a_job_does_not_keep_its_results_in_its_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert refused([STUDY, "--store", "artifacts"], monkeypatch) == 2
    assert "name an absolute path" in " ".join(capsys.readouterr().err.split())


def test_workers_without_ray_are_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--store", str(tmp_path), "--workers", "2"]
    assert refused(arguments, monkeypatch, single.command("train", "Train.")) == 2
    assert "--ray" in capsys.readouterr().err


def test_a_data_set_is_prepared_by_the_command_that_the_docs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert refused(["prepare", "digits", "--store", str(tmp_path)], monkeypatch, data_commands.main) == 0
    notes, place, use = capsys.readouterr().out.splitlines()
    assert notes == "ours: digits, 8x8x1, 1,439 train and 358 test images"
    assert (Path(place) / "manifest.json").is_file()
    assert use == "To use it: --data digits"
