"""Random small networks of many kinds, each with a twin whose norms have no eps to speak of."""

import random

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm
from twins import in_general_position

WIDTH = 6
NO_EPS = 1e-28
"""Still above what rounding leaves of a constant channel."""


class Sum(nn.Module):
    """A residual branch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Function(nn.Module):
    """A function of the activations without parameters."""

    def __init__(self, name, function):
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self):
        return self.name

    def forward(self, x):
        return self.function(x)


class Gain(nn.Module):
    """LayerScale: factors of any shape that broadcasts."""

    def __init__(self, shape, size):
        super().__init__()
        self.weight = nn.Parameter(size * (0.5 + torch.rand(shape)))

    def forward(self, x):
        return self.weight * x


class LowRank(nn.Module):
    """A factorised layer with one bias beside both factors, over the last axis."""

    def __init__(self, width, bias):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(width, 3)), nn.Parameter(torch.randn(3, width))
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x):
        return F.linear(F.linear(x, self.down), self.up, self.bias)


class Experts(nn.Module):
    """Linear experts stacked in one weight, all used, each followed by a norm of its own."""

    def __init__(self, norm):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.norm = norm

    def forward(self, x):
        return self.norm(torch.einsum("ntd,edh->neth", x, self.weight)).square().sum(1)


class Attention(nn.Module):
    """Self-attention of two heads with or without norms of queries and keys, its projections separate or fused."""

    def __init__(self, fused, norm):
        super().__init__()
        self.fused = fused
        self.project = nn.ModuleList(
            [nn.Linear(WIDTH, 3 * WIDTH)] if fused else [nn.Linear(WIDTH, WIDTH) for _ in "qkv"]
        )
        self.norms = nn.ModuleList([norm(), norm()])
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        parts = self.project[0](x).chunk(3, -1) if self.fused else [layer(x) for layer in self.project]
        q, k, v = (part.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for part in parts)
        z = F.scaled_dot_product_attention(self.norms[0](q), self.norms[1](k), v)
        return self.out(z.transpose(1, 2).flatten(2))


class ByHand(nn.Module):
    """Division by the root mean square along an axis, in float32, as language models write it."""

    def __init__(self, axis, eps):
        super().__init__()
        self.axis, self.eps = axis, eps

    def forward(self, x):
        y = x.float() if x.dtype != torch.float64 else x
        return (y * torch.rsqrt(y.pow(2).mean(self.axis, keepdim=True) + self.eps)).to(x.dtype)


def activations():
    return {
        "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU,
        "dropout": lambda: nn.Dropout(0.3),
    }  # fmt: skip


def on_channels(eps, dims):
    """Layers for (batch, channels, *positions) with `dims` positions; `eps` says what a norm's eps is in this twin."""
    conv, transposed = (nn.Conv1d, nn.ConvTranspose1d) if dims == 1 else (nn.Conv2d, nn.ConvTranspose2d)
    batch, instance = (nn.BatchNorm1d, nn.InstanceNorm1d) if dims == 1 else (nn.BatchNorm2d, nn.InstanceNorm2d)
    pool, average = (nn.MaxPool1d, nn.AvgPool1d) if dims == 1 else (nn.MaxPool2d, nn.AvgPool2d)
    w, ones = WIDTH, (1,) * dims
    return activations() | {
        "conv": lambda: conv(w, w, 3, padding=1),
        "conv 1, no bias": lambda: conv(w, w, 1, bias=False),
        "two groups": lambda: conv(w, w, 3, padding=1, groups=2, bias=False),
        "depthwise": lambda: conv(w, w, 3, padding=1, groups=w),
        "depthwise 1": lambda: conv(w, w, 1, groups=w, bias=False),
        "gray": lambda: nn.Sequential(conv(w, 1, 1), conv(1, w, 3, padding=1, bias=False)),
        "transposed": lambda: transposed(w, w, 3, padding=1, bias=False),
        "transposed, bias": lambda: transposed(w, w, 3, padding=1),
        "transposed, three groups": lambda: transposed(w, w, 3, padding=1, groups=3, bias=False),
        "transposed, depthwise": lambda: transposed(w, w, 3, padding=1, groups=w, bias=False),
        "weight norm 0": lambda: weight_norm(conv(w, w, 3, padding=1)),
        "weight norm 1": lambda: weight_norm(conv(w, w, 3, padding=1), dim=1),
        "weight norm 2": lambda: weight_norm(conv(w, w, 3, padding=1), dim=2),
        "weight norm, whole": lambda: weight_norm(conv(w, w, 3, padding=1), dim=None),
        "batch norm": lambda: batch(w, eps=eps(1e-5)),
        "batch norm, plain": lambda: batch(w, eps=eps(1e-3), affine=False),
        "group norm 2": lambda: nn.GroupNorm(2, w, eps=eps(1e-5)),
        "group norm 3": lambda: nn.GroupNorm(3, w, eps=eps(1e-6)),
        "layer norm": lambda: nn.GroupNorm(1, w, eps=eps(1e-5)),
        "instance norm": lambda: instance(w, eps=eps(1e-5), affine=True),
        "functional batch norm": lambda: Function(
            "batch norm", lambda x: F.batch_norm(x, None, None, training=True, eps=eps(1e-5))
        ),
        "unit vectors": lambda: Function("unit", lambda x: F.normalize(x, dim=1, eps=eps(1e-12))),
        "by hand": lambda: ByHand(1, eps(1e-8)),
        "gain": lambda: Gain((w, *ones), 1.0),
        "layer scale": lambda: Gain((1, w, *ones), 1e-3),
        "scalar gain": lambda: Gain((), 1.0),
        "max": lambda: pool(3, 1, 1),
        "average": lambda: average(3, 1, 1),
    }  # fmt: skip


