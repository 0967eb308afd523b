"""How far are the samples from held-out images? Distances, scores and shares of their features, each with its error.

python pipelines/evaluate.py tiny --store artifacts
python pipelines/evaluate.py reference.npz samples.npz
python pipelines/evaluate.py reference.npz --checkpoint 64x64_diffusion.pt --openai adm-imagenet64
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.features import Features
from diffusion.metrics.frechet import Gaussian
from diffusion.metrics.frechet_uncertainty import ENOUGH, FEWEST, GROUPS, frechet_estimates
from diffusion.metrics.inception import INCEPTION
from diffusion.metrics.inception_score import SPLIT_SIZE, inception_score_interval
from diffusion.metrics.intervals import Estimate, of_standard_error
from diffusion.metrics.kid import kid
from diffusion.metrics.precision_recall import Distances, precision_recall
from diffusion.metrics.stats import GaussianStats
from orchestrator.protocols import MEASURED_WITH
from orchestrator.step import Step, StepContext
from pipelines.features import Extracted, FeaturesConfig, InceptionConfig
from pipelines.libraries import versions

VERSION = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """How the two sets of features are compared."""

    kid_subsets: int = 100
    kid_subset_size: int = 200
    neighbours: int = 3
    """k of precision and recall: 3 in ADM, 5 in Improved DDPM."""
    distances: Distances = "exact"
    """published: precision and recall by float16's distances, as ADM's evaluator has them."""
    replicates: int = 200
    """Bootstrap replicates of the Inception Score."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kid_subsets < 2 or self.kid_subset_size < 2:
            raise ValueError(
                f"metrics.kid_subsets={self.kid_subsets}, metrics.kid_subset_size={self.kid_subset_size}: "
                f"both must be at least 2"
            )
        if self.neighbours < 1:
            raise ValueError(f"metrics.neighbours={self.neighbours}: at least 1; ADM has 3, Improved DDPM 5")
        if self.replicates < 2:
            raise ValueError(f"metrics.replicates={self.replicates}: at least 2, or there is no spread")

    @property
    def fewest_images(self) -> int:
        """Samples below which some metric has no value or no error."""
        return max(2 * GROUPS, 2 * (self.neighbours + 1))


def metrics_step(config: MetricsConfig, *, features: Step, reference: Step) -> Step:
    """The distances as a step of a plan."""
    inputs = {"features": features, "reference": reference}
    return Step(name="metrics", version=VERSION, config=config, inputs=inputs, run=compare)


def compare(config: MetricsConfig, ctx: StepContext) -> None:
    """All metrics between two artifacts of features, with the protocol they rest on.

    NAME, NAME_se, NAME_low, NAME_high: fd and fd_infinity (Frechet distances), kid, precision, recall. Of Inception's
    features fid and fid_infinity take the place of fd's, and sfid, sfid_infinity and is join them; of a classifier's of
    the data set classifier_score does, which is computed as is, over other classes.
    """
    samples, reference = Extracted.load(ctx.inputs["features"]), Extracted.load(ctx.inputs["reference"])
    if samples.network != reference.network:
        raise ValueError(f"features of {samples.network} cannot be compared with features of {reference.network}")
    name = "fid" if samples.network["network"] == INCEPTION else "fd"
    measured = measure(config, samples.features, Reference.of(reference.features), name=name)
    libraries = {**reference.measured_with, **samples.measured_with, "metrics": libraries_of_metrics()}
    shared = {**samples.network, **reference.images, **samples.images, MEASURED_WITH: libraries}
    ctx.write_metrics(
        {
            "fd_samples": float(len(samples.features.pool)),
            "fd_reference": float(len(reference.features.pool)),
            **{key: value for name, estimate in measured.items() for key, value in said(name, estimate).items()},
        },
        protocol={name: {**shared, **own_protocol(config, name)} for name in measured},
        notes=bias_of_frechet(len(samples.features.pool), len(reference.features.pool), samples.features.pool.shape[1]),
    )


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: Gaussians of all its images, and features of some of them."""

    pool: Gaussian
    spatial: Gaussian | None
    features: NDArray[np.float32] | None
    """(n, d): pooled, for KID, precision and recall; None where there are statistics alone."""

    @classmethod
    def of(cls, features: Features) -> Reference:
        """From features of all images."""
        spatial = None if features.spatial is None else gaussian_of(features.spatial)
        return cls(gaussian_of(features.pool), spatial, features.pool)


def gaussian_of(features: NDArray[np.float32]) -> Gaussian:
    """The Gaussian of features (n, d), whether they are many or few."""
    if len(features) <= features.shape[1]:
        return Gaussian.of_features(features)
    return Gaussian.of_stats(GaussianStats.of(features))


def frechet_name(features: FeaturesConfig) -> str:
    """What a Frechet distance is called by the network that sees the images: fid of Inception's features alone."""
    return "fid" if isinstance(features, InceptionConfig) else "fd"


