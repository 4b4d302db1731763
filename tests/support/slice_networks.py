"""Small networks in which slices of a fused weight are scale-invariant, with the points and the pairs beside them derived by hand.

A label is a list of points, each as the parts of a weight and of what scales along, with all numbers; and the pairs as in `pair_networks`.
"""

import torch
from pair_networks import GL, POSITIVE, D, Fused, Heads, Residual, Transposed, pair, tokens
from retract.manifolds import Part
from torch import nn
from torch.nn import functional as F  # noqa: N812

Network = tuple
"""What a function of this module that is a network returns: model, inputs, labels of slices, labels of pairs."""


def both(path, *numbers):
    """Slices of the weight and of the bias of a module."""
    return Part(f"{path}.weight", *numbers), Part(f"{path}.bias", *numbers)


class Normed(nn.Module):
    """Queries, keys and values as `split` has them, the first two normalized per head."""

    def __init__(self, split, k, norm=nn.RMSNorm):
        super().__init__()
        self.split, self.norms = split, nn.ModuleList([norm(k), norm(k)])

    def forward(self, z):
        q, k, v = self.split(z)
        return self.norms[0](q), self.norms[1](k), v


def fused(project, split, heads, k=4, norm=nn.RMSNorm):
    return Residual(Fused(project, Normed(split, k, norm), heads))


GAINS = pair("inner.split.norms.1.weight", "inner.split.norms.0.weight")
"""The weights of the two normalization layers are multiplied with each other, number by number."""
W = "inner.project.weight"


def values(*rows):
    """The values' rows against the columns of the output projection."""
    return pair(("inner.o.weight", 1), [(W, *rows)], GL, 4)


def in_sections(z):
    return z.unflatten(-1, (3, 3, 4)).unbind(-3)


def side_by_side(z):
    return z.unflatten(-1, (3, 3, 4)).unbind(-2)


def sections() -> Network:
    """Three heads of queries, three of keys, and then the values."""
    model = fused(nn.Linear(D, 36, bias=False), in_sections, Heads(3))
    return model, tokens(), [[Part(W, 0, 0, 6, 4)]], [values(0, 24), GAINS]


def sections_with_biases() -> Network:
    """LayerNorm, in front of which the bias scales along with the rows. Its own bias is dead for the keys, as one in front would be."""
    model = fused(nn.Linear(D, 36), in_sections, Heads(3), norm=nn.LayerNorm)
    for norm in model.inner.split.norms:
        nn.init.normal_(norm.bias)
    v = [("inner.project.weight", 0, 24), ("inner.project.bias", 0, 24)]
    return (
        model,
        tokens(),
        [[*both("inner.project", 0, 0, 6, 4)]],
        [
            pair(("inner.o.weight", 1), v, GL, 4),
            pair("inner.split.norms.1.weight", ["inner.split.norms.0.weight", "inner.split.norms.0.bias"]),
        ],
    )


def interleaved() -> Network:
    """Query, key and value of each head side by side, under rotary embeddings, for which the weights of the norms are scaled by frequency."""
    model = fused(nn.Linear(D, 36, bias=False), side_by_side, Heads(3, rotary=4))
    halves = (0, 0, ((2, 1),), 1, ((2, 2),))
    gains = pair(("inner.split.norms.1.weight", *halves), ("inner.split.norms.0.weight", *halves))
    return model, tokens(), [[Part(W, 0, 0, ((3, 12), (2, 4)), 4)]], [values(0, 8, ((3, 12),)), gains]


def grouped_sections() -> Network:
    """Four query heads, two key heads, two value heads."""

    def split(z):
        return [t.unflatten(-1, (-1, 3)) for t in z.split([12, 6, 6], -1)]

    model = fused(nn.Linear(D, 24, bias=False), split, Heads(4, 2), 3)
    v = pair(("inner.o.weight", 1, 0, ((2, 6),), 3, ((2, 3),)), (W, 0, 18, 2), GL, 3)
    return model, tokens(), [[Part(W, 0, 0, 6, 3)]], [v, GAINS]


