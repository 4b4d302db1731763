"""Checkers that measure whether a geometry is right and return numbers; the caller decides.

For the author of a new manifold: `gradient_order` near 2 says that metric and gradient belong together,
`retraction_order` 2 or more that the retraction is one. All use float64 points, 16 seeded directions and a
root mean square over them: a single direction can hide a wrong gradient and can smear a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import numerics
from .base import Manifold
from .geodesic import ExponentialManifold
from .quotient import QuotientManifold

__all__ = ["duality_gap", "gradient_order", "order", "retraction_order", "riemannian_gradient_of"]

DIRECTIONS = 16
# Below 1e-4 the quadratic remainder of a float64 function drowns in rounding; above 1e-2 the cubic term bends the line.
GRADIENT_STEPS = (1e-4, 1e-3, 1e-2)
# Third-order gaps are smaller, so they need larger steps.
RETRACTION_STEPS = (1e-3, 1e-2, 1e-1)


def order(steps: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of log(error) over log(step) by least squares: p where the error shrinks like step^p; infinite
    where there is no error at all."""
    if all(error == 0 for error in errors):
        return float("inf")
    t = torch.tensor(steps, dtype=torch.float64).log()
    e = torch.tensor(errors, dtype=torch.float64).log()
    t, e = t - t.mean(), e - e.mean()
    return float((t * e).sum() / (t * t).sum())


def riemannian_gradient_of(manifold: Manifold, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Riemannian gradient of the scalar function `f` at the points `x`, (*batch, *event), by autograd."""
    point = x.detach().requires_grad_()
    (egrad,) = torch.autograd.grad(f(point), point)
    return manifold.riemannian_gradient(x, egrad)


def duality_gap(manifold: Manifold, x: Tensor, egrad: Tensor, u: Tensor) -> Tensor:
    """|⟨gradient, u⟩ₓ − egrad·u| / (‖egrad‖ ‖u‖), (*batch, 1…): 0 up to rounding for tangent `u`.

    On a quotient `egrad` must be that of an invariant function.
    """
    lifted = manifold.inner(x, manifold.riemannian_gradient(x, egrad), u)
    scale = numerics.norm(egrad, manifold.event_ndim) * numerics.norm(u, manifold.event_ndim)
    return (lifted - numerics.dot(egrad, u, manifold.event_ndim)).abs() / scale


def gradient_order(
    manifold: Manifold, f: Callable[[Tensor], Tensor], x: Tensor, *, generator: torch.Generator | None = None
) -> float:
    """Order at which f(retract(x, t u)) − f(x) − t ⟨gradient, u⟩ₓ vanishes with t: 2 for a right gradient,
    1 for a wrong one. `f` maps (*batch, *event) to a scalar (invariant, on a quotient)."""
    gradient = riemannian_gradient_of(manifold, f, x)
    value = f(x)

    def gap(u: Tensor, t: float) -> Tensor:
        return f(manifold.retract(x, t * u)) - value - t * manifold.inner(x, gradient, u).sum()

    return _measure(manifold, x, gap, GRADIENT_STEPS, generator)


def retraction_order(manifold: Manifold, x: Tensor, *, generator: torch.Generator | None = None) -> float:
    """Order at which the retraction parts from the geodesic: 2 for a retraction, 3 for one of second order,
    1 for none. On a quotient the nearest representatives are compared. Without an exponential map the
    straight line is used, and 2 is the most there is."""

    def gap(u: Tensor, t: float) -> Tensor:
        y = manifold.retract(x, t * u)
        target = manifold.exp(x, t * u) if isinstance(manifold, ExponentialManifold) else x + t * u
        return ((manifold.align(target, y) if isinstance(manifold, QuotientManifold) else y) - target).norm()

    return _measure(manifold, x, gap, RETRACTION_STEPS, generator)


def _measure(
    manifold: Manifold,
    x: Tensor,
    gap: Callable[[Tensor, float], Tensor],
    steps: Sequence[float],
    generator: torch.Generator | None,
) -> float:
    directions = []
    for _ in range(DIRECTIONS):
        u = manifold.random_tangent(x, generator=generator)
        directions.append(u / manifold.norm(x, u))
    errors = [torch.stack([gap(u, t).detach().square() for u in directions]).mean().sqrt().item() for t in steps]
    return order(steps, errors)
