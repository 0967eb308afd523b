"""What holds for every network, whatever its options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.guidance import log_probability_gradient
from diffusion.layers import ResBlock, matrix_product, pointwise, project
from diffusion.precision import autocast, to_inference_dtype
from diffusion.superres import SuperResConfig, SuperResUNet, reduced
from diffusion.trunk import UNetConfig, check_inputs
from diffusion.types import check_labels
from diffusion.unet import UNet
from tests.networks import BASE, close, draw, randomized

ROOT = Path(__file__).parents[2]
HEADS = {"num_heads": 4, "num_head_channels": None}
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


@given(
    mults=st.lists(st.sampled_from([0.5, 1, 1.5, 2, 2.5, 3]), min_size=1, max_size=3),
    resampling=st.sampled_from(["conv", "pool", "residual"]),
    depth=st.integers(1, 2),
    batch=st.integers(1, 3),
    factor=st.integers(1, 3),
)
@settings(max_examples=15)
def test_any_multipliers_keep_the_shape_and_a_fresh_network_predicts_zero(mults, resampling, depth, batch, factor):
    config = UNetConfig(
        image_size=4 * factor, model_channels=64, channel_mult=tuple(mults), num_res_blocks=depth,
        attention_resolutions=(), num_heads=1, resampling=resampling,
    )  # fmt: skip
    x = draw(batch, 3, 4 * factor, 4 * factor)
    assert torch.equal(
        UNet(config, out_channels=6)(x, torch.arange(batch).float()), torch.zeros(batch, 6, *x.shape[2:])
    )


@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_a_fresh_residual_block_passes_on_what_it_skips(resample):
    block = ResBlock(32, 32, emb_channels=8, dropout=0.0, conditioning="adagn", resample=resample)
    x = draw(2, 32, 4, 4)
    out = block(x, draw(2, 8))
    assert out.shape[2] == {"none": 4, "up": 8, "down": 2}[resample]
    torch.testing.assert_close(out.mean(dim=(2, 3)), x.mean(dim=(2, 3)), rtol=0, atol=1e-6)


def test_a_fresh_classifier_with_an_adaptive_pool_knows_nothing():
    network = NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5, pool="adaptive"))
    assert torch.equal(network(draw(2, 3, 16, 16), torch.zeros(2)), torch.zeros(2, 5))


@pytest.mark.parametrize("pool", POOLS)
def test_a_classifiers_gradient_is_its_finite_difference(pool):
    network = randomized(NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5, pool=pool))).double()
    x, t, y = draw(2, 3, 16, 16).double(), torch.tensor([3.0, 700.0]), torch.tensor([4, 1])
    gradient = log_probability_gradient(network, x_t=x, model_t=t, y=y)

    def log_p(at):
        return torch.log_softmax(network(at, t), dim=1).gather(1, y[:, None]).sum()

    for seed in range(3):
        direction, step = draw(*x.shape, seed=seed).double(), 1e-5
        with torch.no_grad():
            slope = (log_p(x + step * direction) - log_p(x - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["unet", "classifier"])
def test_gradients_are_equal_whether_activations_are_kept_or_computed_again(kind, precision):
    config = replace(BASE, dropout=0.3)
    if kind == "unet":
        network = randomized(UNet(config, out_channels=3))
    else:
        network = randomized(NoisyClassifier(ClassifierConfig(encoder=config, num_classes=5)))
    network.train()
    found = []
    for recompute in (False, True):
        network.gradient_checkpointing = recompute
        network.zero_grad()
        torch.manual_seed(0)  # dropout draws the same masks, the second time in two passes
        with autocast("cpu", precision):
            loss = network(draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])).square().mean()
        loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


def test_activations_that_are_computed_again_are_not_kept():
    network = randomized(UNet(BASE, out_channels=3))

    def kept(recompute):
        network.gradient_checkpointing = recompute
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(draw(2, 3, 16, 16), torch.tensor([1.0, 2.0]))
        return numbers

    assert kept(True) < kept(False) / 3


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("kind", ["unet", "classifier"])
def test_16_bits_by_autocast_stay_near_float32_and_embeddings_and_head_are_float32(kind, precision, tolerance):
    config = replace(BASE, resampling="residual")
    if kind == "unet":
        network = randomized(UNet(config, out_channels=6))
    else:
        network = randomized(NoisyClassifier(ClassifierConfig(encoder=config, num_classes=5)))
    dtypes = {}
    network.time_embed.register_forward_hook(lambda _, __, out: dtypes.__setitem__("embedding", out.dtype))
    network.middle_block.register_forward_hook(lambda _, __, out: dtypes.__setitem__("torso", out.dtype))
    x, t = draw(3, 3, 16, 16), torch.tensor([0.0, 3.25, 999.75])
    with torch.no_grad():
        expected = network(x, t).double()
        with autocast("cpu", precision):
            found = network(x, t)
            dtypes["projection"] = next(project(torch.zeros(3, 128), network.torso)).values.dtype
    assert dtypes["embedding"] == dtypes["projection"] == found.dtype == torch.float32
    assert dtypes["torso"] == {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    close(found, expected, tolerance)


CONVOLUTIONS = {
    "unet": lambda: UNet(replace(BASE, resampling="conv"), out_channels=3),
    "superres": lambda: SuperResUNet(SuperResConfig(unet=replace(BASE, resampling="residual"), small_size=4), 3),
    "classifier": lambda: NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_16_bit_weights_are_the_convolutions_of_the_torso_and_no_others(kind):
    network = to_inference_dtype(CONVOLUTIONS[kind](), "fp16")
    halved = {name for name, tensor in network.state_dict().items() if tensor.dtype == torch.float16}
    convolutions = {
        name
        for name, tensor in network.state_dict().items()
        if name.startswith(("input_blocks.", "middle_block.", "output_blocks."))
        # Kernels have three or four axes; a bias is the convolution's if its kernel is beside it.
        if network.state_dict()[name.rpartition(".")[0] + ".weight"].ndim > 2
    }
    assert halved == convolutions
    assert any(".qkv." in name for name in halved)


@pytest.mark.parametrize("size", [1, 4])
def test_a_projection_of_pixels_is_the_same_as_convolution_and_as_matrix_product(size):
    conv, x = torch.nn.Conv1d(6, 9, 1).double(), draw(2, 6, size, size).double()
    assert torch.allclose(pointwise(conv, x), matrix_product(conv, x), rtol=1e-13, atol=1e-13)


WATCHED = {
    "unet": lambda: UNet(replace(BASE, resampling="residual", num_classes=3), out_channels=6),
    "unet, additive": lambda: UNet(replace(BASE, conditioning="additive", dropout=0.1), out_channels=3),
    "superres": lambda: SuperResUNet(SuperResConfig(unet=BASE, small_size=4), out_channels=3),
    "classifier": lambda: NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5)),
}


@pytest.mark.parametrize("kind", WATCHED)
def test_hooks_on_any_layer_see_it_called_and_change_nothing(kind):
    network = randomized(WATCHED[kind]())
    inputs = {name: value + 1 for name, value in network.example_inputs(2).items()}
    with torch.no_grad():
        expected = network(**inputs)
        seen = set()
        handles = [
            module.register_forward_hook(lambda *_, name=name: seen.add(name))
            for name, module in network.named_modules()
        ]
        close(network(**inputs), expected.double())
        assert {name for name, module in network.named_modules() if not list(module.children())} <= seen
        for handle in handles:
            handle.remove()
        assert torch.equal(network(**inputs), expected)


@pytest.mark.parametrize("conditioning", ["adagn", "additive"])
def test_blocks_are_called_with_the_embedding_as_the_published_ones_are(conditioning):
    network = randomized(UNet(replace(BASE, conditioning=conditioning, resampling="residual"), out_channels=3))
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 500.0])
    with torch.no_grad():
        emb, h, skips = network.time_embed(t), x, []
        for block in network.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = network.middle_block(h, emb)
        for block in network.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        close(network.out(h), network(x, t).double())


def test_the_sinusoids_of_t_are_those_of_float32_whatever_the_network_is_in():
    network = randomized(UNet(BASE, out_channels=3))
    frequencies = network.time_embed.frequencies.clone()
    assert torch.equal(network.to(torch.bfloat16).time_embed.frequencies, frequencies)
    with torch.device("meta"):
        empty = UNet(BASE, out_channels=3)
    assert torch.equal(empty.to_empty(device="cpu").time_embed.frequencies, frequencies)


def test_a_whole_network_of_16_bits_is_near_float32_too():
    network = randomized(UNet(BASE, out_channels=3))
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    with torch.no_grad():
        expected = network(x, t).double()
        close(network.to(torch.bfloat16)(x, t), expected, 8e-2)


def test_a_classifier_with_16_bit_weights_gives_float32_logits():
    network = randomized(NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5)))
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    with torch.no_grad():
        expected = network(x, t).double()
        found = to_inference_dtype(network, "fp16")(x, t)
    assert found.dtype == torch.float32
    close(found, expected, 5e-3)


def test_the_small_image_of_training_is_made_of_means_over_areas():
    image = draw(2, 3, 8, 8)
    torch.testing.assert_close(reduced(image, 4), image.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5)))
    with pytest.raises(ValueError, match="small_size=9"):
        reduced(image, 9)


def config(**changes):
    return replace(BASE, **changes)


def classifier():
    return NoisyClassifier(ClassifierConfig(encoder=BASE, num_classes=5))


def superres():
    return SuperResUNet(SuperResConfig(unet=BASE, small_size=4), out_channels=3)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: config(channel_mult=(0.3, 1, 1)), r"a level of 9.6 channels"),
        (lambda: config(channel_mult=(0.5, 1, 1)), r"a level of 16 channels: GroupNorm needs multiples of 32"),
        (lambda: config(num_heads_upsample=2), r"changes nothing with model.num_head_channels=16"),
        (
            lambda: config(num_heads=4, num_head_channels=None, num_heads_upsample=5),
            r"upsample=5: must divide",
        ),
        (lambda: ClassifierConfig(encoder=config(num_classes=10)), r"a classifier is not told the class"),
        (
            lambda: ClassifierConfig(encoder=config(**HEADS)),
            r"or another pool",
        ),
        (lambda: ClassifierConfig(encoder=BASE, num_classes=1), r"num_classes=1"),
        (lambda: SuperResConfig(unet=BASE, small_size=16), r"small_size=16: .* less than superres.unet.image_size=16"),
        (
            lambda: config(attention_resolutions=(), num_heads=4, num_head_channels=None, num_heads_upsample=2),
            r"way up",
        ),
        (lambda: UNet(BASE, out_channels=0), r"out_channels=0"),
        (lambda: UNet(BASE, out_channels=3)(draw(2, 3, 6, 8), draw(2)), r"multiples of 4"),
        (lambda: UNet(BASE, out_channels=3)(draw(2, 1, 8, 8), draw(2)), r"takes \(b, 3, h, w\)"),
        (lambda: UNet(config(num_classes=9), out_channels=3)(draw(1, 3, 8, 8), draw(1), torch.tensor([9])), r"0 to 8"),
        (lambda: classifier()(draw(2, 3, 6, 8), draw(2)), r"multiples of 4"),
        (lambda: superres()(draw(2, 1, 16, 16), draw(2), low_res=draw(2, 1, 4, 4)), r"takes \(b, 3, h, w\)"),
        (lambda: check_inputs(BASE, draw(2, 3, 6, 8), draw(2), channels=3), r"multiples of 4"),
        (lambda: check_inputs(BASE, draw(2, 1, 8, 8), draw(2), channels=3), r"takes \(b, 3, h, w\)"),
        (lambda: check_inputs(BASE, draw(2, 3, 8, 8), draw(3), channels=3), r"model_t of shape \(3,\) for 2 images"),
        (lambda: check_inputs(BASE, draw(2, 3, 8, 8), draw(2, 1), channels=3), r"t of shape \(2, 1\)"),
        (lambda: check_inputs(BASE, draw(2, 3, 8, 8).byte(), draw(2), channels=3), r"x of torch.uint8"),
        (lambda: check_inputs(BASE, draw(2, 3, 8, 8), draw(2) > 0, channels=3), r"model_t of torch.bool"),
        (lambda: config(num_classes=True), r"num_classes=True: must be a whole number, or null"),
        (lambda: superres()(draw(1, 3, 8, 8), draw(1), low_res=draw(1, 3, 4, 4)), r"takes .* of shape \(1, 3, 2, 2\)"),
        (lambda: check_labels(torch.tensor([0, 9]), images=2, num_classes=9), r"0 to 9; this network knows 0 to 8"),
        (lambda: check_labels(torch.tensor([0, -1]), images=2, num_classes=9), r"-1 to 0"),
        (lambda: check_labels(torch.tensor([0.0, 1.0]), images=2, num_classes=9), r"torch.float32"),
        (lambda: check_labels(torch.tensor([[0, 1]]), images=2, num_classes=9), r"shape \(1, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


WRONG_CHOICES = """
from dataclasses import replace
import torch
from diffusion.classifier import ClassifierConfig
from diffusion.guidance import classifier_guide, log_probability_gradient
from diffusion.openai_checkpoints import load_published
from diffusion.unet import UNet, UNetConfig

