"""Equivalent networks, and how they train."""

import copy

import torch
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.rows import gather, scatter_
from retract.optim import RiemannianAdam, RiemannianSGD

STEPS = 100
MAKES = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.02),
    "momentum, carried unchanged": lambda groups: RiemannianSGD(groups, lr=0.005, momentum=0.9, transport="none"),
    "momentum, projected": lambda groups: RiemannianSGD(groups, lr=0.005, momentum=0.9, transport="project"),
    "Adam": lambda groups: RiemannianAdam(groups, lr=1e-3),
}


@torch.no_grad()
def transformed(model):
    """A copy of `model` in which group elements of condition 1e4 have acted on all points, and factors of 1e-2 to 1e2 on those of scaling
    quotients; signs are kept."""
    model = copy.deepcopy(model)
    for name, _, params, declaration, _ in walk(model):
        parts, layouts = declaration.arrays(name, params)
        x = gather(parts, layouts)
        if x.ndim == 2:
            scatter_(x * 10.0 ** (4.0 * torch.rand(len(x), 1, dtype=x.dtype) - 2.0), parts, layouts)
            continue
        count, k = x.shape[0], x.shape[2]
        sizes = 10.0 ** (4.0 * torch.rand(count, k, dtype=x.dtype) - 2.0)
        sizes[:, 0], sizes[:, -1] = (100.0, 0.01) if k > 1 else (sizes[:, 0], sizes[:, -1])
        left, right = (torch.linalg.qr(torch.randn(count, k, k, dtype=x.dtype))[0] for _ in range(2))
        g = left @ (sizes.unsqueeze(-1) * right) if k > 1 else sizes.unsqueeze(-1)
        scatter_(declaration.manifold.act(g, x), parts, layouts)
    return model


def curve(model, optimizer, args, target):
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(*args) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)
