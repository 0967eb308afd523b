"""What is a table of a paper, before it is given a scale?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.experiment import Experiment
from pipelines.configs import RunConfig

Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """How large a study is run."""

    base: Callable[[], RunConfig]
    """What its rows vary."""
    images: str | None = None
    """Which images --data must name, where they are none that the project brings."""
    experiment: Callable[[RunConfig, Seeds], Experiment[RunConfig]] | None = None
    """The rows at this scale, where they are not the study's."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of a paper, before it is given a scale."""

    question: str
    experiment: Callable[[RunConfig, Seeds], Experiment[RunConfig]]
    scales: Mapping[str, Scale]
    """By the name of the preset."""
    scatter: tuple[str, str] | None = None
    """Two metrics that are plotted against each other; "frechet" is the distance by the name it has there."""


Catalogue = Mapping[str, Study]
