"""How right is a forecast? Ten small studies, each foreseen and then run.

PYTHONPATH=. python benchmarks/forecast.py > docs/results/forecast.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SMALL = {"nll.images": 64, "sample.count": 128, "metrics.kid_subset_size": 64}
STUDIES: dict[str, tuple[str, str, tuple[str, ...], dict[str, object]]] = {
    "two losses": ("ablation.py", "iddpm-cifar10", ("4K cosine simple", "4K cosine hybrid"), {"train.images": 12_800}),
    "importance": ("ablation.py", "iddpm-cifar10", ("4K cosine vlb",), {"train.images": 12_800}),
    "longer": ("ablation.py", "iddpm-cifar10", ("4K cosine simple",), {"train.images": 38_400}),
    "many samples": ("ablation.py", "iddpm-cifar10", ("4K cosine simple",),
                     {"train.images": 6_400, "sample.count": 1024}),
    "much likelihood": ("ablation.py", "iddpm-cifar10", ("4K cosine simple",),
                        {"train.images": 6_400, "nll.images": 358}),
    "64 channels": ("ablation.py", "iddpm-cifar10", ("4K cosine simple", "4K cosine hybrid"),
                    {"train.images": 6_400, "model.model_channels": 64}),
    "scaling": ("scaling.py", "iddpm-scaling", ("32 channels", "64 channels"), {"train.images": 6_400}),
    "guidance": ("guidance.py", "adm-guidance", ("conditional", "conditional, s = 1"), {"train.images": 6_400}),
    "steps": ("sampling_steps.py", "iddpm-sampling-steps", ("L_hybrid, ancestral, 25", "L_hybrid, ancestral, 100"),
              {"train.images": 6_400}),
    "norm": ("architecture.py", "adm-norm", (), {"train.images": 6_400}),
}  # fmt: skip
VARIED_BY_ROWS = {"scaling": ("train.images",)}


def foreseen_and_run(name: str, store: Path) -> dict[str, dict[str, float]]:
    """What forecast.json says at the end."""
    file, study, rows, settings = STUDIES[name]
    settings = {key: value for key, value in {**SMALL, **settings}.items() if key not in VARIED_BY_ROWS.get(name, ())}
    words = [word for row in rows for word in ("--rows", row)]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        str(ROOT / "pipelines" / file),
        study,
        "--forecast",
        "--yes",
        "--store",
        str(store),
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{name}: {ended.stdout[-500:]}{ended.stderr[-1500:]}")
    (kept,) = store.glob("studies/*/forecast.json")
    found: dict[str, dict[str, float]] = json.loads(kept.read_text())
    return found


def main() -> None:
    """Run them all, in stores of their own."""
    print("# How right a forecast is\n\n`PYTHONPATH=. python benchmarks/forecast.py`\n")
    print("Ten small studies on digits, measured for some seconds and then run; seconds of work, and how far off.\n")
    print(
        "| study | forecast | actual | off by | training | sampling | likelihood |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    off = []
    for name in STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            said = foreseen_and_run(name, Path(folder))
        misses = said["misses"]
        off.append(abs(misses["all"]))
        parts = [f"{misses[kind]:+.0%}" if kind in misses else "" for kind in ("training", "sampling", "likelihood")]
        sums = [sum(said[key].values()) for key in ("seconds", "actual_seconds")]
        print(f"| {name} | {sums[0]:.0f} | {sums[1]:.0f} | {misses['all']:+.0%} | {' | '.join(parts)} |", flush=True)
    print(f"\nMedian of how far off: {median(off):.0%}.")


if __name__ == "__main__":
    main()
