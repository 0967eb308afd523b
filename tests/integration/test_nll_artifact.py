"""What a measurement of NLL leaves: the bound of every image, its prior, and the terms behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.nll import NLL_FILE, AllTerms, DrawnTerms, NllConfig
from pipelines.plan import plan
from pipelines.presets import tiny

IMAGES = 70  # more than a worker's block


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


def short_run() -> RunConfig:
    base = tiny()
    return replace(
        base,
        train=replace(base.train, images=1280),
        diffusion=replace(base.diffusion, num_timesteps=40),
        sample=replace(base.sample, sampler=replace(base.sample.sampler, respacing="")),
    )


def measured(store: ArtifactStore, config: NllConfig) -> tuple[dict[str, np.ndarray], dict]:
    step = plan(replace(short_run(), nll=config))["nll"]
    materialize([step], store, backend=LocalBackend(), resources=Resources())
    with np.load(store.path(step) / NLL_FILE, allow_pickle=False) as stored:
        return dict(stored), json.loads((Path(store.path(step)) / "metrics.json").read_text())


def test_all_terms_are_kept_in_increasing_t_and_add_up_to_the_bound(store: ArtifactStore) -> None:
    found, said = measured(store, NllConfig(terms=AllTerms(), images=IMAGES))
    assert found["nll_bpd"].shape == (1, IMAGES)
    assert found["timestep"].tolist() == list(range(40))
    total = found["terms_bpd"].sum() + found["prior_bpd"].mean()
    assert total == pytest.approx(found["nll_bpd"].mean(), rel=1e-6)
    assert total == pytest.approx(said["metrics"]["nll_bpd"], rel=1e-6)
    assert said["metrics"]["prior_bpd"] == pytest.approx(found["prior_bpd"].mean())
    # Late steps start from more noise: less is known of x_start there, and eps is all there is to see.
    assert found["xstart_mse"][:5].mean() < found["xstart_mse"][-5:].mean()
    assert found["eps_mse"][:5].mean() > found["eps_mse"][-5:].mean()


def test_a_respaced_bound_is_of_the_shorter_chain_and_says_so(store: ArtifactStore) -> None:
    found, said = measured(store, NllConfig(terms=AllTerms(), images=20, respacing="10"))
    assert len(found["terms_bpd"]) == 10
    assert found["timestep"][[0, -1]].tolist() == [0, 39]
    assert said["protocol"]["nll_bpd"]["chain"] == "respacing 10"


def test_drawn_terms_estimate_the_same_bound_clipped_or_not(store: ArtifactStore) -> None:
    for clip_denoised in (True, False):
        how = NllConfig(images=IMAGES, clip_denoised=clip_denoised)
        full, said = measured(store, replace(how, terms=AllTerms()))
        drawn, _ = measured(store, replace(how, terms=DrawnTerms(draws=8, rounds=3)))
        np.testing.assert_array_equal(drawn["prior_bpd"], full["prior_bpd"])
        assert drawn["nll_bpd"].shape == (3, IMAGES)
        assert drawn["nll_bpd"].mean() == pytest.approx(full["nll_bpd"].mean(), rel=0.05)
        assert said["protocol"]["nll_bpd"]["x_start"] == ("clipped" if clip_denoised else "not clipped")
