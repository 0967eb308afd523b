"""The table and its verdicts, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import views
from orchestrator.experiment import Axis, Better, Claim, Column, Experiment, Extreme, PaperColumn, Trial
from orchestrator.latex import to_latex
from orchestrator.plots import curves, look, scatter
from orchestrator.protocols import MEASURED_WITH, MixedProtocols, protocol_fingerprint
from orchestrator.step import JOURNAL_FILE, Step
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable, FailedTrial, TrialResult
from orchestrator.verdicts import Outcome
from orchestrator.views import Presentation, write_views
from tests.unit.test_experiment import Config

PAPER = (PaperColumn(key="loss", label="paper loss"),)
DEEP_WINS = Better(text="deep wins", metric="loss", better="deep", worse="shallow")
COLUMNS = (
    Column(metric="loss", label="loss", format=".2f", best="min", error="loss_se", count="images", paper="loss"),
    Column(metric="fd", label="FD", format=".1f", best="min"),
)


def table(
    losses: Mapping[str, list[float]],
    *,
    claims: tuple[Claim, ...] = (DEEP_WINS,),
    se: float = 0.1,
    failed: tuple[str, ...] = (),
    protocol: Mapping[str, str] | None = None,
    notes: Mapping[str, tuple[str, ...]] | None = None,
    mixed_protocols: MixedProtocols = "refuse",
    **parts: Any,
) -> ComparisonTable:
    seeds = tuple(range(max(len(values) for values in losses.values())))
    rows: Mapping[str, Any] = {variant: {"depth": number + 1} for number, variant in enumerate(losses)}
    experiment = Experiment(
        name="depths", title="Depths", question="?", source="Nobody 2020, table 1", base=Config(depth=99),
        variants=rows, seeds=seeds, columns=COLUMNS, claims=claims,
        **{"paper_columns": PAPER, "paper": {variant: {"loss": 7.25} for variant in rows}, **parts},
    )  # fmt: skip
    results: list[TrialResult | FailedTrial] = []
    for variant, values in losses.items():
        for seed, value in enumerate(values):
            if variant in failed:
                results.append(FailedTrial(variant, seed, "loss is nan at t = 3"))
                continue
            metrics = {"loss": value, "loss_se": se, "fd": 10 * value, "images": 360.0}
            measured = {"loss": {"images": (protocol or {}).get(variant, "360")}}
            said = (notes or {}).get(variant, ())
            results.append(TrialResult(variant, seed, metrics, measured, said))
    return ComparisonTable(experiment, results, mixed_protocols=mixed_protocols)


def outcome(losses: Mapping[str, list[float]], claim: Claim = DEEP_WINS, se: float = 0.1) -> tuple[Outcome, str]:
    (verdict,) = table(losses, claims=(claim,), se=se).verdicts
    return verdict.outcome, verdict.why


def test_at_one_seed_a_difference_counts_from_two_standard_errors() -> None:
    # Two independent errors of 0.1 make 0.1414 for the difference; twice that is 0.283.
    assert outcome({"shallow": [2.0], "deep": [1.7]}) == ("shown", "-0.30 ± 0.28")
    assert outcome({"shallow": [2.0], "deep": [1.75]}) == ("not resolved", "-0.25 ± 0.28")
    assert outcome({"shallow": [2.0], "deep": [2.25]})[0] == "not resolved"
    assert outcome({"shallow": [2.0], "deep": [2.3]}) == ("not shown", "+0.30 ± 0.28")


def test_without_an_error_only_the_sign_counts_and_that_is_said() -> None:
    claim = Better(text="c", metric="fd", better="deep", worse="shallow")
    assert outcome({"shallow": [2.0], "deep": [1.99]}, claim) == ("shown", "-0.1 (one seed, no interval)")
    assert outcome({"shallow": [2.0], "deep": [2.01]}, claim)[0] == "not shown"


def test_with_seeds_the_paired_differences_decide() -> None:
    # Differences -0.2, -0.3, -0.4: mean -0.3, sd 0.1, t(0.975, 2) = 4.303, so 4.303 * 0.1 / sqrt(3) = 0.248.
    assert outcome({"shallow": [2.0, 3.0, 4.0], "deep": [1.8, 2.7, 3.6]}) == ("shown", "-0.30 ± 0.25")
    # Differences -0.1, -0.3, -0.5: the half width doubles to 0.497.
    assert outcome({"shallow": [2.0, 3.0, 4.0], "deep": [1.9, 2.7, 3.5]}) == ("not resolved", "-0.30 ± 0.50")


def test_best_of_all_must_beat_every_row() -> None:
    best = Extreme(text="best", metric="loss", variant="deep", which="best")
    assert outcome({"a": [3.0], "b": [2.0], "deep": [1.0]}, best) == ("shown", "-1.00 ± 0.28, against b")
    assert outcome({"a": [3.0], "b": [1.1], "deep": [1.0]}, best)[0] == "not resolved"
    assert outcome({"a": [3.0], "b": [0.5], "deep": [1.0]}, best) == ("not shown", "+0.50 ± 0.28, against b")


def test_the_pair_that_decides_is_the_pair_that_is_named() -> None:
    best = Extreme(text="best", metric="loss", variant="deep", which="best")
    # Against a the advantage is smaller but certain; against b it is larger and far from certain.
    said = outcome({"a": [1.30, 1.32, 1.29], "b": [1.0, 2.0, 1.9], "deep": [1.0, 1.01, 0.99]}, best)
    assert said[0] == "not resolved"
    assert said[1].endswith("against b")


def test_worst_of_all_must_lose_to_every_row() -> None:
    worst = Extreme(text="worst", metric="loss", variant="deep", which="worst")
    assert outcome({"a": [1.0], "b": [2.0], "deep": [3.0]}, worst) == ("shown", "-1.00 ± 0.28, against b")
    assert outcome({"a": [1.0], "b": [4.0], "deep": [3.0]}, worst)[0] == "not shown"


def test_a_row_that_failed_leaves_no_verdict_and_says_why_in_its_cell() -> None:
    failed = table({"shallow": [2.0], "deep": [1.0]}, failed=("deep",))
    assert failed.any_failed
    (verdict,) = failed.verdicts
    assert (verdict.outcome, verdict.why) == ("no verdict", "deep FAILED")
    assert "| deep | 7.25 | FAILED |" in failed.to_markdown()
    for text in (failed.to_markdown(), failed.to_text()):
        assert "deep: seed 0 FAILED (loss is nan at t = 3)" in text
    assert list(csv.DictReader(io.StringIO(failed.to_csv())))[1]["failed"] == "loss is nan at t = 3"


def test_a_seed_that_failed_is_named_and_the_others_still_count() -> None:
    whole = table({"shallow": [2.0, 2.1], "deep": [1.0, 1.1]})
    results = [
        *[r for r in whole.results if (r.variant, r.seed) != ("deep", 1)],
        FailedTrial("deep", 1, "no memory\n..."),
    ]
    partly = ComparisonTable(whole.experiment, results)
    assert partly.any_failed
    # One seed of two has no interval over seeds, and no other kind of it may stand in its place.
    assert "| deep (1 of 2 seeds) | 7.25 | 1.00 | 10.0 |" in partly.to_markdown()
    assert partly.verdicts[0].why == "-1.00 ± 0.28"  # by the standard errors of the seed both have
    assert "deep: seed 1 FAILED (no memory)" in partly.footnotes()
    assert partly.verdicts[0].outcome == "shown"


def test_numbers_stand_with_their_error_count_and_the_papers() -> None:
    (line,) = [
        line for line in table({"shallow": [2.0], "deep": [1.0]}).to_markdown().splitlines() if "| deep |" in line
    ]
    assert line == "| deep | 7.25 | 1.00 ± 0.10 | 10.0 | 360 |"


def test_means_over_seeds_stand_with_their_interval() -> None:
    # Of 1 and 3: sd 1.414, t(0.975, 1) = 12.706, so the half width is 12.706.
    markdown = table({"shallow": [2.0, 2.5], "deep": [1.0, 3.0]}).to_markdown()
    assert "| deep | 7.25 | 2.00 ± 12.71 |" in markdown


def test_rows_measured_differently_cannot_stand_in_one_column() -> None:
    with pytest.raises(
        ValueError, match="'shallow' and 'deep' cannot stand in one column: images is '360' in one and '16'"
    ):
        table({"shallow": [2.0], "deep": [1.0]}, protocol={"deep": "16"})


MIXED = {"a": [3.0], "b": [2.0], "shallow": [2.5], "deep": [1.0]}
IN_16_BITS = {"b": "16", "deep": "16"}


def test_rows_measured_differently_are_marked_where_that_is_asked_for() -> None:
    marked = table(MIXED, protocol=IN_16_BITS, mixed_protocols="mark")
    for text in (marked.to_text(), marked.to_markdown()):
        assert "1.00 ± 0.10 [a]" in text
        assert "2.00 ± 0.10 [a]" in text
        assert "2.50 ± 0.10 [" not in text
    own, first = (protocol_fingerprint({"images": images}) for images in ("16", "360"))
    assert f"[a] loss [{own}] of b, deep, measured otherwise than of a: images: 16 vs 360" in marked.footnotes()
    assert marked.records()[3]["loss"] == "1.00 ± 0.10 [a]"
    rows = csv.DictReader(io.StringIO(marked.to_csv()))
    assert [row["loss_protocol"] for row in rows] == [first, own, first, own]
    # Each protocol has a letter of its own.
    several = table(MIXED, protocol={"b": "16", "deep": "8"}, mixed_protocols="mark").to_text()
    assert "2.00 ± 0.10 [a]" in several
    assert "1.00 ± 0.10 [b]" in several


def test_a_claim_about_rows_measured_differently_is_not_comparable() -> None:
    best = Extreme(text="best", metric="loss", variant="deep", which="best")
    alike = Better(text="b is better", metric="loss", better="deep", worse="b")
    marked = table(MIXED, claims=(DEEP_WINS, best, alike), protocol=IN_16_BITS, mixed_protocols="mark")
    assert [verdict.outcome for verdict in marked.verdicts] == ["not comparable", "not comparable", "shown"]
    assert marked.verdicts[0].why == "deep and shallow were measured by different protocols"


def test_what_a_table_is_about_may_differ_in_its_rows_and_is_compared_all_the_same() -> None:
    apart = {"shallow": "100", "deep": "200"}
    about = table({"shallow": [2.0], "deep": [1.0]}, protocol=apart, varies=("images",))
    (verdict,) = about.verdicts
    assert verdict.outcome == "shown"
    (note,) = [note for note in about.footnotes() if note.startswith("loss [")]
    assert note.endswith("; by row: images")
    with pytest.raises(ValueError, match="cannot stand in one column: images"):
        table({"shallow": [2.0], "deep": [1.0]}, protocol=apart, varies=("sampler",))


def test_models_of_others_stand_below_ours_with_the_papers_numbers_alone() -> None:
    with_others = table({"shallow": [2.0], "deep": [1.0]}, literature={"Elsewhere": {"loss": 1.5}})
    lines = with_others.to_markdown().splitlines()
    assert "| Elsewhere | 1.50 |  |  |  |" in lines
    assert "Elsewhere" not in with_others.to_csv()


def test_seeds_of_a_row_that_were_measured_differently_have_no_mean_even_marked() -> None:
    whole = table({"shallow": [2.0, 2.1], "deep": [1.0, 1.1]})
    odd = replace(whole.results[3], protocol={"loss": {"images": "16"}})
    with pytest.raises(ValueError, match=r"'deep' has no mean over seeds: images is '360' in one and '16' in another"):
        ComparisonTable(whole.experiment, [*whole.results[:3], odd], mixed_protocols="mark")


def test_rows_measured_with_other_libraries_stand_together_and_are_named() -> None:
    whole = table({"shallow": [2.0], "deep": [1.0]})
    protocols = [{"loss": {"images": "360", MEASURED_WITH: {"nll": f"torch {number}"}}} for number in (1, 2)]
    results = [replace(result, protocol=said) for result, said in zip(whole.results, protocols, strict=True)]
    upgraded = ComparisonTable(whole.experiment, results)
    assert upgraded.verdicts[0].outcome == "shown"
    said = "nll: not measured with the same libraries in all rows: torch 1 (shallow); torch 2 (deep)"
    assert said in upgraded.footnotes()


def test_notes_name_their_rows_and_protocols_are_spelled_once() -> None:
    lines = table({"shallow": [2.0], "deep": [1.0]}, notes={"deep": ("never warmed up",)}).footnotes()
    assert "deep: never warmed up" in lines
    assert [line for line in lines if line.endswith("images 360")] == [
        f"loss [{protocol_fingerprint({'images': '360'})}]: images 360"
    ]
    assert lines[-1] == "Paper: Nobody 2020, table 1."


def test_the_csv_has_a_line_for_every_cell() -> None:
    rows = list(csv.DictReader(io.StringIO(table({"shallow": [2.0, 2.5], "deep": [1.0, 3.0]}).to_csv())))
    assert [(row["variant"], row["seed"], row["loss"], row["paper_loss"]) for row in rows] == [
        ("shallow", "0", "2.0", "7.25"), ("shallow", "1", "2.5", "7.25"),
        ("deep", "0", "1.0", "7.25"), ("deep", "1", "3.0", "7.25"),
    ]  # fmt: skip


def test_a_table_that_is_too_wide_has_the_papers_numbers_below_it() -> None:
    columns = tuple(PaperColumn(key=f"k{number}", label=f"paper number {number}") for number in range(9))
    wide = table({"shallow": [2.0], "deep": [1.0]}, paper_columns=columns, paper={"deep": {"k3": 7.25}})
    text = wide.to_text()
    ours, _, papers = text.partition("The paper's numbers")
    assert max(map(len, text.splitlines())) <= 132
    assert "2.00 ± 0.10" in ours
    assert "7.25" in papers
    assert "shallow" not in papers.partition("The paper's orderings")[0]


def change(shallow: float, deep: float, losses: Mapping[str, list[float]]) -> tuple[str, str, Outcome]:
    """What the deep row changes against the shallow one: in the paper, here, and what that shows."""
    paper = {"shallow": {"loss": shallow}, "deep": {"loss": deep}}
    (found,) = table(losses, paper=paper, against={"deep": "shallow"}).changes
    assert (found.row, found.against, found.metric) == ("deep", "shallow", "loss")
    return found.paper, found.ours, found.outcome


def test_a_row_changes_our_number_as_it_changes_the_papers_or_not() -> None:
    # One seed: twice the two independent errors of 0.1 is 0.283.
    assert change(2.0, 1.5, {"shallow": [3.0], "deep": [2.0]}) == ("-0.50", "-1.00 ± 0.28", "shown")
    assert change(2.0, 1.5, {"shallow": [3.0], "deep": [4.0]}) == ("-0.50", "+1.00 ± 0.28", "not shown")
    assert change(2.0, 1.5, {"shallow": [3.0], "deep": [2.9]}) == ("-0.50", "-0.10 ± 0.28", "not resolved")


def test_a_change_for_the_worse_is_signed_like_the_papers() -> None:
    assert change(1.5, 2.0, {"shallow": [3.0], "deep": [4.0]}) == ("+0.50", "+1.00 ± 0.28", "shown")
    assert change(1.5, 2.0, {"shallow": [3.0], "deep": [2.0]}) == ("+0.50", "-1.00 ± 0.28", "not shown")


def test_changes_over_shared_seeds_are_paired() -> None:
    # Differences -0.2, -0.3, -0.4: t(0.975, 2) = 4.303, so 4.303 * 0.1 / sqrt(3) = 0.248; with twice the spread 0.497.
    assert change(2.0, 1.5, {"shallow": [2.0, 3.0, 4.0], "deep": [1.8, 2.7, 3.6]}) == (
        "-0.50", "-0.30 ± 0.25", "shown",
    )  # fmt: skip
    assert change(2.0, 1.5, {"shallow": [2.0, 3.0, 4.0], "deep": [1.9, 2.7, 3.5]}) == (
        "-0.50", "-0.30 ± 0.50", "not resolved",
    )  # fmt: skip


def test_where_the_paper_has_no_change_or_no_number_nothing_is_judged() -> None:
    losses = {"shallow": [3.0], "deep": [2.0]}
    assert not table(losses, against={"deep": "shallow"}).changes  # 7.25 twice
    assert not table(losses, against={"deep": "shallow"}, paper={"deep": {"loss": 7.0}}).changes
    lost = table(losses, against={"deep": "shallow"}, failed=("deep",),
                 paper={"shallow": {"loss": 2.0}, "deep": {"loss": 1.0}})  # fmt: skip
    assert [(one.ours, one.outcome) for one in lost.changes] == [("deep FAILED", "no verdict")]


def test_changes_stand_in_the_markdown_and_not_on_the_terminal() -> None:
    paper = {"shallow": {"loss": 2.0}, "deep": {"loss": 1.5}}
    made = table({"shallow": [3.0], "deep": [2.0]}, paper=paper, against={"deep": "shallow"})
    assert "| deep | shallow | loss | -0.50 | -1.00 ± 0.28 | **shown** |" in made.to_markdown()
    assert "-0.50" not in made.to_text()


def test_only_a_best_whose_difference_to_all_others_is_resolved_is_bold() -> None:
    clear, close = table({"shallow": [3.0], "deep": [2.0]}), table({"shallow": [3.0], "deep": [2.9]})
    assert r"\textbf{2.00 $\pm$ 0.10}" in to_latex(clear)
    assert "textbf" not in to_latex(close)
    assert not any(clear.is_best(row, COLUMNS[1]) for row in ("shallow", "deep"))  # of FD no error is known
    seeds = table({"shallow": [3.0, 3.1], "deep": [2.0, 2.11]})
    assert seeds.is_best("deep", COLUMNS[1])  # differences -10 and -9.9: 12.7 * 0.05 is less
    assert not table({"shallow": [3.0, 3.1], "deep": [2.0, 3.2]}).is_best("deep", COLUMNS[0])


def test_a_best_by_one_seed_without_an_error_is_not_bold_beside_rows_of_several() -> None:
    whole = table({"shallow": [3.0, 3.1], "deep": [2.0, 2.11]})
    one_seed = [result for result in whole.results if (result.variant, result.seed) != ("deep", 1)]
    assert not ComparisonTable(whole.experiment, one_seed).is_best("deep", COLUMNS[1])


def test_in_latex_numbers_have_a_minus_and_columns_their_groups() -> None:
    text = to_latex(table({"a-1": [-2.5], "b": [-1.0]}, claims=()))
    assert r"a-1 & 7.25 & \textbf{$-$2.50 $\pm$ 0.10} & $-$25.0 \\" in text
    assert r" & \multicolumn{1}{c}{paper} & \multicolumn{2}{c}{ours} \\" in text
    assert "    \\cmidrule(lr){2-2}\\cmidrule(lr){3-4}\n     & loss & loss & FD \\\\\n" in text
    assert "% Paper: Nobody 2020, table 1." in text.splitlines()


def test_what_latex_would_take_for_commands_is_escaped() -> None:
    text = to_latex(
        table({"50% & more_": [3.0], "{a}$^~#\\": [2.0]}, claims=(), literature={"Elsewhere": {"loss": 1.0}})
    )
    assert r"50\% \& more\_ &" in text
    assert r"\{a\}\$\textasciicircum{}\textasciitilde{}\#\textbackslash{} &" in text
    assert "\\midrule\n    Elsewhere & 1.00 &  &  \\\\" in text


def test_rows_that_are_points_are_drawn_as_lines_also_where_one_failed(tmp_path: Path) -> None:
    points = {"shallow": ("a", 1.0), "deep": ("a", 2.0)}
    drawn = table({"shallow": [2.0], "deep": [1.0]}, failed=("deep",), axis=Axis(label="layers", points=points))
    files, unwritten = write_views(drawn, tmp_path, Presentation(), {}, ArtifactStore(str(tmp_path / "store")))
    assert not unwritten
    assert files["lines.png"].read_bytes().startswith(b"\x89PNG")


def test_pictures_are_drawn_even_with_a_failed_row(tmp_path: Path) -> None:
    scatter(table({"shallow": [2.0], "deep": [1.0]}, failed=("deep",)), "loss", "fd", tmp_path / "s.png")
    curves({"a": [(1, 2.0), (2, 1.0)], "b": [(1, -1.0)]}, tmp_path / "c.png", ylabel="loss", title="t")
    for name in ("s.png", "c.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_view_that_cannot_be_written_leaves_the_others_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "comparison.csv").mkdir()  # in the way
    store = ArtifactStore(str(tmp_path / "store"))
    shown = Presentation(scatter=("loss", "fd"))
    files, unwritten = write_views(table({"shallow": [2.0], "deep": [1.0]}), tmp_path, shown, {}, store)
    assert set(files) == {"comparison.md", "comparison.tex", "loss-fd.png", "report.html"}
    assert all(path.is_file() for path in files.values())
    assert set(unwritten) == {"comparison.csv"}
    assert "comparison.csv" in unwritten["comparison.csv"]


def test_rows_beyond_the_palette_still_look_different() -> None:
    looks = [look(number) for number in range(24)]
    assert len({(colour, marker) for colour, marker, _ in looks}) == 24
    assert len({(colour, dashes) for colour, _, dashes in looks}) == 24


def test_rows_that_share_a_training_are_one_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plans = ArtifactStore(str(tmp_path / "store")), {}
    for number, depth in enumerate((1, 1, 2)):
        step = Step(name="train", version=1, config=Config(depth=depth), inputs={}, run=lambda *_: None)
        store.path(step).mkdir(parents=True, exist_ok=True)
        (store.path(step) / JOURNAL_FILE).touch()
        plans[Trial(f"row {number}", 0, Config(depth=depth))] = {"train": step}
    drawn: list[str] = []
    monkeypatch.setattr(views, "curves", lambda lines, *_, **__: drawn.extend(lines))
    made = table({"shallow": [2.0], "deep": [1.0]})
    write_views(made, tmp_path, Presentation(curve=("train", "loss", "loss")), plans, store)
    assert drawn == ["row 0, and 1 more of this training", "row 2"]
