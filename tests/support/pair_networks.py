"""Small networks with their pairs of factors derived by hand: model, inputs, labels.

A label is (group, degree, left, right, k), with the parts of either side. Derivations are beside the labels.
"""

import torch
from retract.manifolds import Part
from torch import nn

D = 12
"""Width of the residual stream."""
GL, SCALING, POSITIVE = "GL", "scaling", "positive scaling"
Network = tuple
"""What a function of this module that is a network returns: model, inputs, labels."""


def pair(left, right, group=SCALING, k=1, degree=1.0):
    """A label; a part is a `Part`, or the name of a parameter whose dim 0 it is, or (name, dim, …) as in `Part`."""

    def parts(side):
        side = side if isinstance(side, list) else [side]
        return tuple(Part(*part) if isinstance(part, tuple) else Part(part) for part in side)

    return group, degree, parts(left), parts(right), k


class Residual(nn.Module):
    """x + f(norm x) with a readout, so that nothing but what is inside of f can be transformed; the norm has no weight."""

    def __init__(self, inner, norm=None):
        super().__init__()
        self.inner, self.norm = inner, norm or nn.RMSNorm(D, elementwise_affine=False)

    def forward(self, x):
        return x + self.inner(self.norm(x))


def entries(part, shape, k):
    """Numbers of the entries of a parameter that are in a part: (points, rows, columns)."""
    return part.grid(shape, k).split(torch.arange(torch.Size(shape).numel()).view(shape))


def points(shapes, group, degree, left, right, k):
    """A label, or a pair, as the set of its points: each the set of its columns, each the entries of both sides."""
    sides = [[(part.name, entries(part, shapes[part.name], k)) for part in side] for side in (left, right)]
    found = set()
    for point in range(sides[0][0][1].shape[0]):
        columns = []
        for c in range(k):
            both = [frozenset((n, e) for n, at in side for e in at[point, :, c].tolist()) for side in sides]
            columns.append(frozenset(both) if degree == 1 else tuple(both))
        found.add((group, degree, frozenset(columns)))
    return found


def of_report(report):
    shapes = {f.name: f.shape for f in report}
    return [points(shapes, p.group, p.degree, p.factors.left, p.factors.right, p.k) for p in report.pairs]


def tokens(batch=3, length=7):
    return (torch.randn(batch, length, D),)


class Heads(nn.Module):
    """Attention on queries (…, heads, k), keys and values (…, groups, k), with or without rotary embeddings."""

    def __init__(self, heads, groups=None, rotary=None, interleaved=False):
        super().__init__()
        self.heads, self.groups, self.rotary, self.interleaved = heads, groups or heads, rotary, interleaved

    def turned(self, z):
        """The first `rotary` numbers of each head turned by angles that grow with the position."""
        n = self.rotary
        angles = torch.arange(z.shape[-2])[:, None] * 3.0 ** -torch.arange(n // 2)
        c, s = angles.cos().to(z), angles.sin().to(z)
        z, rest = z[..., :n], z[..., n:]
        a, b = (z[..., ::2], z[..., 1::2]) if self.interleaved else z.chunk(2, -1)
        pairs = (a * c - b * s, a * s + b * c)
        z = torch.stack(pairs, -1).flatten(-2) if self.interleaved else torch.cat(pairs, -1)
        return torch.cat([z, rest], -1)

    def forward(self, q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        z = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return z.transpose(1, 2)


class Attention(nn.Module):
    """Separate projections, with or without biases, groups of queries, rotary embeddings, norms of queries and keys."""

    def __init__(self, heads=3, groups=None, k=4, bias=False, norm=None, **options):
        super().__init__()
        groups = groups or heads
        self.q, self.k, self.v = (nn.Linear(D, n * k, bias) for n in (heads, groups, groups))
        self.o = nn.Linear(heads * k, D)
        self.norms = nn.ModuleList([norm(k), norm(k)] if norm else [nn.Identity(), nn.Identity()])
        self.heads, self.size = Heads(heads, groups, **options), k

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)) for layer in (self.q, self.k, self.v))
        return self.o(self.heads(self.norms[0](q), self.norms[1](k), v).flatten(-2))


