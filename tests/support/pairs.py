"""Pairs of factors: random group elements, and networks with one hidden layer as points of FixedRank(1, n)."""

import math

import torch
from retract.manifolds import numerics


def spread(k, condition, generator):
    """A k × k matrix of this condition number."""
    left, right = (numerics.positive_qr(torch.randn(k, k, generator=generator, dtype=torch.float64)) for _ in range(2))
    return (left * torch.logspace(0.5, -0.5, k, dtype=torch.float64) ** math.log10(condition)) @ right


def hidden(activation, units, generator):
    """Points (units, inputs + bias + outputs, 1), and the loss of the network with one hidden layer on them."""

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs, targets = normal(20, 3), normal(20, 2)

    def loss(x):
        weight, bias, after = x[:, :3, 0], x[:, 3, 0], x[:, 4:, 0]
        return (activation(inputs @ weight.T + bias) @ after - targets).square().mean()

    return normal(units, 6, 1), loss
