"""A network that was written is the same one when it is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.checkpoints import Network, load_weights, read_checkpoint
from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.openai_checkpoints import (
    from_published,
    load_published,
    read_published,
    recognise,
    to_published,
    with_attention_layout,
)
from diffusion.published import PUBLISHED, PublishedModel
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet
from tests.networks import BASE, draw, randomized

NETWORKS = {
    "unet": lambda: UNet(replace(BASE, num_classes=4, channel_mult=(0.5, 1, 1), model_channels=64), out_channels=6),
    "superres": lambda: SuperResUNet(SuperResConfig(unet=BASE, small_size=8), out_channels=3),
    "classifier": lambda: NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=4, pool="spatial_v2")),
}


def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def inputs_of(network: Network) -> dict[str, torch.Tensor]:
    return {
        name: draw(*value.shape, seed=number) if value.is_floating_point() else value
        for number, (name, value) in enumerate(network.example_inputs(2).items())
    }


def small(network: UNetConfig) -> UNetConfig:
    """A published network's shape with the fewest channels that its heads and norms allow."""
    fixed = network.num_heads is not None
    heads = {} if fixed else {"num_head_channels": 16}
    fewest = 64 if 0.5 in network.channel_mult else 32
    return replace(network, model_channels=fewest, num_classes=network.num_classes and 10, **heads)


def reduced(model: PublishedModel) -> PublishedModel:
    network = model.network
    if isinstance(network, SuperResConfig):
        return replace(model, network=replace(network, unet=small(network.unet)))
    if isinstance(network, ClassifierConfig):
        return replace(model, network=replace(network, encoder=small(network.encoder), num_classes=10))
    return replace(model, network=small(network))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_gives_the_network_back_with_its_config_and_its_outputs(tmp_path, kind):
    network = randomized(NETWORKS[kind]())
    network.save(tmp_path / "network.safetensors")
    found = type(network).from_checkpoint(tmp_path / "network.safetensors")
    assert found.description() == network.description()
    assert torch.equal(found(**inputs_of(found)), network(**inputs_of(network)))
    assert not found.training
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


def test_equal_networks_give_equal_files(tmp_path):
    network = randomized(NETWORKS["unet"]())
    files = [tmp_path / str(number) for number in range(8)]
    for file in files:
        network.save(file, metadata={"config": '{"seed": 0}', "rate": "0.99", "ä": "ö"})
    assert len({file.read_bytes() for file in files}) == 1
    assert read_checkpoint(files[0])[0] == json.loads(json.dumps(network.description()))


def test_float64_weights_come_back_as_float64_and_are_not_rounded_into_a_smaller_network(tmp_path):
    network = randomized(NETWORKS["unet"]()).double()
    network.out[2].bias.data += 1e-12
    network.save(tmp_path / "network.safetensors")
    found = UNet.from_checkpoint(tmp_path / "network.safetensors")
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=r"float64, and this network would round them: call .double\(\)"):
        load_weights(NETWORKS["unet"](), network.state_dict(), of="weights")


def test_the_layout_of_attention_is_in_the_file(tmp_path):
    UNet(replace(BASE, attention_layout="new"), out_channels=3).save(tmp_path / "network.safetensors")
    assert UNet.from_checkpoint(tmp_path / "network.safetensors").config.attention_layout == "new"


def test_an_average_of_the_weights_is_written_in_their_place(tmp_path):
    network = randomized(NETWORKS["unet"]())
    average = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    network.save(tmp_path / "average.safetensors", weights=average, metadata={"rate": "0.9999"})
    found = UNet.from_checkpoint(tmp_path / "average.safetensors").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in average.items())
    with pytest.raises(ValueError, match="the network's own description"):
        network.save(tmp_path / "other", metadata={"network": "{}"})
    with pytest.raises(ValueError, match=r"out\.2\.bias is missing"):
        network.save(tmp_path / "other", weights={n: t for n, t in average.items() if n != "out.2.bias"})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda header: header.update(kind="classifier"), "holds a 'classifier', and UNet reads a 'unet' alone"),
        (lambda header: header["config"].update(image_sizes=8), r"unknown are \['image_sizes'\]"),
        (lambda header: header["config"].pop("image_size"), r"missing are \['image_size'\]"),
        (lambda header: header["config"].pop("attention_layout"), r"missing are \['attention_layout'\]"),
        (lambda header: header["config"].update(channel_mult=[float("inf")]), "must be finite"),
        (lambda header: header["arguments"].update(out_channels=-1), "out_channels=-1: must be 1 or more"),
        (lambda header: header["config"].update(image_size="16"), "config.image_size='16': not int"),
        (lambda header: header["config"].update(conditioning="film"), "config.conditioning='film'"),
        (lambda header: header["config"].update(num_heads=2.5), "config.num_heads=2.5: none of int, NoneType"),
        (lambda header: header["config"].update(channel_mult=[1, "2"]), r"config.channel_mult\[1\]='2'"),
        (lambda header: header["config"].update(image_size=15), "cannot be halved"),
        (lambda header: header["arguments"].update(out_channels="6"), "arguments="),
        (lambda header: header["arguments"].update(depth=6), "depth"),
        (lambda header: header["arguments"].update(out_channels=5), r"out.2.weight has shape \(6, 32, 3, 3\)"),
        (lambda header: header.pop("arguments"), r"has \['config', 'kind'\], not kind, config and arguments"),
    ],
)
def test_a_header_that_describes_another_network_is_refused_by_name(tmp_path, damage, complaint):
    network = NETWORKS["unet"]()
    network.save(tmp_path / "network.safetensors")
    header = json.loads(json.dumps(network.description()))
    damage(header)
    path = tmp_path / "other.safetensors"
    save_file(load_file(tmp_path / "network.safetensors"), path, metadata={"network": json.dumps(header)})
    with pytest.raises(ValueError, match=complaint):
        UNet.from_checkpoint(path)


