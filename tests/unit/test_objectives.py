"""What do classifiers and networks that make images larger learn from a batch?"""

import math

import pytest
import torch

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.flops import peak_of
from diffusion.gaussian import DiffusionConfig, build_schedule, q_sample
from diffusion.objectives import ClassifierObjective, DiffusionObjective, Examples, SuperResObjective
from diffusion.superres import SuperResConfig, SuperResUNet, reduced
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from diffusion.unet import UNet, UNetConfig

CHAIN = DiffusionConfig(num_timesteps=20, schedule="cosine")
SCHEDULE = build_schedule(CHAIN)
SMALL = {
    "image_size": 8, "channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1,
    "attention_resolutions": (),
}  # fmt: skip
T = torch.tensor([0, 3, 9, 19])


def examples(classes):
    generator = torch.Generator().manual_seed(0)
    x_start = torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1
    return Examples(x_start, torch.arange(4), torch.arange(4) % classes), torch.randn(4, 1, 8, 8, generator=generator)


def logits_of(table):
    return lambda x, model_t: torch.tensor(table)


def test_a_classifier_is_measured_by_cross_entropy_and_whether_the_class_is_its_first_choice():
    batch, eps = examples(2)
    measured = ClassifierObjective(SCHEDULE)(
        logits_of([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 3.0]]), batch, t=T, eps=eps
    )
    expected = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(3)), math.log(1 + math.exp(-3))]
    torch.testing.assert_close(measured.objective, torch.tensor(expected))
    assert measured.shown["accuracy"].tolist() == [1, 0, 0, 1]
    assert set(measured.shown) == {"accuracy"}  # of two classes five are always right


def test_the_fifth_choice_counts_where_there_are_more_classes():
    batch, eps = examples(4)
    ranks = torch.arange(7.0).flip(0).repeat(4, 1)
    batch = Examples(batch.x_start, batch.index, torch.tensor([0, 4, 5, 6]))
    shown = ClassifierObjective(SCHEDULE)(lambda x, model_t: ranks, batch, t=T, eps=eps).shown
    assert shown["accuracy"].tolist() == [1, 0, 0, 0]
    assert shown["accuracy_top5"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("noised", [True, False])
def test_a_classifier_sees_noise_of_its_t_or_the_clean_image_at_t_0(noised):
    batch, eps = examples(2)
    seen = []

    def classifier(x, model_t):
        seen.append((x, model_t))
        return torch.zeros(4, 2)

    ClassifierObjective(SCHEDULE, noised=noised)(classifier, batch, t=T, eps=eps)
    x, model_t = seen[0]
    noisy = q_sample(SCHEDULE, x_start=batch.x_start, t=T, eps=eps)
    assert torch.equal(x, noisy if noised else batch.x_start)
    assert torch.equal(model_t, SCHEDULE.model_t(T if noised else torch.zeros_like(T)))


def test_a_classifier_without_classes_to_learn_from_is_refused():
    batch, eps = examples(2)
    with pytest.raises(ValueError, match="these examples have none"):
        ClassifierObjective(SCHEDULE)(logits_of([[0.0]]), Examples(batch.x_start, batch.index), t=T, eps=eps)


def test_a_conditional_model_is_told_the_classes_and_another_is_not():
    batch, eps = examples(3)
    torch.manual_seed(0)
    conditional = UNet(UNetConfig(**SMALL, num_heads=1, num_classes=3), out_channels=2)
    objective = DiffusionObjective(CHAIN, SCHEDULE)
    assert objective(conditional, batch, t=T, eps=eps).objective.shape == (4,)
    with pytest.raises(ValueError, match="y was not given"):
        objective(conditional, Examples(batch.x_start, batch.index), t=T, eps=eps)


def test_a_network_that_enlarges_is_shown_the_means_of_the_image_it_is_to_draw():
    batch, eps = examples(1)
    batch, seen = Examples(batch.x_start, batch.index), []

    def network(x, model_t, *, low_res):
        seen.append(low_res)
        return torch.zeros(4, 2, 8, 8)

    SuperResObjective(CHAIN, SCHEDULE, 4)(network, batch, t=T, eps=eps)
    torch.testing.assert_close(seen[0], batch.x_start.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5)))
    assert torch.equal(seen[0], reduced(batch.x_start, 4))


def network_of(kind):
    torch.manual_seed(0)
    if kind == "classifier":
        encoder = UNetConfig(**SMALL, num_heads=None, num_head_channels=16)
        return NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=4)), ClassifierObjective(SCHEDULE)
    unet = UNetConfig(**SMALL, num_heads=1)
    network = SuperResUNet(SuperResConfig(unet=unet, small_size=4), out_channels=2)
    return network, SuperResObjective(CHAIN, SCHEDULE, 4)


@pytest.mark.parametrize("kind", ["classifier", "superres"])
def test_both_learn(kind):
    network, objective = network_of(kind)
    config = TrainConfig(images=400, batch_size=4, lr=2e-3, reduction=TreeConfig(shards=1))
    state, losses = build_train_state(config, network, num_timesteps=20), []
    for step in range(60):
        batch, _ = examples(4)
        given = batch if kind == "classifier" else Examples(batch.x_start, batch.index)
        losses.append(float(train_step(state, network, objective, given, step=step, seed=0).means[0]))
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989e12),
        ("NVIDIA H100 PCIe", "fp16", False, 756e12),
        ("NVIDIA A100-SXM4-40GB", "float32", False, 19.5e12),
        ("NVIDIA A100-SXM4-40GB", "float32", True, 156e12),
        ("NVIDIA L40S", "bf16", False, 362e12),
        ("NVIDIA A10G", "bf16", False, 70e12),
        ("NVIDIA A1000 Laptop GPU", "bf16", False, None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, precision, tf32, expected):
    assert peak_of(name, precision, tf32=tf32) == expected
