"""A network with slices that are factors: fused attention and a hidden layer of ReLU."""

import retract
import torch
from retract.manifolds import Factors, FixedRank, Part
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.rows import gather, scatter_
from torch import nn


class Attention(nn.Module):
    """Two heads of 4 from a fused projection."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))


QUERY_KEY = Factors(
    tuple(Part(f"0.qkv.{name}", 0, 8, 2, 4) for name in ("weight", "bias")),
    tuple(Part(f"0.qkv.{name}", 0, 0, 2, 4) for name in ("weight", "bias")),
)
VALUE_OUT = Factors(
    (Part("0.out.weight", dim=1),), tuple(Part(f"0.qkv.{name}", start=16) for name in ("weight", "bias"))
)
UNITS = Factors((Part("3.weight", dim=1),), (Part("1.weight"), Part("1.bias")))
PAIRS = {QUERY_KEY: FixedRank(4), VALUE_OUT: FixedRank(4), UNITS: FixedRank(1)}


def network(device=None):
    torch.manual_seed(0)
    return nn.Sequential(Attention(), nn.Linear(8, 16, device=device), nn.ReLU(), nn.Linear(16, 8), nn.Tanh()).double()


def declared_network():
    model = network()
    for factors, manifold in PAIRS.items():
        retract.declare(model, factors, manifold)
    return model


@torch.no_grad()
def act_at_random(model, generator=None):
    """`model` with a random group element applied to every point of FixedRank, in place; units of ReLU keep their sign."""
    for name, _, params, declaration, _ in walk(model):
        parts, layouts = declaration.arrays(name, params)
        x = gather(parts, layouts)
        g = declaration.manifold.random_group_element(x, generator=generator)
        scatter_(declaration.manifold.act(g.abs() if g.shape[-1] == 1 else g, x), parts, layouts)
    return model
