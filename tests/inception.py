"""An Inception of chance weights, in the layout of the published TorchScript file: what an extractor of ours reads.

The layout (names of layers, what forward takes, how the input is resized within) is that of the network which
StyleGAN2-ADA's metrics and clean-fid load; channels may be fewer, so that a test takes no minutes.
"""

from __future__ import annotations

import io
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Towers side by side: `conv` is the first one's name, as in the file."""

    def __init__(self, conv: nn.Module, tower: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.tower, self.pool = conv, tower, pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.pool(x)], dim=1)


def mixed(inputs: int, outputs: int, *, stride: int = 1) -> Mixed:
    """A block of three towers that gives so many channels."""
    own = outputs // 4
    if stride == 2:
        return Mixed(
            Conv(inputs, own, 3, stride=2),
            nn.Sequential(OrderedDict(conv=Conv(inputs, own, 1), conv_1=Conv(own, 2 * own, 3, stride=2))),
            nn.Sequential(OrderedDict(pool=nn.MaxPool2d(3, stride=2), conv=Conv(inputs, outputs - 3 * own, 1))),
        )
    return Mixed(
        Conv(inputs, own, 1),
        nn.Sequential(
            OrderedDict(conv=Conv(inputs, own, 1), conv_1=Conv(own, 2 * own, (1, 7), padding=(0, 3)))
        ),
        nn.Sequential(
            OrderedDict(
                pool=nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
                conv=Conv(inputs, outputs - 3 * own, 1),
            )
        ),
    )  # fmt: skip


class Inception(nn.Module):
    """The published file's forward, word for word in what it takes and gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = Conv(3, w, 3, stride=2)
        layers["conv_1"] = Conv(w, w, 3)
        layers["conv_2"] = Conv(w, w, 3, padding=1)
        layers["pool0"] = nn.MaxPool2d(3, stride=2)
        layers["conv_3"] = Conv(w, w, 1)
        layers["conv_4"] = Conv(w, 2 * w, 3)
        layers["pool1"] = nn.MaxPool2d(3, stride=2)
        for number in range(11):  # mixed, mixed_1 ... mixed_10
            name = f"mixed_{number}" if number else "mixed"
            outputs = 2048 if number == 10 else 8 * w
            layers[name] = mixed(2 * w if number == 0 else 8 * w, outputs, stride=2 if number in (3, 8) else 1)
        layers["pool2"] = nn.AvgPool2d(8)
        self.layers = nn.Sequential(layers)
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        n, c, height, width = img.shape
        x = img.to(torch.float16 if use_fp16 else torch.float32)
        theta = torch.eye(2, 3, device=x.device)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        theta = theta.to(x.dtype).unsqueeze(0).repeat([n, 1, 1])
        grid = F.affine_grid(theta, [n, c, 299, 299], align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        x = (x - 128) / 128
        features = self.layers(x).reshape(-1, 2048).float()
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


def inception_file(*, width: int = 12, seed: int = 0) -> bytes:
    """The content of a TorchScript file, the same for the same arguments but for what TorchScript itself adds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Inception(width).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # so that different images stay different to the end
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(network), content)
    return content.getvalue()
