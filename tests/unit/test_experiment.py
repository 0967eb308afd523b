"""Experiments as data: what they expand to, what their identity is, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from orchestrator.experiment import Better, Column, Experiment, Extreme, PaperColumn


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    depth: int = 1
    width: int = 8
    seed: int = 0


def experiment(**changes: Any) -> Experiment[Config]:
    parts: dict[str, Any] = {
        "name": "depths",
        "title": "Depths",
        "question": "Is deeper better?",
        "source": "Nobody 2020, table 1",
        "base": Config(),
        "variants": {"shallow": {}, "deep": {"depth": 4}},
        "seeds": (0, 1),
        "columns": (Column(metric="loss", label="loss", best="min"), Column(metric="time", label="time")),
        "paper_columns": (PaperColumn(key="loss", label="paper loss"),),
        "paper": {"shallow": {"loss": 2.0}, "deep": {"loss": 1.0}},
        "claims": (Better(text="deep wins", metric="loss", better="deep", worse="shallow"),),
    }
    return Experiment(**{**parts, **changes})


def test_every_row_is_tried_at_every_seed_a_whole_table_before_the_next() -> None:
    trials = experiment().trials()
    assert [(t.variant, t.seed, t.config.depth, t.config.seed) for t in trials] == [
        ("shallow", 0, 1, 0), ("deep", 0, 4, 0), ("shallow", 1, 1, 1), ("deep", 1, 4, 1),
    ]  # fmt: skip
    assert len({t.key for t in trials}) == 4


def test_one_more_seed_continues_the_same_study_with_the_same_cells() -> None:
    more = experiment(seeds=(0, 1, 2))
    assert more.key() == experiment().key()
    assert {t.key for t in experiment().trials()} < {t.key for t in more.trials()}


def test_presentation_does_not_change_the_study_but_rows_and_base_do() -> None:
    same = experiment(title="Other", claims=(), columns=(Column(metric="loss", label="L", best="min"),))
    assert same.key() == experiment().key()
    assert experiment(base=Config(width=9)).key() != experiment().key()
    assert experiment(variants={"shallow": {}, "deep": {"depth": 5}}).key() != experiment().key()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": {"shallow": {}, "deep": {"dept": 4}}}, "row 'deep': dept: unknown key; did you mean 'depth'"),
        ({"variants": {"shallow": {}, "deep": {"depth": 1}}}, "'shallow' and 'deep' have the same config"),
        ({"variants": {}}, "at least one row"),
        ({"columns": ()}, "one column"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"paper": {"shalow": {}}}, "unknown row 'shalow'; did you mean 'shallow'"),
        ({"paper": {"deep": {"fid": 1.0}}}, "unknown paper column 'fid'"),
        ({"claims": (Better(text="c", metric="los", better="deep", worse="shallow"),)}, "did you mean 'loss'"),
        ({"claims": (Extreme(text="c", metric="loss", variant="depe", which="best"),)}, "did you mean 'deep'"),
        ({"claims": (Extreme(text="c", metric="time", variant="deep", which="best"),)}, "does not say what is best"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        experiment(**changes)


def test_a_trial_is_known_by_what_it_trains_not_by_its_row() -> None:
    trial = experiment().trials()[0]
    assert replace(trial, variant="renamed").key == trial.key


def test_some_rows_keep_their_cells_and_what_is_claimed_of_them_alone() -> None:
    variants = {"shallow": {}, "deep": {"depth": 4}, "deeper": {"depth": 8}}
    best = Extreme(text="deeper is best", metric="loss", variant="deeper", which="best")
    whole = experiment(variants=variants, claims=(*experiment().claims, best))
    some = whole.only(["deep", "shallow"])
    assert list(some.variants) == ["shallow", "deep"]
    assert {t.key for t in some.trials()} < {t.key for t in whole.trials()}
    assert some.claims == experiment().claims
    assert whole.only(list(variants)) is whole
    with pytest.raises(ValueError, match="unknown row 'deepest'; did you mean 'deepe"):
        whole.only(["deepest"])
