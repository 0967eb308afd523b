"""What do the papers' own weights score? Samples drawn with them, compared as the papers compare theirs.

python pipelines/evaluate.py VIRTUAL_imagenet64_labeled.npz --checkpoint 64x64_diffusion.pt --openai adm-imagenet64
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from diffusion.classifier import ClassifierConfig
from diffusion.published import PUBLISHED
from diffusion.sampling import SamplerConfig
from diffusion.superres import SuperResConfig
from diffusion.trunk import UNetConfig
from orchestrator.config import override, parse_settings
from orchestrator.run import prepare_sources
from orchestrator.step import Step
from pipelines.cli import HERE, Overrides, Places, choose
from pipelines.drawn import PROTOCOL_FILE, SAMPLES_FILE
from pipelines.evaluate import MetricsConfig
from pipelines.evaluate_files import NETWORKS, FilesConfig, ImagesFile, check_files, compare
from pipelines.features import PublishedConfig
from pipelines.published import published_step
from pipelines.sample import SampleConfig, sample_step
from pipelines.single import check_ray, run_steps
from pipelines.stages import C, Stage, check_drawing, check_enlarging
from pipelines.trained import check_rate
from pipelines.upsample import UpsampleConfig, upsample_step

RESPACING = "250"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedEvaluation:
    """How published weights are sampled from and scored: 50,000 images in 250 steps, as ADM's numbers are."""

    features: PublishedConfig
    sample: SampleConfig = field(
        default_factory=lambda: SampleConfig(count=50_000, sampler=SamplerConfig(respacing=RESPACING), labels="drawn")
    )
    upsample: UpsampleConfig = field(default_factory=lambda: UpsampleConfig(sampler=SamplerConfig(respacing=RESPACING)))
    metrics: MetricsConfig = field(default_factory=lambda: MetricsConfig(distances="published"))


def evaluate_published(
    reference: Annotated[Path, tyro.conf.Positional],
    /,
    checkpoint: str,
    openai: str,
    classifier: str | None = None,
    upsampler: str | None = None,
    network: str = "inception",
    places: Annotated[Places, tyro.conf.arg(name="")] = HERE,
    set: Overrides = (),
    ray: bool = False,
    device: str | None = None,
    output: Path | None = None,
) -> int:
    """Draw samples from weights that were published with the papers, and print the published evaluator's five numbers.

    Args:
        reference: An npz of the published evaluator's layout: arr_0, or mu, sigma, mu_s and sigma_s, or both.
        checkpoint: The model's .pt file: a path, s3://, gs:// or http(s)://.
        openai: Which model that is: adm-imagenet64, iddpm-cifar10, ..., or the name of its file.
        classifier: The .pt file of a classifier; steers where sample.guidance_scale is set.
        upsampler: The .pt file of a network that makes the samples larger, which are then compared.
        network: What sees the images: inception, whose weights PAPERTABLE_WEIGHTS names, or efficientnet-lite0.
        places: Where artifacts are kept and how many workers there are.
        set: Settings changed, such as sample.count=10000, sample.guidance_scale=1, sample.sampler.respacing=250.
        ray: Run on a Ray that is started for this command, instead of in this process.
        device: Of the comparison: cuda, cuda:1 or cpu; by default a GPU where there is one.
        output: A JSON file for all numbers, with their intervals and how they were measured.
    """
    base = PublishedEvaluation(features=choose("network", network, dict(NETWORKS)))
    config = override(base, parse_settings(base, set))
    check_ray(places, ray=ray)
    steps = _steps(config, checkpoint, openai, classifier=classifier, upsampler=upsampler)
    files = FilesConfig(features=config.features, metrics=config.metrics)
    theirs = ImagesFile.open(reference)
    check_files(files, theirs, None)
    fewest = max(config.metrics.fewest_images, config.metrics.kid_subset_size)
    if config.sample.count < fewest:
        raise ValueError(
            f"sample.count={config.sample.count}: the metrics with their intervals take {fewest}; draw more, or lower "
            f"metrics.kid_subset_size={config.metrics.kid_subset_size}"
        )
    store, last = places.artifact_store(), list(steps.values())[-1]
    prepare_sources(list(steps.values()), store, places.resources())
    run_steps([last], store, places, ray=ray)
    samples = store.path(last)
    drawn = json.loads((samples / PROTOCOL_FILE).read_text())
    return compare(files, theirs, ImagesFile.open(samples / SAMPLES_FILE), device=device, output=output, drawn=drawn)


def _steps(
    config: PublishedEvaluation, checkpoint: str, openai: str, *, classifier: str | None, upsampler: str | None
) -> dict[str, Step]:
    """By role, the last one the images that are compared. Raises ValueError for files that do not belong together."""
    model = published_step(checkpoint, option="--checkpoint", name=openai)
    drawing, steers = _stage(model, UNetConfig, "--checkpoint", "a diffusion model"), None
    scale = config.sample.guidance_scale
    if (classifier is not None) != (scale > 0):
        raise ValueError(
            f"--classifier {classifier or 'is not given'}, sample.guidance_scale={scale:g}: a classifier steers by a "
            f"scale of more than 0 alone; give both, or neither"
        )
    if upsampler is None and config.upsample != PublishedEvaluation(features=config.features).upsample:
        raise ValueError("upsample is set, but there is no second stage: name its file by --upsampler, or leave it out")
    check_rate("sample.ema", config.sample.ema, ())
    check_rate("upsample.ema", config.upsample.ema, ())
    steps, guide = {"model": model}, None
    if classifier is not None:
        steps["classifier"] = guide = published_step(classifier, option="--classifier")
        steers = _stage(guide, ClassifierConfig, "--classifier", "a classifier")
    unconditional = drawing.network.num_classes is None and steers is None
    check_drawing(replace(config.sample, labels="balanced") if unconditional else config.sample, drawing, steers)
    steps["sample"] = sample_step(config.sample, train=model, classifier=guide)
    if upsampler is not None:
        steps["upsampler"] = second = published_step(upsampler, option="--upsampler")
        larger = _stage(second, SuperResConfig, "--upsampler", "a network that makes images larger")
        check_enlarging(
            config.upsample, larger, seed_name="upsample.seed", respacing_name="upsample.sampler.respacing",
            sample=config.sample, model=drawing, classifier=steers,
        )  # fmt: skip
        steps["upsample"] = upsample_step(config.upsample, samples=steps["sample"], upsampler=second)
    return steps


def _stage(step: Step, kind: type[C], option: str, what: str) -> Stage[C]:
    """Raises ValueError for a network of another kind."""
    published = PUBLISHED[step.config.model]
    if not isinstance(published.network, kind):
        raise ValueError(f"{option}: {step.config.model} is not {what}")
    return Stage(option, published.network, f"{option}: diffusion", published.diffusion)
