"""What was spent on a study counts, whoever spent it and however it ended; at its cap a study stops, and can go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempts import ATTEMPTS_FILE
from orchestrator.backend import Backend, LocalBackend
from orchestrator.budget import Account, BudgetReached, Cap
from orchestrator.display import Display
from orchestrator.errors import StepFailed
from orchestrator.experiment import Trial
from orchestrator.materialize import materialize
from orchestrator.prices import Instance, Price
from orchestrator.run import Launcher, run_experiment
from orchestrator.step import Resources, Step, StepContext, write_progress
from orchestrator.stopping import Preempted, asked_to_stop, listening
from orchestrator.store import ArtifactStore
from orchestrator.views import Presentation
from tests.unit.test_experiment import Config, experiment

TWO_CPUS = Resources(cpus_per_worker=2)
PRICE = Price(name="small", currency="USD", instance=Instance(per_hour=3600, cpus=2))


def data(config: Config, ctx: StepContext) -> None:
    (ctx.output / "data").write_text("here")


def work(config: Config, ctx: StepContext) -> None:
    ctx.write_metrics({"loss": 1.0, "time": 1.0})


def broken(config: Config, ctx: StepContext) -> None:
    time.sleep(0.05)
    raise RuntimeError("no luck")


def train_until_asked(config: Config, ctx: StepContext) -> None:
    """Ends only when it is asked to, or when the earlier attempt has left its state."""
    assert ctx.fence is not None
    state = ctx.output / "checkpoints"
    if state.exists():
        work(config, ctx)
        return
    with listening(ctx.output, began_by=ctx.began_by, fence=ctx.fence):
        while not asked_to_stop(ctx.output, began_by=ctx.began_by):
            time.sleep(0.01)
        state.mkdir()
    raise Preempted("all kept")


def step(run: Callable[[Config, StepContext], None], depth: int = 1) -> Step:
    dataset = Step(name="dataset", version=1, config=Config(), inputs={}, run=data)
    return Step(name="train", version=1, config=Config(depth=depth), inputs={"dataset": dataset}, run=run)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def run(steps: Sequence[Step], store: ArtifactStore, resources: Resources = TWO_CPUS) -> None:
    materialize(steps, store, backend=LocalBackend(), resources=resources)


def account(store: ArtifactStore, *steps: Step, price: Price | None = PRICE) -> Account:
    return Account(steps, store, TWO_CPUS, price)


def test_nothing_is_spent_on_what_was_not_begun(store: ArtifactStore) -> None:
    spent = account(store, step(work)).spent()
    assert (spent.device_seconds, spent.money, spent.devices) == (0.0, 0.0, 0.0)


def test_failed_attempts_count_beside_the_one_that_led_to_the_record(store: ArtifactStore) -> None:
    for attempt in (1, 2):
        with pytest.raises(StepFailed):
            run([step(broken)], store)
        assert account(store, step(work)).spent().device_seconds >= 2 * attempt * 0.05
    run([step(work)], store)
    record = store.record(step(work))
    assert record is not None
    assert record.spent["seconds"] >= record.seconds + 0.1 - 1e-3
    assert record.spent["cpus"] == 2
    spent = account(store, step(work)).spent()
    assert spent.device_seconds == pytest.approx(2 * record.spent["seconds"])
    assert spent.money == pytest.approx(record.spent["seconds"])


def test_an_attempt_that_was_killed_counts_until_its_last_word(store: ArtifactStore) -> None:
    one = step(work)
    store.path(one).mkdir(parents=True)
    (store.path(one) / ATTEMPTS_FILE).write_text(f'{{"seconds": 3.0, "began": {time.time() - 10}}}')
    assert account(store, one).spent().device_seconds == pytest.approx(2 * 3.0)  # it never said a word
    write_progress(store.path(one), done=1, total=2, unit="img", facts={})
    assert account(store, one).spent().device_seconds == pytest.approx(2 * 13.0, rel=0.05)
    run([one], store)
    record = store.record(one)
    assert record is not None
    assert record.spent["seconds"] == pytest.approx(13.0, rel=0.05)


def test_the_account_leaves_data_sets_out_and_knows_records_of_before(store: ArtifactStore) -> None:
    one = step(work)
    store.path(one).mkdir(parents=True)
    store.commit(one, seconds=5.0, provenance={})
    assert account(store, one).spent().device_seconds == pytest.approx(2 * 5.0)


def test_a_cap_is_reached_when_the_next_look_would_be_too_late(store: ArtifactStore) -> None:
    one = step(work)
    store.path(one).mkdir(parents=True)
    store.commit(one, seconds=1800.0, provenance={})  # an hour of one CPU
    own = account(store, one)
    own.check(Cap(), look_seconds=0.5)
    own.check(Cap(device_hours=1.1, money=1801), look_seconds=0.5)
    with pytest.raises(BudgetReached, match=r"--max-hours 1: 1\.000 CPU-hours are spent"):
        own.check(Cap(device_hours=1), look_seconds=0.5)
    with pytest.raises(BudgetReached, match=r"--max-cost 1700: 1800\.00 USD are spent"):
        own.check(Cap(money=1700), look_seconds=0.5)
    assert BudgetReached.exit_code == 75


@pytest.mark.parametrize("most", [0, -1, float("inf"), float("nan")])
def test_a_cap_that_is_none_is_refused(most: float) -> None:
    with pytest.raises(ValueError, match="--max-hours"):
        Cap(device_hours=most)
    with pytest.raises(ValueError, match="--max-cost"):
        Cap(money=most)


class Silent:
    """A tracker that is told everything and keeps nothing."""

    def is_complete(self, trial_key: str, digest: str) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Threads:
    """Runs all trials at once, in threads of this process."""

    concurrent = 2
    start_seconds = None

    def __init__(self) -> None:
        self.backend: Backend = LocalBackend()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def launch(self, trials: Sequence[Trial], run_trial: Callable[[Trial], None], *, name: str) -> dict[str, str]:
        failed: dict[str, str] = {}

        def run(trial: Trial) -> None:
            try:
                run_trial(trial)
            except Preempted as error:
                failed[trial.key] = str(error)

        threads = [threading.Thread(target=run, args=(trial,), daemon=True) for trial in trials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failed

    def stop(self) -> None:
        pass


class Purse:
    """Looks at the account, and at nothing else."""

    def __init__(self, own: Account, cap: Cap) -> None:
        self._own, self._cap, self.ended = own, cap, False

    def begin(self, missing: Mapping[Trial, Sequence[Step]], launcher: Launcher) -> None:
        assert all(steps for steps in missing.values())

    def look(self) -> None:
        self._own.check(self._cap, look_seconds=0.5)

    def end(self) -> None:
        self.ended = True


def test_at_its_cap_a_study_stops_with_its_state_kept_and_goes_on_with_a_higher_one(
    store: ArtifactStore, tmp_path: Path
) -> None:
    study = experiment(seeds=(0,))

    def plan(config: Config) -> dict[str, Step]:
        return {"train": step(train_until_asked, config.depth)}

    def call(cap: Cap) -> Purse:
        steps = [one for trial in study.trials() for one in plan(trial.config).values()]
        purse = Purse(account(store, *steps), cap)
        launcher: Any = Threads()
        run_experiment(
            study, plan, lambda config, sources: None, store=store, tracker=Silent(), launcher=launcher,  # type: ignore[arg-type]
            resources=TWO_CPUS, presentation=Presentation(), display=Display(), grace_seconds=20, oversight=purse,
        )  # fmt: skip
        return purse

    with pytest.raises(BudgetReached, match="the same command with a higher --max-hours goes on"):
        call(Cap(device_hours=1e-6))
    assert all((folder / "checkpoints").exists() for folder in (store.root / "train").iterdir())
    assert call(Cap(device_hours=1)).ended
    assert all((folder / "record.json").exists() for folder in (store.root / "train").iterdir())
