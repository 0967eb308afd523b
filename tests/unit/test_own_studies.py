"""A user's own study is a file, and what is wrong with it is said before anything is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.experiment import Column
from orchestrator.store import ArtifactStore
from pipelines.measured import check_columns
from pipelines.studies.catalogue import ALL
from pipelines.study import Selection

EXAMPLE = Path(__file__).parents[2] / "docs" / "dropout.toml"


def test_the_documented_file_is_a_study(tmp_path: Path) -> None:
    experiment = Selection(study=str(EXAMPLE), seeds=2).build(ALL, ArtifactStore(str(tmp_path)))
    assert experiment.name == "dropout"
    assert {trial.config.model.dropout for trial in experiment.trials()} == {0.0, 0.1, 0.3}
    assert [claim.text for claim in experiment.claims] == ["dropout 0.1 beats no dropout"]


def test_numbers_to_set_ours_beside_may_be_given_of_rows_and_of_others(tmp_path: Path) -> None:
    path = tmp_path / "numbers.toml"
    path.write_text(
        EXAMPLE.read_text()
        + """
[paper."no dropout"]
nll_bpd = 3.5

[literature."Elsewhere"]
nll_bpd = 3.25
"""
    )
    experiment = Selection(study=str(path)).build(ALL, ArtifactStore(str(tmp_path)))
    assert [column.label for column in experiment.paper_columns] == ["paper nll_bpd"]
    assert experiment.literature == {"Elsewhere": {"nll_bpd": 3.25}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("question", "qestion"), r"dropout.toml: .*qestion"),
        (
            ('"model.dropout" = 0.3', '"model.dropot" = 0.3'),
            r"row 'dropout 0.3': model.dropot: .*mean 'dropout'",
        ),
        (('"model.dropout" = 0.3', '"model.dropout" = 0.1'), "'dropout 0.1' and 'dropout 0.3' have the same config"),
        (('"model.dropout" = 0.3', '"model.dropout" = 1.5'), r"row 'dropout 0.3': model.dropout=1.5"),
        (('"kid"]', '"kod"]'), r"columns: unknown metric 'kod'; did you mean 'kid'"),
        (('"fd", "kid"]', '"fid"]'), r"'no dropout' does not measure 'fid'.* it takes features.kind=inception"),
        (('worse = "no dropout"', 'worse = "no dropuot"'), r"unknown row 'no dropuot'; did you mean 'no dropout'"),
        (('metric = "nll_bpd"', 'metric = "recall"'), r"unknown metric 'recall'"),
        (("= 0.3", "= ="), r"dropout.toml: Invalid value .at line 12"),
    ],
)
def test_what_is_wrong_with_it_is_named(change: tuple[str, str], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "dropout.toml"
    path.write_text(EXAMPLE.read_text().replace(*change))
    with pytest.raises(ValueError, match=complaint):
        Selection(study=str(path)).build(ALL, ArtifactStore(str(tmp_path)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.toml: cannot be read"):
        Selection(study=str(tmp_path / "absent.toml")).build(ALL, ArtifactStore(str(tmp_path)))


def test_a_column_that_a_row_would_not_fill_in_is_refused_before_it_is_run(tmp_path: Path) -> None:
    experiment = Selection(study="iddpm-cifar10").build(ALL, ArtifactStore(str(tmp_path)))
    other = replace(experiment, columns=(Column(metric="kidd", label="KID"),), claims=())
    with pytest.raises(ValueError, match=r"column 'KID': row '1K linear simple' does not measure 'kidd'; did you mean"):
        check_columns(other)