class Fused(nn.Module):
    """One projection, which `split` takes apart into queries, keys and values, (…, heads, k) each."""

    def __init__(self, project, split, heads):
        super().__init__()
        self.project, self.split, self.heads = project, split, heads
        self.o = nn.Linear(12, D)

    def forward(self, x):
        return self.o(self.heads(*self.split(self.project(x))).flatten(-2))


# Attention.


def attention() -> Network:
    """The product of each head's queries and keys is all that is used of them, and that of its values and outputs."""
    return Residual(Attention()), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 4),
        pair("inner.k.weight", "inner.q.weight", GL, 4),
    ]  # fmt: skip


def attention_with_biases() -> Network:
    """The bias of the keys adds the same to all scores of a query, which softmax forgets: it is dead. Those of values
    and queries are rows like others."""
    return Residual(Attention(bias=True)), tokens(), [
        pair(("inner.o.weight", 1), ["inner.v.weight", "inner.v.bias"], GL, 4),
        pair("inner.k.weight", ["inner.q.weight", "inner.q.bias"], GL, 4),
    ]  # fmt: skip


def grouped_queries() -> Network:
    """Two query heads for each of two key heads: their factors are one below the other."""
    return Residual(Attention(4, 2, 3)), tokens(), [
        pair(("inner.o.weight", 1, 0, ((2, 6),), 3, ((2, 3),)), "inner.v.weight", GL, 3),
        pair("inner.k.weight", ("inner.q.weight", 0, 0, ((2, 6),), 3, ((2, 3),)), GL, 3),
    ]  # fmt: skip


def multi_query() -> Network:
    """All query heads share one key and one value head, with a bias."""
    return Residual(Attention(3, 1, 4, bias=True)), tokens(), [
        pair(("inner.o.weight", 1, 0, 1, 4, ((3, 4),)), ["inner.v.weight", "inner.v.bias"], GL, 4),
        pair("inner.k.weight", [("inner.q.weight", 0, 0, 1, 4, ((3, 4),)), ("inner.q.bias", 0, 0, 1, 4, ((3, 4),))],
             GL, 4),
    ]  # fmt: skip


def rotary() -> Network:
    """Numbers c and c + 2 of a head of four are turned together: a factor for both leaves the scores."""
    frequencies = (0, 0, ((3, 4), (2, 1)), 1, ((2, 2),))
    return Residual(Attention(rotary=4)), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 4),
        pair(("inner.k.weight", *frequencies), ("inner.q.weight", *frequencies)),
    ]  # fmt: skip


def rotary_interleaved() -> Network:
    """Numbers 2 c and 2 c + 1 are turned together; biases are turned, too, and that of the keys is not dead."""
    frequencies = (0, 0, 6, 1, ((2, 1),))
    return Residual(Attention(rotary=4, interleaved=True, bias=True)), tokens(), [
        pair(("inner.o.weight", 1), ["inner.v.weight", "inner.v.bias"], GL, 4),
        pair([("inner.k.weight", *frequencies), ("inner.k.bias", *frequencies)],
             [("inner.q.weight", *frequencies), ("inner.q.bias", *frequencies)]),
    ]  # fmt: skip


def rotary_in_part() -> Network:
    """Of heads of six, four numbers are turned and two are not."""
    frequencies = (0, 0, ((2, 6), (2, 1)), 1, ((2, 2),))
    rest = (0, 4, ((2, 6),), 2)
    return Residual(Attention(2, k=6, rotary=4)), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 6),
        pair(("inner.k.weight", *frequencies), ("inner.q.weight", *frequencies)),
        pair(("inner.k.weight", *rest), ("inner.q.weight", *rest), GL, 2),
    ]  # fmt: skip


