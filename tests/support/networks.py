"""Small networks and problems that several tests train."""

import torch
from retract import declare
from retract.manifolds.parameters.declare import walk
from retract.manifolds.parameters.rows import gather
from torch import nn


def normed_mlp(seed=0, width=12, inputs=6, classes=4, eps=1e-30, dtype=torch.float64, device="cpu"):
    """Linear–BN–ReLU–Linear–BN: both weights are positively scale-invariant per row."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(inputs, width, bias=False),
        nn.BatchNorm1d(width, eps=eps),
        nn.ReLU(),
        nn.Linear(width, classes, bias=False),
        nn.BatchNorm1d(classes, eps=eps),
    )
    return model.to(dtype=dtype, device=device)


def normed_cnn(seed=0, eps=1e-30, dtype=torch.float64, device="cpu"):
    """Two convolutions with BN and a linear layer with BN, on 1 × 6 × 6 images; all three weights invariant."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False),
        nn.BatchNorm2d(5, eps=eps),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, bias=False),
        nn.BatchNorm2d(6, eps=eps),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3, bias=False),
        nn.BatchNorm1d(3, eps=eps),
    )
    return model.to(dtype=dtype, device=device)


def invariant_names(model):
    """Names of the weights in front of a BatchNorm in the networks above: the matrices and filters."""
    return [name for name, p in model.named_parameters() if p.ndim > 1]


def declare_all(model, manifold, **options):
    for name in invariant_names(model):
        declare(model, name, manifold, **options)
    return model


def points_of(model):
    """Manifold and points of every declaration, (*batch, *event) in float32 or better, and where `scatter_` puts others."""
    for _, _, parts, declaration, _ in walk(model):
        layouts = [declaration.rows.layout(part, declaration.manifold.event_ndim) for part in parts]
        yield declaration.manifold, gather(parts, layouts).detach(), (parts, layouts)


def batches(count, *shape, classes=3, dtype=torch.float64, device="cpu"):
    """`count` batches of (inputs of `shape`, labels)."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        x = torch.randn(*shape, generator=generator, dtype=dtype)
        y = torch.randint(classes, shape[:1], generator=generator)
        yield x.to(device), y.to(device)


def train(model, optimizer, data, each=None):
    """Losses of one pass over `data`; `each(step)` runs before every step."""
    losses = []
    for step, (x, y) in enumerate(data):
        if each is not None:
            each(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
