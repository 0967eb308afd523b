"""How far off are forecasts of what a study takes? Small studies of many kinds, each forecast, run, and compared.

Printed: device-seconds and time of each, and the median of the errors. Each study has a store of its own. Arguments are
numbers of studies, counted from 1, where not all are wanted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIMPLE, HYBRID, VLB = "1K linear simple", "4K cosine hybrid", "4K cosine vlb"
FEW = {"sample.count": "64", "metrics.kid_subset_size": "32", "nll.images": "64"}
ALL_TERMS = {"nll.terms.kind": "all", "nll.images": "16"}


@dataclass(frozen=True)
class Study:
    """What is run."""

    what: str
    rows: tuple[str, ...]
    settings: dict[str, str]
    options: tuple[str, ...] = ()

    def command(self, store: str) -> list[str]:
        """Its command line."""
        rows = [word for row in self.rows for word in ("--rows", row)]
        settings = [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        script = str(ROOT / "pipelines" / "ablation.py")
        return [sys.executable, script, "iddpm-cifar10", "--store", store, *rows, *self.options, *settings]


STUDIES = (
    Study("one row", (SIMPLE,), {"train.images": "12800"}),
    Study("two rows", (SIMPLE, HYBRID), {"train.images": "6400", **FEW}),
    Study("importance-sampled t", (VLB,), {"train.images": "12800", **FEW}),
    Study("a network twice as wide", (HYBRID,), {"train.images": "3840", "model.model_channels": "64", **FEW}),
    Study("mostly sampling", (HYBRID,), {"train.images": "1280", "sample.sampler.respacing": "150"}),
    Study("DDIM", (SIMPLE,), {"train.images": "6400", "sample.sampler.kind": "ddim", "sample.sampler.respacing": "50"}),
    Study("all terms of the bound", (SIMPLE,), {"train.images": "1280", **FEW, **ALL_TERMS}),
    Study("a classifier sees the images", (HYBRID,), {"train.images": "6400", **FEW, "features.kind": "classifier"}),
    Study("two seeds", (SIMPLE,), {"train.images": "6400", **FEW}, ("--seeds", "2")),
    Study("two workers", (HYBRID,), {"train.images": "12800", **FEW}, ("--workers", "2")),
)  # fmt: skip


def compared(study: Study) -> dict[str, dict[str, Any]]:
    """What was forecast and what it took, by kind of work."""
    with tempfile.TemporaryDirectory() as store:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(study.command(store), capture_output=True, text=True, env=environment)
        if ended.returncode:
            raise RuntimeError(f"{study.what}: {ended.stderr}")
        (file,) = Path(store).glob("studies/*/forecast.json")
        (run,) = json.loads(file.read_text())
    return {row["what"]: row for row in run["compared"]}


def line(study: Study, found: dict[str, dict[str, Any]]) -> str:
    """Of the table."""
    cells = [
        f"{found[what]['forecast']:.0f} | {found[what]['actual']:.0f} | {found[what]['error']:+.0%}"
        for what in ("all", "time")
    ]
    return f"| {study.what} | {' | '.join(cells)} |"


def main() -> None:
    """Run the studies, print the table, and the medians."""
    chosen = [STUDIES[int(number) - 1] for number in sys.argv[1:]] or STUDIES
    print(
        f"{os.cpu_count()} CPU cores, {os.getloadavg()[2]:.1f} processes waiting for them or running, before it began\n"
    )
    print("| study | forecast, CPU-s | it took | error | forecast, s | it took | error |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    errors: dict[str, list[float]] = {"all": [], "time": []}
    for study in chosen:
        found = compared(study)
        print(line(study, found), flush=True)
        for what, of in errors.items():
            of.append(abs(found[what]["error"]))
    medians = {what: statistics.median(of) for what, of in errors.items()}
    print(f"\nMedian error: {medians['all']:.0%} of CPU-seconds, {medians['time']:.0%} of time.")


if __name__ == "__main__":
    main()
