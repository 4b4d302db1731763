"""Small networks of hidden units, channels and low ranks with their pairs derived by hand, as in `pair_networks`."""

import torch
from pair_networks import GL, POSITIVE, SCALING, D, Network, Residual, Transposed, pair, tokens
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm

H = 10
"""Hidden units."""


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def mlp(activation, bias=True):
    return nn.Sequential(nn.Linear(6, H, bias), activation, nn.Linear(H, 7, bias), activation, nn.Linear(7, 3, bias))


def units(group=POSITIVE, degree=1.0, bias=True):
    """Both hidden layers of `mlp`."""
    found = []
    for i in (0, 2):
        before, after = [f"{i}.weight", f"{i}.bias"][: 1 + bias], (f"{i + 2}.weight", 1)
        found.append(pair(after, before, group, 1) if degree == 1 else pair(before, after, group, 1, degree))
    return found


def samples(count=20, width=6):
    return (torch.randn(count, width),)


def relu() -> Network:
    """relu(a z) = a relu(z) for a > 0."""
    return mlp(nn.ReLU()), samples(), units()


def relu_without_bias() -> Network:
    return mlp(nn.ReLU(), bias=False), samples(), units(bias=False)


def couples() -> Network:
    """(max(x, y), |x| + |y| / 2) is a times as large where both numbers are; it does not turn with them."""

    def act(z):
        x, y = z.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([torch.maximum(x, y), x.abs() + y.abs() / 2], -1).flatten(-2)

    model = nn.Sequential(nn.Linear(6, H), Function(act), nn.Linear(H, 3))
    both = (0, H // 2, 1, ((2, 1),))
    label = pair([("2.weight", 1, *both)], [("0.weight", 0, *both), ("0.bias", 0, *both)], POSITIVE)
    return model, samples(), [label]


def leaky_relu() -> Network:
    return mlp(nn.LeakyReLU(0.1)), samples(), units()


def prelu() -> Network:
    """A slope of its own for each channel changes nothing."""
    model = nn.Sequential(nn.Linear(6, H), nn.PReLU(H), nn.Linear(H, 3))
    return model, samples(), units()[:1]


def absolute() -> Network:
    """|a z| = |a| |z|: a sign of the rows needs none of the columns, which is no pair; positive factors are."""
    return mlp(Function(torch.abs)), samples(), units()


def squared_relu() -> Network:
    """relu(a z)² = a² relu(z)²."""
    return mlp(Function(lambda z: z.relu().square())), samples(), units(POSITIVE, 2.0)


def squared() -> Network:
    """(a z)² = a² z² for any sign of a."""
    return mlp(Function(torch.square)), samples(), units(SCALING, 2.0)


def cubed() -> Network:
    """(a z)³ = a³ z³."""
    return mlp(Function(lambda z: z**3)), samples(), units(SCALING, 3.0)


def gelu() -> Network:
    """Nothing passes a factor on."""
    return mlp(nn.GELU()), samples(), []


def relu6() -> Network:
    """Clipped at 6: factors do not pass, though they do for small activations."""
    return mlp(nn.ReLU6()), samples(), []


def hidden_for_two() -> Network:
    """Hidden units that two layers read: both columns go with the rows."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.one, self.two = nn.Linear(6, H), nn.Linear(H, 3), nn.Linear(H, 2)

        def forward(self, x):
            y = self.up(x).relu()
            return self.one(y), self.two(y)

    return Two(), samples(), [pair([("one.weight", 1), ("two.weight", 1)], ["up.weight", "up.bias"], POSITIVE)]


def no_influence() -> Network:
    """x + 0 · y: nothing can be told of what is multiplied by zero."""

    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, H), nn.Linear(H, 6)

        def forward(self, x):
            return torch.tanh(self.a(x)) + 0.0 * self.c(self.b(x).relu())

    return Nothing(), samples(), []


class Gate(nn.Module):
    """down(f(gate x) · up x), with gate and up apart or fused."""

    def __init__(self, function, fused=False, bias=False):
        super().__init__()
        self.function, self.fused = function, fused
        if fused:
            self.gate_up = nn.Linear(D, 2 * H, bias)
        else:
            self.gate, self.up = nn.Linear(D, H, bias), nn.Linear(D, H, bias)
        self.down = nn.Linear(H, D, bias)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(self.function(gate) * up)


def swiglu() -> Network:
    """The norm's weight goes with the columns of gate and up together."""
    return Residual(Gate(F.silu), nn.RMSNorm(D)), tokens(), [
        pair(("inner.down.weight", 1), "inner.up.weight"),
        pair([("inner.gate.weight", 1), ("inner.up.weight", 1)], "norm.weight"),
    ]  # fmt: skip


def geglu() -> Network:
    """Gate and up in one weight, with a bias: the second half."""
    up = [("inner.gate_up.weight", 0, H), ("inner.gate_up.bias", 0, H)]
    return Residual(Gate(F.gelu, True, True)), tokens(), [pair(("inner.down.weight", 1), up)]


def reglu() -> Network:
    """relu passes positive factors on, so gate and down are another pair."""
    return Residual(Gate(F.relu)), tokens(), [
        pair(("inner.down.weight", 1), "inner.up.weight"),
        pair(("inner.down.weight", 1), "inner.gate.weight", POSITIVE),
    ]  # fmt: skip


def reglu_squared() -> Network:
    """relu(gate)² · up."""
    return Residual(Gate(lambda z: z.relu().square())), tokens(), [
        pair(("inner.down.weight", 1), "inner.up.weight"),
        pair("inner.gate.weight", ("inner.down.weight", 1), POSITIVE, 1, 2.0),
    ]  # fmt: skip


class Experts(nn.Module):
    """Experts stacked in three weights, each used for all tokens; a router weighs them."""

    def __init__(self, function, outputs_first):
        super().__init__()
        self.function, self.outputs_first = function, outputs_first
        self.router = nn.Linear(D, 3)
        shapes = [(3, H, D), (3, D, H)] if outputs_first else [(3, D, H), (3, H, D)]
        self.up, self.down = (nn.Parameter(torch.randn(shape) / 4) for shape in shapes)
        self.bias = nn.Parameter(torch.randn(3, H))

    def forward(self, x):
        up, down = (w.mT if self.outputs_first else w for w in (self.up, self.down))
        y = self.function(torch.einsum("ntd,edh->neth", x, up) + self.bias[:, None])
        return torch.einsum("neth,ehd,nte->ntd", y, down, self.router(x).softmax(-1))


def stacked_experts() -> Network:
    """Rows of each expert with its bias, columns of the same expert."""
    return Residual(Experts(F.relu, True)), tokens(), [
        pair(("inner.down", (0, 2)), [("inner.up", (0, 1)), ("inner.bias", (0, 1))], POSITIVE)
    ]  # fmt: skip


def stacked_experts_transposed() -> Network:
    return Residual(Experts(F.leaky_relu, False)), tokens(), [
        pair(("inner.down", (0, 1)), [("inner.up", (0, 2)), ("inner.bias", (0, 1))], POSITIVE)
    ]  # fmt: skip


def listed_experts() -> Network:
    """Each expert for tokens of its own."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Gate(F.silu) for _ in range(3))

        def forward(self, x):
            y = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                mine = (torch.arange(x.shape[1]) % 3 == number)[None, :, None]
                y = y + expert(x) * mine
            return y

    return Residual(Listed()), tokens(), [
        pair((f"inner.experts.{i}.down.weight", 1), f"inner.experts.{i}.up.weight") for i in range(3)
    ]  # fmt: skip


def tied() -> Network:
    """One weight in two places: hidden units have it in front and behind, and no factor passes. The next layer is a pair with its
    own rows only through the tied one."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, H), nn.Linear(H, 4)
            self.d = nn.Linear(4, 6)
            self.d.weight = nn.Parameter(torch.randn(6, 4) / 2)

        def forward(self, x):
            y = self.a(x).tanh()
            return self.d(self.c(self.b(y).relu())) @ self.a.weight

    return Tied(), samples(), [
        pair(("c.weight", 1), ["b.weight", "b.bias"], POSITIVE),
        pair(("d.weight", 1), ["c.weight", "c.bias"], GL, 4),
    ]  # fmt: skip


def tied_embedding() -> Network:
    """Embedding and readout share a weight, and the norm's weight stands between it and the stream."""

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(11, D), nn.LayerNorm(D)
            self.mlp = Residual(Gate(F.silu))
            self.head = nn.Linear(D, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.norm(self.mlp(self.embed(ids))))

    return Language(), (torch.randint(11, (4, 9)),), [pair(("mlp.inner.down.weight", 1), "mlp.inner.up.weight")]


# Channels.


def images(batch=6, channels=3, size=7):
    return (torch.randn(batch, channels, size, size),)


def conv_bn_relu_conv() -> Network:
    """Weight and bias of the BatchNorm in front of a ReLU, and the channels of the next convolution."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    return model, images(), [
        pair(("3.weight", 1), ["1.weight", "1.bias"], POSITIVE),
        pair(("5.weight", 1), ["3.weight", "3.bias"], POSITIVE),
    ]  # fmt: skip


def grouped_convolution() -> Network:
    """Two groups of three channels: channel c of group g is input c of the outputs of group g, which are rows of one factor."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 3)
    )  # fmt: skip
    channels = ("2.weight", (0, 1), 0, ((2, 12), (3, 1)), 1, ((4, 3),))
    return model, images(), [
        pair(channels, ["0.weight", "0.bias"], POSITIVE),
        pair(("4.weight", 1), ["2.weight", "2.bias"], POSITIVE),
    ]  # fmt: skip


