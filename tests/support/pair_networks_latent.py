"""A network of latent attention with its pairs, as in `pair_networks`."""

import torch
from pair_networks import GL, D, Heads, Network, Residual, pair, tokens
from torch import nn


class Latent(nn.Module):
    """Multi-head latent attention: keys and values are made of a normed latent vector, except for a key that all heads share, which
    is turned. Heads have four numbers that are not turned and two that are; values have three."""

    def __init__(self):
        super().__init__()
        self.q, self.kv_a = nn.Linear(D, 3 * 6, False), nn.Linear(D, 5 + 2, False)
        self.norm, self.kv_b, self.o = nn.RMSNorm(5), nn.Linear(5, 3 * 7, False), nn.Linear(9, D, False)
        self.turn = Heads(3, rotary=2)

    def forward(self, x):
        plain, turned = self.q(x).unflatten(-1, (3, 6)).split([4, 2], -1)
        latent, shared = self.kv_a(x).split([5, 2], -1)
        k, v = self.kv_b(self.norm(latent)).unflatten(-1, (3, 7)).split([4, 3], -1)
        q = torch.cat([plain.transpose(1, 2), self.turn.turned(turned.transpose(1, 2))], -1)
        shared = self.turn.turned(shared.unsqueeze(1)).expand(-1, 3, -1, -1)
        k = torch.cat([k.transpose(1, 2), shared], -1)
        z = (q @ k.transpose(-1, -2)).softmax(-1) @ v.transpose(1, 2)
        return self.o(z.transpose(1, 2).flatten(-2))


def latent_attention() -> Network:
    """The latent rows of kv_a are scale-invariant as a whole, the norm's weight goes with the columns of kv_b."""
    return Residual(Latent()), tokens(), [
        pair(("inner.o.weight", 1), ("inner.kv_b.weight", 0, 4, ((3, 7),)), GL, 3),
        pair(("inner.kv_b.weight", 0, 0, ((3, 7),)), ("inner.q.weight", 0, 0, ((3, 6),)), GL, 4),
        pair(("inner.kv_b.weight", 1), "inner.norm.weight"),
        pair(("inner.kv_a.weight", 0, 5, 1, 1, ((2, 1),)), ("inner.q.weight", 0, 4, 1, 1, ((3, 6), (2, 1)))),
    ]  # fmt: skip