def grouped_side_by_side() -> Network:
    """Per group two queries, then their key and their value."""

    def split(z):
        q, k, v = z.unflatten(-1, (2, 4, 3)).split([2, 1, 1], -2)
        return q.flatten(-3, -2), k.squeeze(-2), v.squeeze(-2)

    model = fused(nn.Linear(D, 24, bias=False), split, Heads(4, 2), 3)
    v = pair(("inner.o.weight", 1, 0, ((2, 6),), 3, ((2, 3),)), (W, 0, 9, ((2, 12),)), GL, 3)
    return model, tokens(), [[Part(W, 0, 0, ((2, 12), (3, 3)), 3)]], [v, GAINS]


def transposed() -> Network:
    """`Conv1D` of GPT-2 with a bias, which RMSNorm lets scale along: columns."""
    model = fused(Transposed(D, 36), in_sections, Heads(3))
    v = pair(("inner.o.weight", 1), [(W, 1, 24), ("inner.project.bias", 0, 24)], GL, 4)
    return (
        model,
        tokens(),
        [[Part(W, 1, 0, 6, 4), Part("inner.project.bias", 0, 0, 6, 4)]],
        [v, GAINS],
    )


def heads_inside() -> Network:
    """The number of the head is the inner index: the rows of a head are three apart."""

    def split(z):
        return z.unflatten(-1, (3, 4, 3)).transpose(-1, -2).unbind(-3)

    model = fused(nn.Linear(D, 36, bias=False), split, Heads(3))
    return (
        model,
        tokens(),
        [[Part(W, 0, 0, ((2, 12), (3, 1)), ((4, 3),))]],
        [values(0, 24, ((3, 1),), ((4, 3),)), GAINS],
    )


def two_granularities() -> Network:
    """Queries are normalized per head, keys as a whole."""

    class Split(nn.Module):
        def forward(self, z):
            q, k, v = z.chunk(3, -1)
            q = F.rms_norm(q.unflatten(-1, (3, 4)), [4])
            return q, F.rms_norm(k, [12]).unflatten(-1, (3, 4)), v.unflatten(-1, (3, 4))

    model = Residual(Fused(nn.Linear(D, 36, bias=False), Split(), Heads(3)))
    return model, tokens(), [[Part(W, 0, 0, 3, 4)], [Part(W, 0, 12, 1, 12)]], [values(0, 24)]


class TwoNorms(nn.Module):
    """Features in two sections, normalized per head of four and as a whole, nothing else."""

    def __init__(self):
        super().__init__()
        self.project, self.o = nn.Linear(D, 20, bias=False), nn.Linear(20, D)

    def forward(self, x):
        one, other = self.project(x).split([12, 8], -1)
        one = F.rms_norm(one.unflatten(-1, (3, 4)), [4]).flatten(-2)
        return self.o(torch.cat([one, F.rms_norm(other, [8])], -1).tanh())


def all_of_it() -> Network:
    """All of the weight is invariant as a whole, and in finer points of two sizes."""
    points = [[Part(W, 0, 0, 3, 4)], [Part(W, 0, 12, 1, 8)]]
    return Residual(TwoNorms()), tokens(), points, []


class SideBySide(nn.Module):
    """Per head four queries, normalized as a whole over all heads, and four values."""

    def __init__(self, normed):
        super().__init__()
        self.normed, self.project, self.o = normed, nn.Linear(D, 24), nn.Linear(24, D)

    def forward(self, x):
        one, other = self.project(x).unflatten(-1, (3, 8)).split(4, -1)
        one = F.rms_norm(one, [3, 4])
        other = F.rms_norm(other, [4]) if self.normed else other
        return self.o(torch.cat([one, other], -1).flatten(-2).tanh())


def section_side_by_side() -> Network:
    """One point, which has four rows in each of three stretches."""
    return Residual(SideBySide(False)), tokens(), [[*both("inner.project", 0, 0, 1, ((3, 8), (4, 1)))]], []


def all_side_by_side() -> Network:
    """Three points more between them."""
    points = [[*both("inner.project", 0, 0, 1, ((3, 8), (4, 1)))], [*both("inner.project", 0, 4, ((3, 8),), 4)]]
    return Residual(SideBySide(True)), tokens(), points, []