base = UNetConfig(image_size=8, channel_mult=(1, 2), attention_resolutions=())
network = UNet(base, out_channels=3)
logits = lambda x, t: x.mean(dim=(2, 3))
two = {"x_t": torch.zeros(2, 3, 8, 8), "model_t": torch.zeros(2)}
for attempt in (
    lambda: replace(base, attention_layout="newer"),
    lambda: replace(base, conditioning="film"),
    lambda: replace(base, resampling="blur"),
    lambda: replace(base, residual_scale="2"),
    lambda: ClassifierConfig(encoder=base, pool="max"),
    lambda: load_published(network, network.state_dict(), attention_layout="newer"),
    lambda: replace(base, image_size=16.0),
    lambda: log_probability_gradient(logits, **two, y=torch.zeros(1).long()),
    lambda: log_probability_gradient(logits, **two, y=torch.zeros(2)),
    lambda: classifier_guide(logits, y=torch.zeros(2, 1).long(), guidance_scale=1.0),
):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""


def test_a_choice_that_is_none_is_refused_also_where_nothing_checks_types():
    # In a process of its own: here annotations are checked, and would be first.
    ended = subprocess.run([sys.executable, "-c", WRONG_CHOICES], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.stdout.splitlines() == [
        "model.attention_layout='newer': must be one of 'legacy', 'new'",
        "model.conditioning='film': must be one of 'adagn', 'additive'",
        "model.resampling='blur': must be one of 'conv', 'pool', 'residual'",
        "model.residual_scale='2': must be one of '1', '1/sqrt(2)'",
        "classifier.pool='max': must be one of 'attention', 'adaptive', 'spatial', 'spatial_v2'",
        "attention_layout='newer': must be one of 'legacy', 'new'",
        "model.image_size=16.0: must be a whole number, 1 or more",
        "y of shape (1,) and torch.int64: one int64 or int32 label an image, (2,)",
        "y of shape (2,) and torch.float32: one int64 or int32 label an image, (2,)",
        "y of shape (2, 1) and torch.int64: one int64 or int32 label an image, (2,)",
    ], ended.stderr


def test_an_image_and_its_small_one_may_both_be_of_another_size():
    network = randomized(superres())
    assert network(draw(2, 3, 8, 8), draw(2), low_res=draw(2, 3, 2, 2)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        (torch.tensor([0, 5]), r"0 to 5; this network knows 0 to 4"),
        (torch.tensor([0, -1]), r"-1 to 0"),
    ],
)
def test_a_classifiers_gradient_is_of_one_known_label_an_image(y, complaint):
    with pytest.raises(ValueError, match=complaint):
        log_probability_gradient(classifier(), x_t=draw(2, 3, 16, 16), model_t=torch.zeros(2), y=y)


def test_a_small_image_of_another_size_is_refused():
    network = superres()
    with pytest.raises(ValueError, match=r"of shape \(2, 3, 4, 4\) beside x"):
        network(draw(2, 3, 16, 16), torch.zeros(2), low_res=draw(2, 3, 8, 8))


def test_a_classifier_of_other_images_than_its_own_is_refused():
    network = classifier()
    with pytest.raises(ValueError, match="has positions for 16"):
        network(draw(2, 3, 32, 32), torch.zeros(2))