def test_a_file_that_is_cut_short_or_says_nothing_of_a_network_is_refused(tmp_path):
    NETWORKS["unet"]().save(tmp_path / "network.safetensors")
    whole = (tmp_path / "network.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        UNet.from_checkpoint(tmp_path / "short.safetensors")
    save_file({"out.2.bias": torch.zeros(6)}, tmp_path / "strange.safetensors")
    with pytest.raises(ValueError, match="does not describe a network"):
        UNet.from_checkpoint(tmp_path / "strange.safetensors")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_file_is_read_and_written_back_without_loss(tmp_path, monkeypatch, name):
    model = reduced(PUBLISHED[name])
    network = randomized(model.build())
    written = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    torch.save(written, tmp_path / "model.pt")
    monkeypatch.setattr("diffusion.openai_checkpoints.PUBLISHED", {name: model})
    monkeypatch.setattr("diffusion.openai_checkpoints._published_shapes", lambda name: shapes_of(network))
    found = from_published(tmp_path / "model.pt")
    assert not found.training
    assert all(torch.equal(tensor, written[key]) for key, tensor in found.state_dict().items())
    layout = getattr(found.config, "encoder", found.config).attention_layout
    other = "legacy" if layout == "new" else "new"
    # Out in the other layout, and in again from there.
    load_published(network, to_published(found, attention_layout=other), attention_layout=other)
    back = to_published(network, attention_layout=layout)
    assert list(back) == list(written)
    assert all(torch.equal(back[key], tensor) for key, tensor in written.items())


def test_attention_layouts_are_permutations_of_each_other_and_draw_the_same():
    legacy = randomized(UNet(BASE, out_channels=3))
    new = UNet(replace(BASE, attention_layout="new"), out_channels=3).eval()
    weights = to_published(legacy, attention_layout="legacy")
    changed = [n for n, t in to_published(legacy, attention_layout="new").items() if not torch.equal(t, weights[n])]
    assert changed
    assert all(".qkv." in name for name in changed)
    load_published(new, weights, attention_layout="legacy")
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(new(x, t), legacy(x, t), rtol=1e-5, atol=1e-6)
    back = with_attention_layout(new, new.state_dict(), "new", "legacy")
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    # The wrong layout fits as well, which is why it has to be named.
    load_published(new, weights, attention_layout="new")
    assert (new(x, t) - legacy(x, t)).abs().max() > 1e-2


def test_somebody_elses_weights_of_a_published_shape_are_read_in_the_layout_that_is_named(tmp_path, monkeypatch):
    model = reduced(PUBLISHED["64x64_diffusion"])  # the published one is new
    network = randomized(replace(model, network=replace(model.network, attention_layout="legacy")).build())
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    monkeypatch.setattr("diffusion.openai_checkpoints.PUBLISHED", {"64x64_diffusion": model})
    monkeypatch.setattr("diffusion.openai_checkpoints._published_shapes", lambda name: shapes_of(network))
    found = from_published(tmp_path / "mine.pt", attention_layout="legacy")
    x, t, y = draw(1, 3, 64, 64), torch.zeros(1), torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(found(x, t, y), network(x, t, y))


def test_what_is_wrong_with_weights_of_no_published_model_is_said_of_the_nearest():
    with torch.device("meta"):
        weights = PUBLISHED["cifar10_uncond_50M_500K"].build().state_dict()
    weights["out.2.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"as cifar10_uncond_50M_500K, .*out\.2\.bias has shape \(3,\), not \(6,\)"):
        recognise(weights)


def test_entries_that_do_not_fit_are_named():
    network = UNet(BASE, out_channels=3)
    weights = network.state_dict()
    weights["out.2.extra"] = weights.pop("out.2.bias")
    weights["out.0.weight"] = torch.zeros(31)
    weights["time_embed.0.bias"] = torch.zeros(128, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"out.2.bias is missing.*out.2.extra is unknown.*dtype torch.int64.*\(31,\)"):
        load_published(network, weights, attention_layout="legacy")


def test_half_weights_are_widened_without_loss():
    network = UNet(BASE, out_channels=3)
    half = {name: tensor.half() for name, tensor in randomized(network).state_dict().items()}
    load_weights(network, half, of="half")
    assert all(torch.equal(network.state_dict()[name], tensor.float()) for name, tensor in half.items())


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (self.trace, "w"))


def test_a_file_that_carries_code_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    for name, write in (("new.pt", torch.save), ("old.pt", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write({"out.2.bias": Hostile(str(trace))}, tmp_path / name)
        with pytest.raises(ValueError, match=r"carries code, which is not run"):
            read_published(tmp_path / name)
    assert not trace.exists()


def test_a_file_that_is_no_whole_state_dict_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    (tmp_path / "short.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-2000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("short.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a whole .pt file"):
            read_published(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing.pt"):
        read_published(tmp_path / "missing.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    torch.save({"step": 3}, tmp_path / "numbers.pt")
    for name in ("list.pt", "numbers.pt"):
        with pytest.raises(ValueError, match="not a state dict"):
            read_published(tmp_path / name)