def measure(config: MetricsConfig, samples: Features, reference: Reference, *, name: str) -> dict[str, Estimate]:
    """Every metric that these features allow, by name; the Frechet distance by that one, frechet_name."""
    found = {**_frechet(name, samples.pool, reference.pool)}
    if samples.spatial is not None and reference.spatial is not None:
        found |= _frechet(f"s{name}", samples.spatial, reference.spatial)
    if samples.probabilities is not None:
        score = inception_score_interval(samples.probabilities, replicates=config.replicates, seed=config.seed)
        found["is" if name == "fid" else "classifier_score"] = score
    if reference.features is not None:
        value, error = kid(
            samples.pool, reference.features, seed=config.seed,
            subsets=config.kid_subsets, subset_size=config.kid_subset_size,
        )  # fmt: skip
        shares = precision_recall(samples.pool, reference.features, k=config.neighbours, distances=config.distances)
        found |= {"kid": of_standard_error(value, error), **shares._asdict()}
    return found


def _frechet(name: str, samples: NDArray[np.float32], reference: Gaussian) -> dict[str, Estimate]:
    found = frechet_estimates(samples, reference)
    infinity = {} if found.infinity is None else {f"{name}_infinity": found.infinity}
    return {name: found.distance, **infinity}


def said(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as metrics of a step."""
    return {
        name: estimate.value,
        f"{name}_se": estimate.standard_error,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


def own_protocol(config: MetricsConfig, name: str) -> dict[str, str | int]:
    """What two numbers of that metric must share besides their features."""
    if name == "kid":
        return {"subsets": f"{config.kid_subsets} of {config.kid_subset_size}", "subset_seed": config.seed}
    if name in ("precision", "recall"):
        return {"k": config.neighbours, "distances": config.distances}
    if name in ("is", "classifier_score"):
        return {"split_size": SPLIT_SIZE}
    return {}


def libraries_of_metrics() -> str:
    """The versions of what compares features here."""
    return versions("torch", "numpy", "scipy")


def bias_of_frechet(samples: int, reference: int | None, dimension: int) -> list[str]:
    """What a reader of Frechet distances over few images must know; reference: None where its moments are given."""
    sets = {"samples": samples, "reference images": dimension + 1 if reference is None else reference}
    few = " and ".join(f"{count} {what}" for what, count in sets.items() if count <= dimension)
    if few:
        return [
            f"Frechet distances are strongly biased upwards: {dimension}-dimensional covariances of {few} are "
            f"singular; compare rows by KID"
        ]
    if FEWEST * dimension <= samples < ENOUGH * dimension:
        return [
            f"the Frechet distance of infinitely many samples may miss: it is drawn from {samples} samples in "
            f"{dimension} dimensions, fewer than {ENOUGH} for each"
        ]
    return []


if __name__ == "__main__":
    import sys

    from pipelines.cli import run
    from pipelines.evaluate_files import compare_files
    from pipelines.evaluate_published import evaluate_published
    from pipelines.single import command  # needs this module under its own name

    if any(argument.split("=")[0] in ("--checkpoint", "--openai") for argument in sys.argv[1:]):
        run(evaluate_published)
    elif any(argument.endswith(".npz") and "=" not in argument for argument in sys.argv[1:]):
        run(compare_files)
    else:
        run(command("metrics", "Measure how far samples are from held-out images."))