def depthwise() -> Network:
    """Expansion, depthwise convolution and projection with BatchNorms: factors pass from one to the next."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 6, 3, groups=6), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 1)
    )
    return model, images(), [
        pair("2.weight", ["0.weight", "0.bias"], POSITIVE),
        pair(("4.weight", 1), ["2.weight", "2.bias"], POSITIVE),
    ]  # fmt: skip


def transposed_convolution() -> Network:
    """Inputs are dim 0 and outputs dim 1."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)
    )
    return model, images(), [
        pair("2.weight", ["0.weight", "0.bias"], POSITIVE),
        pair("4.weight", [("2.weight", 1), "2.bias"], POSITIVE),
    ]  # fmt: skip


def flattened() -> Network:
    """A channel is 25 inputs of the linear layer behind it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3))
    return model, images(), [pair(("3.weight", 1, 0, ((4, 25),), 1, ((25, 1),)), ["0.weight", "0.bias"], POSITIVE)]


def flattened_last() -> Network:
    """The same with channels last."""
    last = Function(lambda x: x.permute(0, 2, 3, 1))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), last, nn.Flatten(), nn.Linear(100, 3))
    return model, images(), [pair(("4.weight", 1, 0, ((4, 1),), 1, ((25, 4),)), ["0.weight", "0.bias"], POSITIVE)]


def weight_normed() -> Network:
    """Directions are scale-invariant; the lengths go with the bias."""
    model = nn.Sequential(weight_norm(nn.Linear(6, H)), nn.ReLU(), nn.Linear(H, 3))
    return model, samples(), [
        pair(("2.weight", 1), ["0.parametrizations.weight.original0", "0.bias"], POSITIVE),
    ]  # fmt: skip


# Products.


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, which starts at zero."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(8, H)
        self.lora_A, self.lora_B = nn.Linear(8, 4, bias=False), nn.Linear(4, H, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return torch.tanh(self.base(x) + 2.0 * self.lora_B(self.lora_A(x)))


def lora() -> Network:
    """Only the product of the factors is used."""
    return Adapted(), samples(width=8), [pair(("lora_B.weight", 1), "lora_A.weight", GL, 4)]


def lora_plain() -> Network:
    """Factors as parameters of one module, (k, inputs) and (outputs, k)."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(H, 8))
            self.down, self.up = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.zeros(3, H))

        def forward(self, x):
            return torch.tanh(x @ self.weight.T + x @ self.down @ self.up)

    return Plain(), samples(width=8), [pair("up", ("down", 1), GL, 3)]


def linear_chain() -> Network:
    """Every layer between two others is in two pairs."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    return model, samples(), [
        pair(("1.weight", 1), ["0.weight", "0.bias"], GL, 5),
        pair(("2.weight", 1), ["1.weight", "1.bias"], GL, 4),
    ]  # fmt: skip


def bottleneck_of_one() -> Network:
    """A single hidden unit."""
    model = nn.Sequential(nn.Linear(6, 1), Function(torch.sin), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, samples(), [pair(("4.weight", 1), ["2.weight", "2.bias"], POSITIVE)]


def layer_norms() -> Network:
    """Final norm and readout, and a norm in front of an MLP of transposed layers."""
    inner = nn.Sequential(Transposed(D, H), nn.ReLU(), Transposed(H, D))
    model = nn.Sequential(Residual(inner, nn.LayerNorm(D)), nn.LayerNorm(D), nn.Linear(D, 4))
    return model, tokens(), [
        pair(("2.weight", 1), ["1.weight", "1.bias"]),
        pair("0.inner.0.weight", ["0.norm.weight", "0.norm.bias"]),
        pair("0.inner.2.weight", [("0.inner.0.weight", 1), "0.inner.0.bias"], POSITIVE),
    ]  # fmt: skip
