"""The papers' networks once more, as plainly as can be: float64, loops, from weights in the published layout.

An independent computation: nothing of diffusion/ is used. Every block's output is noted by its name.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


class Reference:
    """state: weights by published name. What their names and shapes do not show is told, as the published flags do."""

    def __init__(
        self, state, *, image_size, levels, num_res_blocks, attention_at, model_channels, heads,
        resampling="conv", layout="legacy", additive=False, rescale=False,
    ):  # fmt: skip
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.model_channels = model_channels
        self.heads = heads
        """(channels, way up) -> number of heads."""
        self.layout = layout
        self.additive = additive
        self.scale = math.sqrt(0.5) if rescale else 1.0
        self.seen = {}
        sizes = [image_size // 2**level for level in range(levels)]
        block = {size: ["residual", "attention"] if size in attention_at else ["residual"] for size in sizes}
        self.layers = {"input_blocks.0": ["conv"], "middle_block": ["residual", "attention", "residual"]}
        self.inputs = self.outputs = 0
        for level, size in enumerate(sizes):
            for layers in [block[size]] * num_res_blocks + ([[f"{resampling} down"]] if level < levels - 1 else []):
                self.inputs += 1
                self.layers[f"input_blocks.{self.inputs}"] = layers
        for level, size in reversed(list(enumerate(sizes))):
            for number in range(num_res_blocks + 1):
                last = level > 0 and number == num_res_blocks
                self.layers[f"output_blocks.{self.outputs}"] = block[size] + ([f"{resampling} up"] if last else [])
                self.outputs += 1

    def embedding(self, t, y):
        half = self.model_channels // 2
        # The published frequencies and phases are float32.
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        phase = t.float()[:, None] * frequencies[None]
        sinusoids = torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1).double()
        emb = self.linear("time_embed.2", self.silu(self.linear("time_embed.0", sinusoids)))
        return emb if y is None else emb + self.state["label_emb.weight"][y]

    def down(self, x, emb):
        h, outputs = x.double(), []
        for number in range(self.inputs + 1):
            h = self.block(f"input_blocks.{number}", h, emb)
            outputs.append(h)
        return outputs

    def unet(self, x, t, y=None):
        emb = self.embedding(t, y)
        skips = self.down(x, emb)
        h = self.block("middle_block", skips[-1], emb)
        for number in range(self.outputs):
            h = self.block(f"output_blocks.{number}", torch.cat([h, skips.pop()], dim=1), emb, way_up=True)
        return self.conv("out.2", self.silu(self.norm("out.0", h)), padding=1)

    def classifier(self, x, t, *, pool, head_channels=None):
        emb = self.embedding(t, None)
        outputs = self.down(x, emb)
        h = self.block("middle_block", outputs[-1], emb)
        if pool in ("spatial", "spatial_v2"):
            features = torch.cat([f.mean(dim=(2, 3)) for f in [*outputs, h]], dim=1)
            if pool == "spatial":
                return self.linear("out.2", self.linear("out.0", features).clamp(min=0))
            return self.linear("out.3", self.silu(self.norm("out.1", self.linear("out.0", features))))
        h = self.silu(self.norm("out.0", h))
        if pool == "adaptive":
            return self.conv("out.3", h.mean(dim=(2, 3), keepdim=True))[:, :, 0, 0]
        tokens = h.flatten(2)
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2)
        tokens = tokens + self.state["out.2.positional_embedding"]
        q, k, v = self.pointwise("out.2.qkv_proj", tokens).chunk(3, dim=1)
        heard = self.attend(q, k, v, tokens.shape[1] // head_channels)
        return self.pointwise("out.2.c_proj", heard)[:, :, 0]

    def block(self, name, h, emb, *, way_up=False):
        for number, kind in enumerate(self.layers[name]):
            h = self.seen[f"{name}.{number}"] = self.layer(f"{name}.{number}", kind, h, emb, way_up)
        self.seen[name] = h
        return h

    def layer(self, name, kind, h, emb, way_up):
        layers = {
            "conv": lambda: self.conv(name, h, padding=1),
            "residual": lambda: self.residual(name, h, emb, lambda x: x),
            "attention": lambda: self.attention(name, h, way_up),
            "conv down": lambda: self.conv(f"{name}.op", h, padding=1, stride=2),
            "conv up": lambda: self.conv(f"{name}.conv", self.up(h), padding=1),
            "pool down": lambda: self.down2(h),
            "pool up": lambda: self.up(h),
            "residual down": lambda: self.residual(name, h, emb, self.down2),
            "residual up": lambda: self.residual(name, h, emb, self.up),
        }
        return layers[kind]()

    def residual(self, name, x, emb, resample):
        h = self.conv(f"{name}.in_layers.2", resample(self.silu(self.norm(f"{name}.in_layers.0", x))), padding=1)
        from_t = self.linear(f"{name}.emb_layers.1", self.silu(emb))[:, :, None, None]
        if self.additive:
            h = self.norm(f"{name}.out_layers.0", h + from_t)
        else:
            scale, shift = from_t.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = self.conv(f"{name}.out_layers.3", self.silu(h), padding=1)
        skip = resample(x)
        if f"{name}.skip_connection.weight" in self.state:
            skip = self.conv(f"{name}.skip_connection", skip)
        return (skip + h) * self.scale

    def attention(self, name, x, way_up):
        tokens = self.norm(f"{name}.norm", x).flatten(2)
        qkv = self.pointwise(f"{name}.qkv", tokens)
        heads = self.heads(x.shape[1], way_up)
        if self.layout == "legacy":
            rows = qkv.reshape(len(x), heads, 3, -1, tokens.shape[2])
            q, k, v = (rows[:, :, i].reshape(len(x), -1, tokens.shape[2]) for i in range(3))
        else:
            q, k, v = qkv.chunk(3, dim=1)
        h = self.pointwise(f"{name}.proj_out", self.attend(q, k, v, heads))
        return (x + h.reshape(x.shape)) * self.scale

    def attend(self, q, k, v, heads):
        out = []
        for one_q, one_k, one_v in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            scores = torch.einsum("bct,bcs->bts", one_q, one_k) / math.sqrt(one_q.shape[1])
            out.append(torch.einsum("bts,bcs->bct", torch.softmax(scores, dim=-1), one_v))
        return torch.cat(out, dim=1)

    def norm(self, name, h):
        return functional.group_norm(h, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def conv(self, name, h, **how):
        return functional.conv2d(h, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def linear(self, name, h):
        return h @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def pointwise(self, name, tokens):
        weight, bias = self.state[f"{name}.weight"][:, :, 0], self.state[f"{name}.bias"]
        return torch.einsum("oc,bct->bot", weight, tokens) + bias[:, None]

    @staticmethod
    def silu(h):
        return h * torch.sigmoid(h)

    @staticmethod
    def down2(h):
        return (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4

    @staticmethod
    def up(h):
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
