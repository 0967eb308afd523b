"""Shared by all tests: one thread (bits matter), no network, no Ray of somebody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Ray's workers are processes of their own, and import the functions that tests hand them.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from tests.chaos.guarantees import Finding, record

torch.set_num_threads(1)
# A busy machine makes single examples slow; the number of examples is what bounds a property test's time.
hypothesis.settings.register_profile("papertable", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("papertable")
# Shapes in annotations are checked, in this process alone. diffusion.metrics names none, and checking its many small
# calls would cost as much as all the others.
MATHEMATICS = Path(__file__).parents[1] / "diffusion"
install_import_hook([f"diffusion.{module.stem}" for module in MATHEMATICS.glob("*.py")], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests decode no images into the user's cache."""
    os.environ["PAPERTABLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """A fault that did not hold gets its row, too, also where its test ended before it could say so."""
    report: pytest.TestReport = yield
    if report.failed and item.get_closest_marker("chaos") is not None:
        why = "" if call.excinfo is None else str(call.excinfo.value).partition("\n")[0]
        sentence = item.name.removeprefix("test_").replace("_", " ")
        record(Finding(f"NOT HELD: {sentence} ({report.when})", 1, 0, notes=why[:200]))
    return report