def on_features(eps):
    """Layers for (batch, tokens, features)."""
    w = WIDTH
    norms = {
        "layer norm": lambda: nn.LayerNorm(w, eps=eps(1e-5)),
        "rms norm": lambda: nn.RMSNorm(w, eps=eps(1e-6)),
        "rms norm, eps None": lambda: nn.RMSNorm(w, eps=eps(None)),
        "functional layer norm": lambda: Function("layer norm", lambda x: F.layer_norm(x, (w,), eps=eps(1e-5))),
        "functional rms norm": lambda: Function("rms norm", lambda x: F.rms_norm(x, (w,), eps=eps(None))),
        "by hand": lambda: ByHand(-1, eps(1e-6)),
    }
    return activations() | norms | {
        "linear": lambda: nn.Linear(w, w),
        "linear, no bias": lambda: nn.Linear(w, w, bias=False),
        "low rank": lambda: LowRank(w, True),
        "low rank, no bias": lambda: LowRank(w, False),
        "weight norm 0": lambda: weight_norm(nn.Linear(w, w)),
        "weight norm 1": lambda: weight_norm(nn.Linear(w, w), dim=1),
        "batch norm": lambda: BatchOfTokens(eps),
        "experts, layer norm": lambda: Experts(nn.LayerNorm(w, eps=eps(1e-5))),
        "experts, channels": lambda: Experts(ByHand(2, eps(1e-6))),
        "attention": lambda: Attention(False, nn.Identity),
        "attention, normed": lambda: Attention(False, lambda: nn.RMSNorm(w // 2, eps=eps(1e-6))),
        "attention, layer-normed": lambda: Attention(False, lambda: nn.LayerNorm(w // 2, eps=eps(1e-5))),
        "attention, unit vectors": lambda: Attention(
            False, lambda: Function("unit", lambda x: F.normalize(x, dim=-1, eps=eps(1e-12)))
        ),
        "attention, fused": lambda: Attention(True, lambda: nn.RMSNorm(w // 2, eps=eps(None))),
        "gain": lambda: Gain((w,), 1.0),
        "layer scale": lambda: Gain((1, 1, w), 1e-4),
        "layer scale, two axes": lambda: Gain((1, w), 1e-3),
    }  # fmt: skip


class BatchOfTokens(nn.Module):
    """BatchNorm over batch and tokens."""

    def __init__(self, eps):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, eps=eps(1e-5))

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).view(x.shape)


NORMS = ("norm", "unit", "by hand")


class Plan:
    """What network `number` is: drawn once, built as often as needed."""

    def __init__(self, number):
        draw = random.Random(number)
        self.number = number
        self.family = draw.choice(["signals", "signals", "images", "tokens", "tokens"])
        self.batch = 2 if draw.random() < 0.1 else 5
        self.pooled = self.family != "tokens" and draw.random() < 0.15
        names = list(self.layers(lambda eps: eps))
        normed = [name for name in names if any(word in name for word in NORMS)]
        self.stages = []
        for _ in range(draw.randint(1, 3)):
            # Half of all stages end in a norm, or most networks would have nothing to find.
            stage = [draw.choice(names) for _ in range(draw.randint(1, 4))]
            stage += [draw.choice(normed)] if draw.random() < 0.5 else []
            self.stages.append((draw.random() < 0.4, stage))
        self.sizes = (
            [10.0 ** -draw.uniform(1, 6) if draw.random() < 0.3 else 1.0 for _ in range(40)]
            if (draw.random() < 0.25)
            else []
        )

    def __repr__(self):
        said = f"network {self.number}: {self.family}, batch of {self.batch}"
        said += ", ".join(("", *("+".join(stage) + (" (residual)" if r else "") for r, stage in self.stages)))
        return said + (", pooled" if self.pooled else "") + (", some weights tiny" if self.sizes else "")

    def layers(self, eps):
        return on_features(eps) if self.family == "tokens" else on_channels(eps, 1 if self.family == "signals" else 2)

    def build(self, eps=lambda eps: eps):
        """The network, with a linear readout; `eps` maps the eps of every norm to the one it gets."""
        torch.manual_seed(self.number)
        layers, stages = self.layers(eps), []
        for residual, names in self.stages:
            stage = nn.Sequential(*(layers[name]() for name in names))
            stages.append(Sum(stage) if residual else stage)
        if self.pooled:
            head = nn.BatchNorm1d(8, eps=eps(1e-5))
            stages += [nn.AdaptiveAvgPool1d(1)] if self.family == "signals" else [nn.AdaptiveAvgPool2d(1)]
            stages += [nn.Flatten(), nn.Linear(WIDTH, 8), head, nn.ReLU(), nn.Linear(8, 2)]
        elif self.family == "tokens":
            stages.append(nn.Linear(WIDTH, 2))
        else:
            stages.append((nn.Conv1d if self.family == "signals" else nn.Conv2d)(WIDTH, 2, 1))
        network = nn.Sequential(*stages)
        with torch.no_grad():
            for p, size in zip([p for p in network.parameters() if p.ndim > 1], self.sizes, strict=False):
                p.mul_(size)
        return network

    def twin(self):
        """The same in float64, without eps and in general position."""
        return in_general_position(self.build(lambda eps: NO_EPS).double(), self.number)

    def inputs(self):
        torch.manual_seed(self.number + 1)
        shape = {"signals": (WIDTH, 7), "images": (WIDTH, 5, 5), "tokens": (4, WIDTH)}[self.family]
        return torch.randn(self.batch, *shape)
