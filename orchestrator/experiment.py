"""What is a study? A paper's table as data: rows, seeds, columns, the paper's own numbers and its orderings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from orchestrator.config import canonical_json, fingerprint, hint, override, to_dict
from orchestrator.power_law import PowerLaw

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One of our metrics, as the table shows it."""

    metric: str
    label: str
    format: str = ".3f"
    best: Literal["min", "max"] | None = None
    error: str | None = None
    """Metric that holds its standard error."""
    count: str | None = None
    """Metric that holds how many images it rests on."""
    paper: str | None = None
    """Key of the paper's column that it is set beside."""


@dataclass(frozen=True, kw_only=True)
class PaperColumn:
    """One of the paper's numbers, as printed there."""

    key: str
    label: str
    format: str = ".2f"


@dataclass(frozen=True, kw_only=True)
class Better:
    """The paper's table shows: in this metric, one row is better than another."""

    text: str
    metric: str
    better: str
    worse: str


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """The paper's table shows: in this metric, a row is the best, or the worst, of all."""

    text: str
    metric: str
    variant: str
    which: Literal["best", "worst"]


Claim = Better | Extreme


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What the paper has on a figure's x axis: rows are points of lines."""

    label: str
    points: Mapping[str, tuple[str, float]]
    """Row -> (line it is a point of, its x)."""
    log: bool = False


@dataclass(frozen=True)
class Trial(Generic[C]):
    """One cell: a row at one seed, with the whole frozen config it stands for."""

    variant: str
    seed: int
    config: C

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant} · seed {self.seed}"

    @cached_property
    def key(self) -> str:
        """Fingerprint of the config."""
        return fingerprint(to_dict(self.config))


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[C]):
    """A table to be filled in. Raises ValueError when its parts contradict each other."""

    name: str
    title: str
    question: str
    source: str
    """Where the paper prints the table."""
    base: C
    variants: Mapping[str, Mapping[str, Any]]
    """Row name -> dotted settings that differ from base."""
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    paper_columns: tuple[PaperColumn, ...] = ()
    paper: Mapping[str, Mapping[str, float]]
    """Row name -> the paper's numbers by key."""
    literature: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Name -> numbers by key that the paper prints of others' models, which nobody runs."""
    claims: tuple[Claim, ...] = ()
    against: Mapping[str, str] = field(default_factory=dict)
    """Row -> the row it is held against: whether it moves our numbers as it does the paper's."""
    varies: tuple[str, ...] = ()
    """Keys of protocols in which rows differ on purpose, such as sampler: what the table is about."""
    axis: Axis | None = None
    laws: Mapping[str, PowerLaw] = field(default_factory=dict)
    """Metric -> the paper's law of it over the axis, which is then compute: ours is fitted beside it."""

    def __post_init__(self) -> None:
        if not self.variants or not self.columns:
            raise ValueError(f"{self.name}: a table needs at least one row and one column")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"{self.name}: seeds={self.seeds}: at least one, and each once")
        self._check_rows()
        self._check_claims()

    def trials(self) -> list[Trial[C]]:
        """Every row at every seed; all rows of one seed before the next, so that whole tables come first."""
        return [
            Trial(variant, seed, override(self.base, {**settings, "seed": seed}))
            for seed in self.seeds
            for variant, settings in self.variants.items()
        ]

    def key(self) -> str:
        """The study's identity: what its rows are. More seeds, other columns or claims continue the same study."""
        rows = {variant: dict(settings) for variant, settings in self.variants.items()}
        return fingerprint({"name": self.name, "base": to_dict(self.base), "variants": rows})

    def only(self, rows: Sequence[str]) -> Experiment[C]:
        """The same table with these rows alone, in its own order, and what is claimed of them.

        Raises ValueError for a row that is none.
        """
        for row in rows:
            self._known("row", row, list(self.variants), "--rows")
        kept = {variant: settings for variant, settings in self.variants.items() if variant in rows}
        if kept.keys() == self.variants.keys():
            return self
        # The best of some rows is another claim than the best of all.
        claims = (claim for claim in self.claims if isinstance(claim, Better))
        return replace(
            self,
            variants=kept,
            paper={variant: numbers for variant, numbers in self.paper.items() if variant in kept},
            against={row: other for row, other in self.against.items() if {row, other} <= kept.keys()},
            axis=self.axis and replace(self.axis, points={v: at for v, at in self.axis.points.items() if v in kept}),
            claims=tuple(claim for claim in claims if {claim.better, claim.worse} <= kept.keys()),
        )

    def column(self, metric: str) -> Column:
        """The column that shows a metric."""
        return next(column for column in self.columns if column.metric == metric)

    def _check_rows(self) -> None:
        meanings: dict[str, str] = {}
        for variant, settings in self.variants.items():
            try:
                config = override(self.base, settings)
            except ValueError as error:
                raise ValueError(f"{self.name}, row {variant!r}: {error}") from error
            meaning = canonical_json(to_dict(config))
            if meaning in meanings:
                raise ValueError(f"{self.name}: rows {meanings[meaning]!r} and {variant!r} have the same config")
            meanings[meaning] = variant
        for variant in [row for pair in self.against.items() for row in pair]:
            self._known("row", variant, list(self.variants), "against")
        for variant in self.axis.points if self.axis is not None else ():
            self._known("row", variant, list(self.variants), "axis")
        for metric in self.laws:
            self._known("metric", metric, [column.metric for column in self.columns], "laws")
            if self.axis is None:
                raise ValueError(f"{self.name}, laws: {metric!r} has no axis to be a law over; give the experiment one")
        keys = [column.key for column in self.paper_columns]
        for variant in self.paper:
            self._known("row", variant, list(self.variants), "paper")
        for name in self.literature.keys() & self.variants.keys():
            raise ValueError(f"{self.name}, literature: {name!r} is a row that is run; name it otherwise")
        for where, printed in (("paper", self.paper), ("literature", self.literature)):
            for name, numbers in printed.items():
                for key in numbers:
                    self._known("paper column", key, keys, f"{where}[{name!r}]")

    def _check_claims(self) -> None:
        for claim in self.claims:
            self._known("metric", claim.metric, [column.metric for column in self.columns], claim.text)
            if self.column(claim.metric).best is None:
                raise ValueError(f"{self.name}, {claim.text!r}: column {claim.metric!r} does not say what is best")
            rows = (claim.better, claim.worse) if isinstance(claim, Better) else (claim.variant,)
            for row in rows:
                self._known("row", row, list(self.variants), claim.text)

    def _known(self, what: str, name: str, allowed: list[str], where: str) -> None:
        if name not in allowed:
            nearest = hint(name, allowed) or "."
            raise ValueError(
                f"{self.name}, {where!r}: unknown {what} {name!r}{nearest} There are: {', '.join(allowed)}"
            )