def rotary_grouped() -> Network:
    """The two numbers of a frequency in each of the two query heads of a key head."""
    return Residual(Attention(4, 2, 4, rotary=4)), tokens(), [
        pair(("inner.o.weight", 1, 0, ((2, 8),), 4, ((2, 4),)), "inner.v.weight", GL, 4),
        pair(("inner.k.weight", 0, 0, ((2, 4), (2, 1)), 1, ((2, 2),)),
             ("inner.q.weight", 0, 0, ((2, 8), (2, 1)), 1, ((2, 4), (2, 2)))),
    ]  # fmt: skip


def rotary_grouped_in_part() -> Network:
    """Four of six numbers of each head are turned, in the two query heads of a key head: c with c + 2."""
    return grouped_in_part(2, ((2, 1),), interleaved=False)


def rotary_grouped_interleaved_in_part() -> Network:
    """The same, 2 c with 2 c + 1."""
    return grouped_in_part(1, ((2, 2),), interleaved=True)


def grouped_in_part(distance, frequencies, interleaved):
    queries, keys = (((2, 6 * n), *frequencies) for n in (2, 1))
    return Residual(Attention(4, 2, 6, rotary=4, interleaved=interleaved)), tokens(), [
        pair(("inner.o.weight", 1, 0, ((2, 12),), 6, ((2, 6),)), "inner.v.weight", GL, 6),
        pair(("inner.k.weight", 0, 0, keys, 1, ((2, distance),)),
             ("inner.q.weight", 0, 0, queries, 1, ((2, 6), (2, distance)))),
        pair(("inner.k.weight", 0, 4, ((2, 6),), 2), ("inner.q.weight", 0, 4, ((2, 12),), 2, ((2, 6),)), GL, 2),
    ]  # fmt: skip


def rotary_in_large_part() -> Network:
    """Of heads of eight, six numbers are turned, c with c + 3, which divides neither eight nor sixteen."""
    frequencies = (0, 0, ((2, 8), (3, 1)), 1, ((2, 3),))
    return Residual(Attention(2, k=8, rotary=6)), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 8),
        pair(("inner.k.weight", *frequencies), ("inner.q.weight", *frequencies)),
        pair(("inner.k.weight", 0, 6, ((2, 8),), 2), ("inner.q.weight", 0, 6, ((2, 8),), 2), GL, 2),
    ]  # fmt: skip


def normed_queries() -> Network:
    """Queries and keys are scale-invariant; their norms' weights are multiplied with each other, number by number."""
    norm = nn.RMSNorm
    return Residual(Attention(norm=lambda k: norm(k))), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 4),
        pair("inner.norms.1.weight", "inner.norms.0.weight"),
    ]  # fmt: skip


def sections() -> Network:
    """`nn.MultiheadAttention`: queries, keys and values one after the other. The keys' part of the bias is dead, but on the
    grid of the weight's rows."""

    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha = nn.MultiheadAttention(D, 3, batch_first=True)

        def forward(self, x):
            return self.mha(x, x, x, need_weights=False)[0]

    q, k, v = ([(f"inner.mha.in_proj_{kind}", 0, start, 3) for kind in ("weight", "bias")] for start in (0, 12, 24))
    model = Residual(Self())
    nn.init.normal_(model.inner.mha.in_proj_bias)
    return model, tokens(), [
        pair(("inner.mha.out_proj.weight", 1), v, GL, 4),
        pair(k, q, GL, 4),
    ]  # fmt: skip


def interleaved() -> Network:
    """Query, key and value of each head side by side."""

    def split(z):
        return z.unflatten(-1, (3, 3, 4)).unbind(-2)

    q, k, v = ([("inner.project.weight", 0, start, ((3, 12),))] for start in (0, 4, 8))
    return Residual(Fused(nn.Linear(D, 36, bias=False), split, Heads(3))), tokens(), [
        pair(("inner.o.weight", 1), v, GL, 4),
        pair(k, q, GL, 4),
    ]  # fmt: skip


def fused_rotary() -> Network:
    """Sections under rotary embeddings."""

    def split(z):
        return z.unflatten(-1, (3, 3, 4)).unbind(-3)

    def half(start):
        return ("inner.project.weight", 0, start, ((3, 4), (2, 1)), 1, ((2, 2),))

    return Residual(Fused(nn.Linear(D, 36, bias=False), split, Heads(3, rotary=4))), tokens(), [
        pair(("inner.o.weight", 1), ("inner.project.weight", 0, 24, 3), GL, 4),
        pair(half(12), half(0)),
    ]  # fmt: skip


