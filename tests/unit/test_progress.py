"""What a watcher says of a study: how far, how long still, and what it does not know yet."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from orchestrator import display
from orchestrator.display import Display, StepDisplay
from orchestrator.experiment import Trial
from orchestrator.progress import StepProgress, Watcher
from orchestrator.step import FAILURE_FILE, PROGRESS_FILE, Step, StepContext, write_failure, write_progress
from orchestrator.store import ArtifactStore
from tests.unit.test_experiment import Config


def never(config: Config, ctx: StepContext) -> None:
    raise AssertionError("nothing runs here")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def plan(depth: int) -> list[Step]:
    train = Step(name="train", version=1, config=Config(depth=depth), inputs={}, run=never)
    return [train, Step(name="nll", version=1, config=Config(depth=depth), inputs={"train": train}, run=never)]


def watch(store: ArtifactStore, *, cells: int = 4, concurrent: int = 2) -> Watcher:
    trials = {Trial(f"depth {depth}", 0, Config(depth=depth)): plan(depth) for depth in range(1, cells + 1)}
    return Watcher(store, trials, concurrent=concurrent)


def says(store: ArtifactStore, step: Step, done: float, total: float) -> None:
    store.path(step).mkdir(parents=True, exist_ok=True)
    write_progress(store.path(step), done=done, total=total, unit="img", facts={})


def commit(store: ArtifactStore, step: Step, seconds: float) -> None:
    store.path(step).mkdir(parents=True, exist_ok=True)
    store.commit(step, seconds=seconds, provenance={})


def test_until_a_step_has_moved_no_time_is_named(store: ArtifactStore, clock: Clock) -> None:
    watcher = watch(store)
    assert watcher.time_left() is None
    says(store, plan(1)[0], 0, 0)
    assert watcher.time_left() is None


def test_what_is_over_says_nothing_of_what_is_to_come(store: ArtifactStore, clock: Clock) -> None:
    commit(store, plan(1)[0], seconds=3)
    commit(store, plan(1)[1], seconds=3)
    shared = Step(name="dataset", version=1, config=Config(), inputs={}, run=never)
    commit(store, shared, seconds=1)
    alone = Step(name="train", version=2, config=Config(depth=9), inputs={"dataset": shared}, run=never)
    watcher = Watcher(store, {Trial("deep", 0, Config(depth=9)): [alone]}, concurrent=2)
    assert watcher.time_left() is None


def test_cells_not_begun_are_taken_to_last_as_long_as_those_at_work_will(store: ArtifactStore, clock: Clock) -> None:
    watcher = watch(store)
    for moment, done in ((0, 0), (10, 50)):
        clock.now = 1_000_000.0 + moment
        for depth in (1, 2):
            says(store, plan(depth)[0], done, 100)
        watcher.running()
    left = watcher.time_left()
    assert left is not None
    # Two cells have 10 s to go and two have 20 s, side by side in twos; how long "nll" takes nobody knows.
    assert left.seconds == pytest.approx((2 * 10 + 2 * 20) / 2)
    assert left.is_lower_bound


def test_finished_steps_tell_how_long_the_others_take(store: ArtifactStore, clock: Clock) -> None:
    commit(store, plan(1)[0], seconds=30)
    commit(store, plan(1)[1], seconds=6)
    left = watch(store).time_left()
    assert left is not None
    assert left.seconds == pytest.approx(3 * 36 / 2)
    assert not left.is_lower_bound


def test_a_single_long_cell_bounds_the_whole(store: ArtifactStore, clock: Clock) -> None:
    commit(store, plan(1)[0], seconds=30)
    commit(store, plan(1)[1], seconds=6)
    left = watch(store, cells=2, concurrent=8).time_left()
    assert left is not None
    assert left.seconds == pytest.approx(36)


def test_what_an_earlier_run_left_is_not_taken_for_work_going_on(store: ArtifactStore, clock: Clock) -> None:
    says(store, plan(1)[0], 50, 100)
    write_failure(store.path(plan(1)[0]), "an old story")
    clock.now += 60
    watcher = watch(store)
    watcher.look()
    assert watcher.running() == []
    assert watcher.cells[0].failed is None


def test_a_failed_cell_is_shown_at_once_and_waited_for_no_longer(store: ArtifactStore, clock: Clock) -> None:
    commit(store, plan(1)[0], seconds=30)
    commit(store, plan(1)[1], seconds=6)
    watcher = watch(store, cells=2)
    says(store, plan(2)[0], 10, 100)
    write_failure(store.path(plan(2)[0]), "the loss is nan")
    watcher.look()
    left = watcher.time_left()
    assert left is not None
    assert left.seconds == 0
    shown = io.StringIO()
    Display(shown).show(watcher)
    assert "depth 2 · seed 0" in shown.getvalue()
    assert "FAILED: the loss is nan" in shown.getvalue()
    assert "1/2 cells done, 0 at work, 1 failed" in shown.getvalue()


def test_a_step_by_itself_says_how_far_it_is_and_how_long_it_will_take(
    store: ArtifactStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "LINES_SECONDS", 0.0)
    shown, step = io.StringIO(), plan(1)[0]
    with StepDisplay(shown) as line:
        line.show(step, None)
        for moment, done in ((0, 10), (20, 50)):
            clock.now = 1_000_000.0 + moment
            says(store, step, done, 100)
            line.show(step, StepProgress.read(store.path(step)))
    first, second = shown.getvalue().splitlines()
    assert first == "train     10/100 img"
    assert second == "train     50/100 img  ETA 0:00:25"


@pytest.mark.parametrize("left", ["", '{"done": 3', "\x00\x00"])
def test_what_a_power_cut_left_of_a_steps_word_is_as_if_it_had_said_nothing(tmp_path: Path, left: str) -> None:
    store = ArtifactStore(str(tmp_path))
    step = Step(name="train", version=1, config=Config(), inputs={}, run=lambda *_: None)
    store.path(step).mkdir(parents=True)
    for name in (PROGRESS_FILE, FAILURE_FILE):
        (store.path(step) / name).write_text(left)
    watcher = Watcher(store, {Trial("row", 0, Config()): [step]}, concurrent=1)
    watcher.look()
    assert watcher.running() == []
    assert watcher.cells[0].failed is None
    assert StepProgress.read(store.path(step)) is None
