"""The report is one file that needs nothing else, and takes nobody's word for HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.experiment import Trial
from orchestrator.history import History
from orchestrator.html_report import in_a_sentence, inlined, to_html
from orchestrator.step import Step
from orchestrator.store import ArtifactStore
from orchestrator.verdicts import Verdict
from tests.unit.test_experiment import Config
from tests.unit.test_table import table


def report(tmp_path: Path, *, hostile: str = "deep", pictures: tuple[Path, ...] = ()) -> str:
    made = table({"shallow": [3.0], hostile: [2.0]}, claims=(), against={hostile: "shallow"})
    store = ArtifactStore(str(tmp_path / "store"))
    return to_html(made, {}, store, pictures=pictures, command="python pipelines/ablation.py x --rows deep",
                   row_command="python pipelines/ablation.py x --rows {}".format)  # fmt: skip


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_names_the_rows_and_how_each_is_run_again(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert '<th scope="row">shallow</th>' in text
    assert '<td class="best">2.00 ± 0.10</td>' in text
    assert "The study: <code>python pipelines/ablation.py x --rows deep</code>" in text
    assert "shallow: <code>python pipelines/ablation.py x --rows shallow</code>" in text


def test_nothing_in_it_is_fetched_or_run(tmp_path: Path) -> None:
    picture = tmp_path / "lines.png"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(picture)
    text = report(tmp_path, pictures=(picture,))
    tags = Tags()
    tags.feed(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags.found}
    places = [value for _, of in tags.found for key, value in of.items() if key in ("src", "href")]
    assert len(places) == 1
    assert all(value and value.startswith("data:image/") for value in places)
    assert not re.search(r"url[(]|@import|https?://", text)
    assert all(of.get("alt") for tag, of in tags.found if tag == "img")


def test_a_row_named_like_a_tag_stays_text(tmp_path: Path) -> None:
    text = report(tmp_path, hostile="<img src=x onerror=alert(1)>")
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_what_a_row_changes_stands_beside_the_papers(tmp_path: Path) -> None:
    paper = {"shallow": {"loss": 7.5}, "deep": {"loss": 7.25}}
    made = table({"shallow": [3.0], "deep": [2.0]}, claims=(), against={"deep": "shallow"}, paper=paper)
    text = to_html(made, {}, ArtifactStore(str(tmp_path)), pictures=(), command="", row_command=str)
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", text.partition('id="changes"')[2])
    assert cells[6:12] == ["deep", "shallow", "loss", "-0.25", "-1.00 ± 0.28", "shown"]


def test_columns_stand_below_the_name_of_their_group(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert '<th scope="colgroup" colspan="1" class="group">paper</th>' in text
    assert '<th scope="colgroup" colspan="2" class="group">ours</th>' in text
    assert '<th scope="col">loss</th><th scope="col">loss</th><th scope="col">FD</th>' in text


def test_a_page_of_many_large_pictures_can_still_be_sent(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1800, 3), dtype=np.uint8)
    pictures = tuple(tmp_path / f"{number}.png" for number in range(6))
    for path in pictures:
        Image.fromarray(noise).save(path)
    assert len(report(tmp_path, pictures=pictures)) < 5_000_000


def test_what_it_took_counts_all_attempts_and_names_what_was_taken_up_again(tmp_path: Path) -> None:
    store, plans = ArtifactStore(str(tmp_path)), {}
    for number, (spent, begun) in enumerate((({"seconds": 3600, "cpus": 2, "gpus": 0.5}, 3), ({}, 1))):
        step = Step(name=f"train{number}", version=1, config=Config(), inputs={}, run=lambda *_: None)
        store.path(step).mkdir(parents=True)
        for _ in range(begun):
            History(store.path(step)).add(resumed_at=0, workers=1, damage=[])
        store.commit(step, seconds=60, provenance={"commit": "abc", "cpus": 2}, spent=spent)
        plans[Trial("deep", number, Config())] = {"train": step}
    made = table({"shallow": [3.0], "deep": [2.0]})
    text = to_html(made, plans, store, pictures=(), command="", row_command=str)
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line) for line in text.partition('id="took"')[2].splitlines()]
    assert ["train0", "1", "1:00:00", "2.000", "0.500"] in rows
    assert ["train1", "1", "0:01:00", "not noted", "not noted"] in rows
    assert ["all", "2", "1:01:00", "not noted", "not noted"] in rows
    assert "Taken up again after a stop or a loss: 1 of 2 trainings, 2 times in all." in text
    assert "<li>commit: abc</li>" in text


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 10_000_000
    assert len(inlined(tmp_path / "samples.png")) < 2_500_000


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([], "The paper prints no orderings that this table could show."),
        (["shown", "not resolved", "shown"], "Of the paper's 3 orderings: 2 shown, 1 not resolved."),
    ],
)
def test_the_verdict_is_a_sentence(outcomes: list[str], said: str) -> None:
    assert in_a_sentence([Verdict("c", "loss", outcome, "") for outcome in outcomes]) == said  # type: ignore[arg-type]
