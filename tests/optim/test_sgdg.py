"""SGDG and Adam-G against the formulas of Cho & Lee (2017), written out per row."""

import pytest
import torch
from retract.manifolds import Grassmann
from retract.optim import SGDG, AdamG
from torch import nn

NU, ALPHA, STEPS = 0.1, 0.1, 60


def rates(first):
    return [first if t < 30 else 0.2 * first for t in range(STEPS)]


def problem(shape, device):
    """A smooth loss of unit rows with gradients on both sides of the clip."""
    c = torch.randn(shape, dtype=torch.float64, device=device)
    return lambda w: 0.05 * (c * w).sin().sum() + 0.02 * (c * w).flatten(1).sum(1).square().sum()


def clipped_gradient(y, grad):
    """h of one matrix of unit rows: penalty, projection, clip."""
    grad = grad + 2 * ALPHA * (y @ y.T @ y - y)
    rows = []
    for row, g in zip(y, grad, strict=True):
        h = g - (row @ g) * row
        rows.append(h * min(1.0, NU / float(h.norm())))
    return torch.stack(rows)


def rotate(row, m):
    """Exponential of m at row, and m carried along itself."""
    angle = m.norm()
    return angle.cos() * row + angle.sin() * m / angle, (angle.cos() * m / angle - angle.sin() * row) * angle


def carry(row, step, m):
    """m parallel-transported along the exponential of step."""
    angle = step.norm()
    e = step / angle
    return m - (e @ m) * e + (e @ m) * (angle.cos() * e - angle.sin() * row)


def start(shape, device):
    w = torch.randn(shape, dtype=torch.float64, device=device)
    return nn.Parameter(Grassmann(1).nearest(w.flatten(1)).view(shape))


# More rows than coordinates cannot be orthonormal; the penalty then amplifies rounding, and no two orders of summation
# agree to 1e-12 after 60 steps. The authors leave such tensors out as well.
SHAPES = [(4, 9), (6, 16), (5, 2, 3, 3)]


def steps(optimizer, f, w):
    """Steps of `optimizer` on f(w), with the rates of the authors' schedule, each of which is yielded after its step."""
    group = optimizer.param_groups[0]
    for eta in rates(group["lr"]):
        group["lr"] = eta
        optimizer.zero_grad()
        f(w).backward()
        optimizer.step()
        yield eta


def gradient(f, shape, y):
    """The clipped Riemannian gradient at `y`, the rows of a `shape` in a matrix."""
    point = y.clone().requires_grad_()
    return clipped_gradient(y, *torch.autograd.grad(f(point.view(shape)), point))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sgdg(shape, device):
    f, w = problem(shape, device), start(shape, device)
    y, m = w.detach().flatten(1).clone(), torch.zeros(shape, dtype=w.dtype, device=device).flatten(1)
    optimizer = SGDG([{"params": [w], "manifold": Grassmann(1)}], lr=0.2)
    clipped = 0
    for eta in steps(optimizer, f, w):
        h = gradient(f, shape, y)
        clipped += int((h.norm(dim=1) > NU * (1 - 1e-9)).sum())
        y, m = (torch.stack(a) for a in zip(*map(rotate, y, 0.9 * m - eta * h), strict=True))
    assert 0 < clipped < STEPS * shape[0], "the problem should clip some rows and not all"
    assert (w.detach().flatten(1) - y).abs().max() <= 1e-12
    assert (optimizer.state[w]["momentum_buffer"].flatten(1) - m).abs().max() <= 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adamg(shape, device):
    f, w = problem(shape, device), start(shape, device)
    y, m = w.detach().flatten(1).clone(), torch.zeros(shape, dtype=w.dtype, device=device).flatten(1)
    v = torch.zeros(shape[0], dtype=w.dtype, device=device)
    optimizer = AdamG([{"params": [w], "manifold": Grassmann(1)}], lr=0.05)
    for t, eta in enumerate(steps(optimizer, f, w), start=1):
        h = gradient(f, shape, y)
        m, v = 0.9 * m + 0.1 * h, 0.99 * v + 0.01 * h.square().sum(1)
        size = eta * (1 - 0.99**t) ** 0.5 / (1 - 0.9**t)
        step = -size * m / (v + 1e-8).sqrt().unsqueeze(1)
        m = torch.stack([carry(*row) for row in zip(y, step, m, strict=True)])
        y = torch.stack([rotate(*row)[0] for row in zip(y, step, strict=True)])
    assert (w.detach().flatten(1) - y).abs().max() <= 1e-12
    assert (optimizer.state[w]["exp_avg"].flatten(1) - m).abs().max() <= 1e-12
    assert (optimizer.state[w]["exp_avg_sq"].flatten() - v).abs().max() <= 1e-12


def test_penalty_is_the_gradient_it_says(device):
    """Of (α/2)‖YYᵀ − 1‖² with unit rows Y, at representatives of any norm."""
    from retract.manifolds import PSI
    from retract.optim.update import orthogonality_gradient

    w = (3 * torch.randn(4, 6, dtype=torch.float64, device=device)).requires_grad_()
    y = w / w.norm(dim=1, keepdim=True)
    penalty = 0.5 * ALPHA * (y @ y.T - torch.eye(4, dtype=w.dtype, device=device)).square().sum()
    (expected,) = torch.autograd.grad(penalty, w)
    assert (orthogonality_gradient(PSI(), w.detach(), ALPHA) - expected).abs().max() <= 1e-13
