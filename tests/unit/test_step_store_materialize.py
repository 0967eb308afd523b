"""Steps and their store: identity, record last, damage named, nothing run twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, Interrupted, PreflightError, StepFailed
from orchestrator.materialize import materialize, pending
from orchestrator.step import Resources, Step, StepContext, walk
from orchestrator.store import ArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    text: str = "a"
    fail: bool = False


def write(config: Config, ctx: StepContext) -> None:
    if config.fail:
        (ctx.output / "half.txt").write_text("half")
        raise RuntimeError("disk on fire")
    before = "".join((path / "out.txt").read_text() for _, path in sorted(ctx.inputs.items()))
    (ctx.output / "out.txt").write_text(before + config.text)
    with (ctx.output.parent / "calls").open("a") as calls:
        calls.write(ctx.output.name + "\n")
    ctx.progress(done=1, total=1, unit="file")
    ctx.write_metrics({"length": float(len(config.text))}, protocol={"length": {"unit": "letters"}}, notes=["short"])


def step(text: str, *inputs: Step, fail: bool = False, version: int = 1) -> Step:
    named = {f"input{number}": before for number, before in enumerate(inputs)}
    return Step(name="write", version=version, config=Config(text=text, fail=fail), inputs=named, run=write)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def run(steps: list[Step], store: ArtifactStore) -> None:
    materialize(steps, store, backend=LocalBackend(), resources=Resources())


def calls(store: ArtifactStore) -> list[str]:
    file = store.root / "write" / "calls"
    return file.read_text().split() if file.exists() else []


def test_name_version_config_and_inputs_are_the_identity_and_nothing_else() -> None:
    base = step("a", step("b"))
    changed = [
        step("x", step("b")), step("a", step("y")), step("a"), step("a", step("b"), version=2),
        replace(base, name="other"),
    ]  # fmt: skip
    assert len({s.fingerprint for s in [base, *changed]}) == 6
    assert replace(base, run=print).fingerprint == base.fingerprint == step("a", step("b")).fingerprint


def test_walking_gives_each_step_once_after_its_inputs() -> None:
    shared = step("s")
    a, b = step("a", shared), step("b", shared)
    assert walk([step("top", a, b), a]) == [shared, a, b, step("top", a, b)]


@pytest.mark.parametrize(
    ("workers", "least", "numbers"),
    [(4, None, [4]), (4, 1, [4, 2, 1]), (4, 2, [4, 2]), (6, 3, [6, 3]), (1, 1, [1]), (5, 5, [5])],
)
def test_fewer_workers_are_halves(workers: int, least: int | None, numbers: list[int]) -> None:
    assert Resources(workers=workers, min_workers=least).numbers_of_workers() == numbers


@pytest.mark.parametrize("least", [0, 3, 8])
def test_fewest_workers_that_are_no_half_are_refused(least: int) -> None:
    with pytest.raises(ValueError, match=f"min_workers={least}: must be workers=4, halved .*: 4, 2, 1"):
        Resources(workers=4, min_workers=least)


def test_a_second_call_runs_nothing_and_a_new_step_only_itself(store: ArtifactStore) -> None:
    shared, first = step("s"), step("a", step("s"))
    run([first], store)
    run([first], store)
    assert calls(store) == [shared.fingerprint, first.fingerprint]
    second = step("b", shared)
    assert pending([first, second], store) == [second]
    run([first, second], store)
    assert calls(store)[2:] == [second.fingerprint]
    assert (store.path(second) / "out.txt").read_text() == "sb"


def test_a_finished_step_needs_its_inputs_no_longer(store: ArtifactStore) -> None:
    top = step("top", step("s"))
    run([top], store)
    (store.path(step("s")) / "record.json").unlink()
    assert pending([top], store) == []


def test_a_step_that_failed_is_not_done_and_its_reason_is_told(store: ArtifactStore) -> None:
    with pytest.raises(StepFailed, match="RuntimeError: disk on fire") as failure:
        run([step("a", fail=True)], store)
    assert failure.value.exit_code == 4
    assert not store.is_done(step("a", fail=True))
    assert (store.path(step("a", fail=True)) / "half.txt").exists()


def test_a_step_whose_record_cannot_be_written_failed_for_that_reason(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = step("a")
    (store.path(one) / "record.json").mkdir(parents=True)  # in the way
    monkeypatch.setattr(ArtifactStore, "record", lambda *_: None)
    with pytest.raises(StepFailed, match=r"IsADirectoryError: .*record\.json"):
        run([one], store)


def test_what_is_hidden_in_a_folder_is_no_output(store: ArtifactStore) -> None:
    def write(config: Config, ctx: StepContext) -> None:
        (ctx.output / "blocks").mkdir()
        for name in ("whole", ".half.partial"):
            (ctx.output / "blocks" / name).write_text(name)

    one = Step(name="a", version=1, config=Config(text="a"), inputs={}, run=write)
    run([one], store)
    record = store.record(one)
    assert record is not None
    assert list(record.files) == ["blocks/whole"]


def test_an_interruption_is_no_failure(store: ArtifactStore) -> None:
    def interrupted(config: Config, ctx: StepContext) -> None:
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        run([replace(step("a"), run=interrupted)], store)
    assert stop.value.exit_code == 75


def test_the_record_lists_the_output_and_not_the_working_state(store: ArtifactStore) -> None:
    one = step("a")
    (store.path(one) / "checkpoints").mkdir(parents=True)
    (store.path(one) / "checkpoints" / "state").write_text("s")
    run([one], store)
    record = store.record(one)
    assert record is not None
    assert set(record.files) == {"out.txt", "metrics.json"}
    assert record.files["out.txt"]["size"] == 1
    assert record.identity == one.identity()
    store.verify(one)


def test_metrics_come_back_as_they_were_written(store: ArtifactStore) -> None:
    run([step("abc")], store)
    said = store.metrics(step("abc"))
    assert (said.metrics, said.protocol, said.notes) == ({"length": 3.0}, {"length": {"unit": "letters"}}, ("short",))
    assert store.metrics(step("never run")).metrics == {}


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_a_damaged_artifact_is_named_and_never_read(store: ArtifactStore, damage: str) -> None:
    run([step("abc")], store)
    file = store.path(step("abc")) / ("record.json" if damage == "no json" else "out.txt")
    if damage == "gone":
        file.unlink()
    else:
        file.write_text("{")
    with pytest.raises(DamagedArtifact, match=f"{file.name}: .*remove .* and run again"):
        store.is_done(step("abc"))


def test_a_flipped_bit_is_found_by_verify(store: ArtifactStore) -> None:
    run([step("abc")], store)
    (store.path(step("abc")) / "out.txt").write_text("abd")
    assert store.is_done(step("abc"))
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        store.verify(step("abc"))


def test_a_metric_that_is_no_number_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    ctx = StepContext(inputs={}, output=tmp_path, backend=LocalBackend(), resources=Resources())
    with pytest.raises(ValueError, match="nll_bpd came out as nan"):
        ctx.write_metrics({"nll_bpd": float("nan")})


@pytest.mark.parametrize("root", ["s3://bucket/path", "gs://bucket", ""])
def test_a_store_that_is_not_available_is_refused_by_name(root: str) -> None:
    with pytest.raises(ValueError, match="name a folder"):
        ArtifactStore(root)


def test_a_file_url_is_its_folder(tmp_path: Path) -> None:
    assert ArtifactStore(f"file://{tmp_path}/a b").root == tmp_path / "a b"


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/papertable")):
        with pytest.raises(PreflightError, match="cannot be written"):
            ArtifactStore(str(root)).check_writable()
    ArtifactStore(str(tmp_path / "new" / "folder")).check_writable()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


WAITER = """
import sys, time
from pathlib import Path
from orchestrator.lease import hold
with hold(Path(sys.argv[1]), "a step"):
    print("held", flush=True)
    time.sleep(1.5)
    Path(sys.argv[2]).rename(sys.argv[3])
"""


def test_a_step_that_finished_while_we_waited_is_not_run_again(store: ArtifactStore) -> None:
    one = step("a")
    run([one], store)
    record = store.path(one) / "record.json"
    hidden = record.rename(record.with_name("hidden"))
    lease = store.root / ".leases" / f"{one.name}-{one.fingerprint}.lease"
    arguments = [sys.executable, "-c", WAITER, str(lease), str(hidden), str(record)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        run([one], store)
    assert calls(store) == [one.fingerprint]