class Gate(nn.Module):
    """A gated layer whose gate, the first half of a fused projection, is normalized."""

    def __init__(self, norm, bias):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(D, 20, bias), norm, nn.Linear(10, D)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        gate = self.norm(gate.flatten(0, -2)).view(gate.shape)
        return self.down(F.silu(gate) * up)


def half_of_a_gate() -> Network:
    """RMSNorm over the hidden units: one point. The other half is a pair with the next weight."""
    model = Residual(Gate(nn.RMSNorm(10, elementwise_affine=False), True))
    up = [("inner.up.weight", 0, 10), ("inner.up.bias", 0, 10)]
    return model, tokens(), [[*both("inner.up", 0, 0, 1, 10)]], [pair(("inner.down.weight", 1), up)]


def half_of_a_gate_by_units() -> Network:
    """BatchNorm per hidden unit: every row is a point; its bias is dead."""
    model = Residual(Gate(nn.BatchNorm1d(10), True))
    up = [("inner.up.weight", 0, 10), ("inner.up.bias", 0, 10)]
    return model, tokens(), [[Part("inner.up.weight", 0, 0, 10, 1)]], [pair(("inner.down.weight", 1), up)]


class Some(nn.Module):
    """Six heads of four, some of which are normalized."""

    def __init__(self, chosen):
        super().__init__()
        self.chosen, self.project, self.o = chosen, nn.Linear(D, 24), nn.Linear(24, D)

    def forward(self, x):
        z = list(self.project(x).unflatten(-1, (6, 4)).unbind(-2))
        for head in self.chosen:
            z[head] = F.rms_norm(z[head], [4])
        return self.o(torch.tanh(torch.cat(z, -1)))


def some_heads() -> Network:
    """Two heads that follow each other, and one further on."""
    points = [[*both("inner.project", 0, 0, 2, 4)], [*both("inner.project", 0, 16, 1, 4)]]
    return Residual(Some([0, 1, 4])), tokens(), points, []


class Experts(nn.Module):
    """Gated experts as stacked weights, (experts, outputs, inputs) or transposed, the gates normalized over the units of each."""

    def __init__(self, transposed):
        super().__init__()
        self.up = nn.Parameter(torch.randn((3, D, 20) if transposed else (3, 20, D)) / 4)
        self.up_bias = nn.Parameter(torch.randn(3, 20))
        self.down = nn.Parameter(torch.randn(3, D, 10) / 4)
        self.equation = "bti,eiu->bteu" if transposed else "bti,eui->bteu"

    def forward(self, x):
        gate, up = (torch.einsum(self.equation, x, self.up) + self.up_bias).chunk(2, -1)
        return torch.einsum("bteu,eou->bto", F.silu(F.rms_norm(gate, [10])) * up, self.down)


def _experts(transposed):
    dims = (0, 2) if transposed else (0, 1)
    gate = [Part("inner.up", dims, 0, ((3, 20),), 10), Part("inner.up_bias", (0, 1), 0, ((3, 20),), 10)]
    up = [("inner.up", dims, 10, ((3, 20), (10, 1))), ("inner.up_bias", (0, 1), 10, ((3, 20), (10, 1)))]
    return Residual(Experts(transposed)), tokens(), [gate], [pair(("inner.down", (0, 2)), up)]


def stacked_experts() -> Network:
    """The gate of each expert is a point, the other half of it a pair."""
    return _experts(transposed=False)


def transposed_experts() -> Network:
    """The same with inputs first."""
    return _experts(transposed=True)


class Channels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 12, 3), nn.GroupNorm(2, 8), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        one, other = self.first(x).split([8, 4], 1)
        return self.last(torch.cat([self.norm(one), other], 1).tanh())


def channels() -> Network:
    """Two groups of four filters are normalized, four filters are not."""
    return Channels(), (torch.randn(3, 3, 7, 7),), [[*both("first", 0, 0, 2, 4)]], []


def channels_of_a_transposed_convolution() -> Network:
    """Two groups of four channels along dim 1, all of the weight. Weight and bias of GroupNorm are units of the ReLU after it."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    points = [[Part("0.weight", 1, 0, 2, 4), Part("0.bias", 0, 0, 2, 4)]]
    return model, (torch.randn(3, 3, 5, 5),), points, [pair(("3.weight", 1), ["1.weight", "1.bias"], POSITIVE)]
