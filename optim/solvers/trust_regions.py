"""Trust regions: the model, its approximate minimizer, and the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...errors import ProblemError
from .algorithms import TrustRegions
from .objective import Model, Objective, State
from .progress import Run
from .space import Arrays, Space, combined

__all__ = ["descend_in_regions"]

Product = Callable[[Arrays], Arrays]
"""v ↦ H v for a tangent v."""


class Step(NamedTuple):
    """A step in a trust region."""

    u: Arrays
    square: float
    """The square of its length."""
    decrease: float
    """By how much it lowers the model."""
    at_the_edge: bool
    """Whether the radius bounds it."""


def descend_in_regions(run: Run, method: TrustRegions) -> None:
    """Make steps until `Stopped` is raised."""
    objective, space = run.objective, run.objective.space
    size = sum(a.numel() for a in run.state.x)
    usual = space.scale if space.flat else math.sqrt(size)
    radius = min(method.radius or usual / 8, method.max_radius)
    limit = method.max_inner or 10 * size
    model, (here, product) = _model(objective, method.hessian, run.state.x)
    while True:
        first = radius
        while True:
            norm = math.sqrt(here.square)
            share = min(method.kappa, (norm / run.first) ** method.theta)
            # No step has to be more exact than the end of the run: below that are rounding errors of the gradient.
            target = max(norm * share, 0.1 * run.tolerance)
            step = _truncated(space, here, product, radius, target, limit)
            x = space.each("retract", here.x, step.u)
            f = objective.value(x)
            run.check_bounded(f)
            rounding = run.rounding(here.f)
            ratio = (here.f - f + rounding) / (step.decrease + rounding)
            length = math.sqrt(step.square)
            if not ratio >= 0.25:  # also where f is not finite
                radius = min(radius, length) / 4
            elif ratio > 0.75 and step.at_the_edge:
                radius = min(2 * radius, method.max_radius)
            if ratio > method.accept and f <= here.f + rounding:
                there, further = model(x)
                if math.isfinite(there.square):
                    break
                radius = min(radius, length) / 4
            if radius * math.sqrt(here.square) <= rounding or radius < objective.eps * 1e-3 * min(first, space.scale):
                if not run.coarser():
                    raise run.exhausted(step.decrease)
                radius = first
        here, product = there, further
        run.accept(here, length)


def _model(objective: Objective, hessian: str, x: Arrays) -> tuple[Callable[[Arrays], Model], Model]:
    """Where the models of a run come from, with the one at `x`: for ``"auto"`` second derivatives of the pullback if they are right at
    `x`, otherwise differences."""
    try:
        differences = objective.differences(x)
    except RuntimeError as error:
        raise ProblemError(
            f"trust regions need a retraction that can be differentiated ({error}); use method='lbfgs'"
        ) from error
    if hessian == "differences":
        return objective.differences, differences
    try:
        pullback = objective.pullback(x)
        fault = _fault(objective, pullback, differences)
    except RuntimeError as error:
        fault = f"f or a retraction cannot be differentiated twice ({error})"
    if fault is None:
        return objective.pullback, pullback
    if hessian == "auto":
        return objective.differences, differences
    raise ProblemError(f"{fault}; use TrustRegions(hessian='differences')")


def _fault(objective: Objective, pullback: Model, model: Model) -> str | None:
    """What is wrong with the second derivatives of `pullback`, if anything: along the gradient they have to equal those of `model`, which
    are differences, since a torch.autograd.Function whose backward pass has no derivative leaves them out without a word; and they have to
    be symmetric."""
    (here, product), (_, differences), space = pullback, model, objective.space
    x, g = here.x, here.gradient
    v = space.each("project", x, [a.sin() for a in x])

    def size(u: Arrays) -> float:
        return math.sqrt(float(space.inner(x, u, u)))

    found, expected, other = product(g), differences(g), product(v)
    off = size(combined((1.0, found), (-1.0, expected)))
    rounding = objective.eps**0.5 * here.square / space.scale  # of the difference of two gradients, over its step
    if not off <= 1e-2 * size(expected) + 1e2 * rounding:
        return f"second derivatives of f, or of a retraction, are off by {off:.1e} of {size(expected):.1e} from differences of first ones"
    ways = float(space.inner(x, v, found)), float(space.inner(x, other, g))
    if not abs(ways[0] - ways[1]) <= 1e-2 * (size(v) * size(found) + size(other) * size(g)):
        return f"second derivatives of f are not symmetric: ⟨v, H g⟩ = {ways[0]:.3e} and ⟨H v, g⟩ = {ways[1]:.3e}"
    return None


def _truncated(space: Space, here: State, product: Product, radius: float, target: float, limit: int) -> Step:
    """Conjugate gradients for H u = −g, ended at the radius, at negative curvature, or when the residual is as short as `target` (Steihaug 1983;
    Toint 1981). Lengths and the model are summed from inner products, one wait for a device per product."""
    u = [torch.zeros_like(a) for a in here.gradient]
    residual, d = here.gradient, combined((-1.0, here.gradient))
    uu, ud, dd, rr = 0.0, 0.0, here.square, here.square
    decrease = 0.0
    for _ in range(limit):
        hd = product(d)
        curved = space.inner(here.x, d, hd)
        t = rr / curved
        ahead, left = ([a + t.to(a) * b for a, b in zip(*both, strict=True)] for both in ((u, d), (residual, hd)))
        curvature, after = torch.stack([curved, space.inner(here.x, left, left)]).tolist()
        step = rr / curvature if curvature > 0 else math.inf
        if not (math.isfinite(curvature) and curvature > 0) or uu + step * (2 * ud + step * dd) >= radius**2:
            step = (-ud + math.sqrt(ud * ud + dd * (radius**2 - uu))) / dd
            bend = curvature if math.isfinite(curvature) else 0.0
            return Step(combined((1.0, u), (step, d)), radius**2, decrease + step * (rr - 0.5 * step * bend), True)
        u, residual = ahead, left
        uu, decrease = uu + step * (2 * ud + step * dd), decrease + 0.5 * step * rr
        if math.sqrt(max(after, 0.0)) <= target:
            break
        share = after / rr
        ud, dd, rr = share * (ud + step * dd), after + share**2 * dd, after
        d = space.each("project", here.x, combined((share, d), (-1.0, residual)))
    return Step(u, uu, decrease, False)
