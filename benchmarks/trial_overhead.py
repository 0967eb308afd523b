"""What does Ray cost a trial? Seconds a nested trial adds around its work, with Ray's defaults and with our settings.

Each round runs one Tune trial that holds one Ray Train run of an empty function, once a setting, interleaved; every
measurement is a fresh process, because Ray reads its settings when it starts. Printed: medians, and their ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3


def nothing(spmd: Any, payload: dict[str, str]) -> float:
    """The work of the trial: only the time at which it began."""
    return time.time()


def measure(defaults: bool) -> dict[str, float]:
    """One trial in this process: seconds to its first step, and seconds from there to its end."""
    from orchestrator import ray_backend
    from orchestrator.ray_tune import TuneLauncher
    from orchestrator.step import Resources

    if defaults:
        quiet = {name: value for name, value in ray_backend.ENVIRONMENT.items() if name.startswith(("TUNE", "RAY_AIR"))}
        ray_backend.ENVIRONMENT = quiet
    storage = Path(tempfile.mkdtemp())
    times = storage / "times"

    class Trial:
        key = "trial"

    with TuneLauncher(storage, resources=Resources(), verbose=False) as launcher:
        backend = launcher.backend
        began = time.time()

        def run_trial(trial: Trial) -> None:
            times.write_text(str(backend.spmd(nothing, {}, name="nothing", resources=Resources())))

        failed = launcher.launch([Trial()], run_trial, name="overhead")  # type: ignore[list-item]
        ended = time.time()
    assert not failed, failed
    first_step = float(times.read_text())
    return {"to first step": first_step - began, "to the end": ended - first_step}


def main() -> None:
    """Interleave the two settings and print the table."""
    results: dict[str, list[dict[str, float]]] = {"Ray's defaults": [], "papertable": []}
    for _ in range(ROUNDS):
        for setting, measured in results.items():
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            ended = subprocess.run(
                [sys.executable, __file__, setting], capture_output=True, text=True, check=True, env=environment
            )
            measured.append(json.loads(ended.stdout.splitlines()[-1]))
    for phase in ("to first step", "to the end"):
        medians = {setting: statistics.median(m[phase] for m in measured) for setting, measured in results.items()}
        ratio = medians["Ray's defaults"] / medians["papertable"]
        print(f"{phase:<14}", "  ".join(f"{s}: {value:5.1f} s" for s, value in medians.items()), f"  ratio {ratio:.1f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(defaults=sys.argv[1] != "papertable")))
    else:
        main()
