"""What people look at, as a browser shows it: the report of a study, and MLflow's own page that compares runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.html_report import to_html
from orchestrator.mlflow_tracker import MlflowTracker
from orchestrator.store import ArtifactStore
from orchestrator.tracker import StudyInfo, TrialInfo
from tests.small_study import MlflowServer
from tests.unit.test_table import table

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]
WIDTH, HEIGHT = 1400, 1600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server.uri
    server.kill()


def opened(url: str, folder: Path, *, milliseconds: int = 0) -> tuple[str, Image.Image]:
    """The page's text once its scripts have run for so long, and how it looks. Nothing but loopback can be reached."""
    assert CHROMIUM is not None
    common = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        *([f"--virtual-time-budget={milliseconds}"] if milliseconds else []),
    ]  # fmt: skip
    page = subprocess.run([*common, "--dump-dom", url], capture_output=True, text=True, timeout=180, check=True).stdout
    picture = folder / "page.png"
    subprocess.run([*common, f"--screenshot={picture}", url], capture_output=True, timeout=180, check=True)
    text = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]+>", " ", text)), Image.open(picture)


def test_the_report_shows_its_table_verdicts_and_pictures(tmp_path: Path) -> None:
    red = np.zeros((200, 1000, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "lines.png")
    made = table({"shallow": [3.0], "deep": [2.0]}, against={"deep": "shallow"}, paper={"deep": {"loss": 7.25}})
    store = ArtifactStore(str(tmp_path / "store"))
    report = tmp_path / "report.html"
    report.write_text(to_html(made, {}, store, pictures=[tmp_path / "lines.png"], command="python x.py",
                              row_command="python x.py --rows {}".format))  # fmt: skip
    text, picture = opened(report.as_uri(), tmp_path)
    assert picture.size == (WIDTH, HEIGHT)
    for said in (
        "Of the paper's one ordering: 1 shown.",
        "2.00 ± 0.10",
        "7.25",
        "deep wins",
        "python x.py --rows deep",
    ):
        assert said in text
    pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == [255, 0, 0]).all(axis=-1).sum() > 100_000  # the picture is there, at its full width


@pytest.mark.mlflow
def test_mlflows_page_compares_two_rows_by_their_names_settings_and_metrics(server: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(server, artifact_root=tmp_path / "artifacts")
    tracker.open_study(StudyInfo(name="depths", key="s", title="Depths", question="?", params={}, tags={}))
    for number, row in enumerate(("shallow", "deep")):
        trial = TrialInfo(
            key=row, identity=row, name=f"{row} · seed 0", variant=row, seed=0, params={"model.depth": 4 * number + 1},
            tags={},
        )  # fmt: skip
        tracker.open_trial(trial)
        metrics = {"nll_bpd": 3.5 - number / 4}
        tracker.finish_trial(row, status="finished", metrics=metrics, notes=[], files={}, digest="d")
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("depths")
    assert experiment is not None
    children = client.search_runs([experiment.experiment_id], "tags.`papertable.role` = 'trial'")
    runs = ",".join(f'"{run.info.run_id}"' for run in children)
    page = f'{server}/#/compare-runs?runs=[{runs}]&experiments=["{experiment.experiment_id}"]'
    text, _ = opened(page, tmp_path, milliseconds=30_000)
    for said in ("shallow · seed 0", "deep · seed 0", "model.depth", "nll_bpd", "3.25", "3.5"):
        assert said in text
