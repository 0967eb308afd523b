"""Who says what a study will cost, asks whether it shall, stops it at its cap, and tells how right the forecast was?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.backend import Backend, LocalBackend
from orchestrator.budget import Account, Cap
from orchestrator.errors import PapertableError
from orchestrator.experiment import Trial
from orchestrator.files import write_whole
from orchestrator.planner import Compared, compare
from orchestrator.prices import Price, read_price
from orchestrator.run import WATCH_SECONDS, Launcher
from orchestrator.signals import Background
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines.cli import Places
from pipelines.forecast import Forecast, Missing, forecast, guessed_seconds, is_small, room_here, sources_of, works_of

FORECAST_FILE = "forecast.json"
WAIT_SECONDS = 0.2


class Declined(PapertableError):
    """The user did not want what was planned."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What money a study costs, and what it may cost."""

    cap: Cap
    price: Price | None = None

    @classmethod
    def of(
        cls, resources: Resources, *, prices: str | None, instance: str | None, max_hours: float | None,
        max_cost: float | None,
    ) -> Limits:  # fmt: skip
        """From what a command line says. Raises ValueError for prices that are none, or not those of these workers."""
        if (prices is None) != (instance is None):
            raise ValueError("--prices FILE and --instance NAME: which machine of that file is meant? Name both")
        if max_cost is not None and prices is None:
            raise ValueError(f"--max-cost {max_cost:g}: without prices no cost is known: add --prices and --instance")
        price = None if prices is None or instance is None else read_price(prices, instance)
        if price is not None and resources.gpus and not price.instance.gpus:
            raise ValueError(
                f"--instance {price.name} has no GPUs, and --gpus-per-worker is {resources.gpus_per_worker:g}: name "
                f"one with GPUs, or leave that out"
            )
        return cls(cap=Cap(device_hours=max_hours, money=max_cost), price=price)


class StudyOversight:
    """Of one call that runs a study."""

    def __init__(
        self, steps: Iterable[Step], store: ArtifactStore, resources: Resources, limits: Limits, *, folder: Path,
        yes: bool,
    ) -> None:  # fmt: skip
        self._store, self._resources, self._limits = store, resources, limits
        self._account = Account(steps, store, resources, limits.price)
        self._folder, self._yes = folder, yes
        self._forecast: Forecast | None = None
        self._began = self._ended = 0.0

    def begin(self, missing: Mapping[Trial, Sequence[Step]], launcher: Launcher) -> None:
        """Say what it will cost, and ask on a terminal. Raises BudgetReached, and Declined."""
        self._account.check(self._limits.cap, look_seconds=0.0)
        self._forecast = planned(
            missing, self._store, self._resources, self._limits.price, launcher.backend, concurrent=launcher.concurrent,
            start_seconds=launcher.start_seconds,
        )  # fmt: skip
        print(f"the plan:\n{self._forecast.to_text()}", file=sys.stderr, flush=True)
        if not self._yes and sys.stdin.isatty() and not _agreed():
            raise Declined("nothing was run; --yes runs without asking")
        self._began = time.monotonic()

    def look(self) -> None:
        """Raises BudgetReached when the cap would be passed before the next look."""
        self._account.check(self._limits.cap, look_seconds=WATCH_SECONDS)

    def end(self) -> None:
        """Note when the cells had ended."""
        self._ended = time.monotonic()

    def told(self) -> str:
        """How right the forecast was, which is kept in the study's folder, too; empty where nothing was run."""
        if self._forecast is None:
            return ""
        compared = self._compared(self._forecast)
        _keep(self._folder / FORECAST_FILE, _as_json(self._forecast, compared))
        return comparison_text(compared)

    def _compared(self, found: Forecast) -> list[Compared]:
        records = {step.key: self._store.record(step) for step in found.steps.values() if step.key in found.estimates}
        seconds = {key: record.seconds for key, record in records.items() if record is not None}
        compared = compare(found.estimates, seconds)
        if seconds.keys() == found.estimates.keys():
            wall = self._ended - self._began
            compared.append(Compared(what="time", forecast=found.plan.wall_seconds, actual=wall))
        return compared


def planned(
    missing: Missing, store: ArtifactStore, resources: Resources, price: Price | None, backend: Backend, *,
    concurrent: int, start_seconds: float | None,
) -> Forecast:  # fmt: skip
    """The forecast of what cells lack. Other threads do the work, so that a signal is heard meanwhile."""
    with sources_of(missing, store, resources) as sources:
        works = works_of(missing, store, sources, resources)
        small = is_small(guessed_seconds(missing, works, resources, concurrent=concurrent))
        work = Background(
            lambda: forecast(
                missing, works, backend=None if small else backend, concurrent=concurrent, resources=resources,
                price=price, start_seconds=start_seconds,
            )
        )  # fmt: skip
        while not work.wait(WAIT_SECONDS):
            pass
        return work.value()


def cost_text(
    missing: Missing, store: ArtifactStore, places: Places, limits: Limits, *, cells_at_once: int | None, verbose: bool
) -> str:
    """The plan of what is missing, tried on Ray where the study is large enough to be worth the start of it."""
    if not any(missing.values()):
        return "nothing to run"
    resources = places.resources()
    here = cells_at_once or room_here(resources)
    with sources_of(missing, store, resources) as sources:
        works = works_of(missing, store, sources, resources)
        small = is_small(guessed_seconds(missing, works, resources, concurrent=here))
    if small and places.address is None:
        found = planned(missing, store, resources, limits.price, LocalBackend(), concurrent=here, start_seconds=None)
        return found.to_text()
    from orchestrator.ray_tune import TuneLauncher  # seconds to import: not for --help and --list

    with TemporaryDirectory() as folder:  # a dry run leaves nothing in the store
        storage = store.root / ".ray" if places.address is not None else Path(folder)
        launcher = TuneLauncher(
            storage, resources=resources, address=places.address, at_once=cells_at_once, verbose=verbose
        )
        with launcher:
            found = planned(
                missing, store, resources, limits.price, launcher.backend, concurrent=launcher.concurrent,
                start_seconds=launcher.start_seconds,
            )  # fmt: skip
            return found.to_text()


def comparison_text(compared: Sequence[Compared]) -> str:
    """Forecast beside what came of it, in seconds of devices, and of time."""
    lines = [f"{'':<22} {'forecast':>10} {'it took':>10} {'error':>8}"]
    for row in compared:
        error = "" if row.error is None else f"{row.error:+8.0%}"
        lines.append(f"{row.what:<22} {row.forecast:>9.0f}s {row.actual:>9.0f}s {error}")
    return "\n".join(lines)


def _agreed() -> bool:
    print("Run it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _as_json(found: Forecast, compared: Sequence[Compared]) -> dict[str, Any]:
    plan = found.plan
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": {**asdict(plan), "device": found.resources.device, "evaluation_share": plan.evaluation_share},
        "calibration": {
            "seconds": found.calibration.seconds,
            "side_by_side": found.calibration.side_by_side,
            "measured": sorted(timed.group for timed in found.calibration.tried),
            "extrapolated": sorted(timed.group for timed in found.work if timed not in found.calibration.tried),
            "assumed": list(found.calibration.assumed),
        },
        "compared": [{**asdict(row), "error": row.error} for row in compared],
    }


def _keep(file: Path, run: dict[str, Any]) -> None:
    """After those of earlier calls."""
    before = json.loads(file.read_text()) if file.exists() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps([*before, run], indent=1))
