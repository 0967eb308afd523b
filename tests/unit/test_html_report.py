"""The report is one file that needs nothing else, and takes nobody's word for HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.html_report import in_a_sentence, inlined, to_html
from orchestrator.store import ArtifactStore
from orchestrator.verdicts import Verdict
from tests.unit.test_table import table


def report(tmp_path: Path, *, hostile: str = "deep", pictures: tuple[Path, ...] = ()) -> str:
    made = table({"shallow": [3.0], hostile: [2.0]}, claims=(), against={hostile: "shallow"})
    store = ArtifactStore(str(tmp_path / "store"))
    return to_html(made, {}, store, pictures=pictures, command="python pipelines/ablation.py x --rows deep",
                   row_command="python pipelines/ablation.py x")  # fmt: skip


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
