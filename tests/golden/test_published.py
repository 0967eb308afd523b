"""Are the networks the published ones, name by name, shape by shape, and as large as the papers print?"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.classifier import ClassifierConfig
from diffusion.flops import cost_of
from diffusion.openai_checkpoints import recognise
from diffusion.published import ADM_ABLATION, LEARNED, PUBLISHED
from diffusion.superres import SuperResConfig
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet

DATA = Path(__file__).parent / "data"
SCHEMAS = json.loads(gzip.decompress((DATA / "published_schemas.json.gz").read_bytes()))
COSTS = json.loads((DATA / "published_costs.json").read_text())


def shapes(name):
    with torch.device("meta"):
        network = PUBLISHED[name].build()
    return {key: list(tensor.shape) for key, tensor in network.state_dict().items()}


def test_all_21_models_are_there():
    assert len(SCHEMAS) == 21
    assert set(SCHEMAS) <= set(PUBLISHED)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_network_has_the_published_names_and_shapes(name):
    assert shapes(name) == SCHEMAS[name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_network_costs_what_the_published_one_does(name):
    with torch.device("meta"):
        cost = cost_of(PUBLISHED[name].build())
    assert cost.parameters == COSTS[name]["params"]
    assert round(cost.macs / 1e9, 2) == COSTS[name]["fwd_gmacs"]
    assert round(cost.flops / 1e9, 2) == COSTS[name]["fwd_gflops_2xMAC"]


def test_the_compute_of_training_is_that_of_the_papers_scaling_law():
    with torch.device("meta"):
        cost = cost_of(PUBLISHED["iddpm_scaling_128ch"].build())
    # 1.5 million steps of 128 images: the paper's law then gives FID 18.2, and table 1 has 19.2.
    compute = cost.training_compute(1_500_000 * 128)
    assert compute == pytest.approx(2.3e19, rel=0.01)
    assert 4.00 + (2.5e-25 * compute) ** -0.22 == pytest.approx(18.2, abs=0.1)


def test_weights_are_recognised_by_names_and_shapes_and_only_one_model_has_the_new_layout():
    layouts = {}
    for name, schema in SCHEMAS.items():
        names = recognise({key: torch.empty(shape, device="meta") for key, shape in schema.items()})
        assert name in names
        layouts[name] = trunk(PUBLISHED[names[0]].network).attention_layout
    assert [name for name, layout in layouts.items() if layout == "new"] == ["64x64_diffusion"]


def test_models_that_share_names_and_shapes_differ_in_dropout_alone():
    alike = defaultdict(list)
    for name, model in PUBLISHED.items():
        alike[json.dumps(shapes(name))].append(without_dropout(model.network))
    assert all(network == networks[0] for networks in alike.values() for network in networks)


@pytest.mark.parametrize("name", ADM_ABLATION)
def test_the_networks_of_adms_ablations_are_built_and_differ(name):
    with torch.device("meta"):
        network = UNet(ADM_ABLATION[name], LEARNED)
        assert network(**network.example_inputs(1)).shape == (1, 6, 128, 128)
    twins = [other for other, config in ADM_ABLATION.items() if config == ADM_ABLATION[name] and other != name]
    assert twins == {
        "AdaGN": ["attention, 64 channels a head"],
        "attention, 64 channels a head": ["AdaGN"],
    }.get(name, [])


def without_dropout(network):
    if isinstance(network, UNetConfig):
        return replace(network, dropout=0.0)
    if isinstance(network, SuperResConfig):
        return replace(network, unet=replace(network.unet, dropout=0.0))
    return replace(network, encoder=replace(network.encoder, dropout=0.0))


def trunk(network):
    if isinstance(network, ClassifierConfig):
        return network.encoder
    return network.unet if isinstance(network, SuperResConfig) else network