def fused_groups() -> Network:
    """Per group two queries, then their key and their value; two groups."""

    def split(z):
        q, k, v = z.unflatten(-1, (2, 4, 3)).split([2, 1, 1], -2)
        return q.flatten(-3, -2), k.squeeze(-2), v.squeeze(-2)

    queries = ("inner.project.weight", 0, 0, ((2, 12),), 3, ((2, 3),))
    k, v = (("inner.project.weight", 0, start, ((2, 12),)) for start in (6, 9))
    return Residual(Fused(nn.Linear(D, 24, bias=False), split, Heads(4, 2))), tokens(), [
        pair(("inner.o.weight", 1, 0, ((2, 6),), 3, ((2, 3),)), v, GL, 3),
        pair(k, queries, GL, 3),
    ]  # fmt: skip


def grouped_sections() -> Network:
    """Four query heads, two key heads, two value heads, in sections, as in Phi-3; rotary or not is the same for values."""

    def split(z):
        return [t.unflatten(-1, (-1, 3)) for t in z.split([12, 6, 6], -1)]

    return Residual(Fused(nn.Linear(D, 24, bias=False), split, Heads(4, 2))), tokens(), [
        pair(("inner.o.weight", 1, 0, ((2, 6),), 3, ((2, 3),)), ("inner.project.weight", 0, 18, 2), GL, 3),
        pair(("inner.project.weight", 0, 12, 2), ("inner.project.weight", 0, 0, ((2, 6),), 3, ((2, 3),)), GL, 3),
    ]  # fmt: skip


class Transposed(nn.Module):
    """`Conv1D` of GPT-2: x W + b with W (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs) / 4)

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(D), Transposed(D, 3 * D), Transposed(D, D)
        self.heads = Heads(3)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (3, 4)) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))
        return x + self.c_proj(self.heads(q, k, v).flatten(-2))


def conv1d() -> Network:
    """A layer norm's weight and bias, divided by what the inputs of the fused projection are multiplied with."""
    q, k, v = ([("c_attn.weight", 1, start, 3), ("c_attn.bias", 0, start, 3)] for start in (0, 12, 24))
    return (
        GPT2(),
        tokens(),
        [
            pair("c_proj.weight", v, GL, 4),
            pair(k, q, GL, 4),
            pair("c_attn.weight", ["ln_1.weight", "ln_1.bias"]),
        ],
    )


class Gated(nn.Module):
    """Attention whose output is multiplied by the sigmoid of a gate that comes out of the queries' projection, per head."""

    def __init__(self, per_number):
        super().__init__()
        self.width = 8 if per_number else 5
        self.q, self.k, self.v = nn.Linear(D, 3 * self.width, False), nn.Linear(D, 12, False), nn.Linear(D, 12, False)
        self.o, self.heads = nn.Linear(12, D), Heads(3)

    def forward(self, x):
        q, gate = self.q(x).unflatten(-1, (3, self.width)).split([4, self.width - 4], -1)
        k, v = (layer(x).unflatten(-1, (3, 4)) for layer in (self.k, self.v))
        return self.o((self.heads(q, k, v) * gate.sigmoid()).flatten(-2))


def gated_attention() -> Network:
    """A gate per number leaves a scaling per number of the values."""
    return Residual(Gated(True)), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight"),
        pair("inner.k.weight", ("inner.q.weight", 0, 0, ((3, 8),)), GL, 4),
    ]  # fmt: skip


def gated_heads() -> Network:
    """A gate per head multiplies all numbers of it."""
    return Residual(Gated(False)), tokens(), [
        pair(("inner.o.weight", 1), "inner.v.weight", GL, 4),
        pair("inner.k.weight", ("inner.q.weight", 0, 0, ((3, 5),)), GL, 4),
    ]  # fmt: skip
