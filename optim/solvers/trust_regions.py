"""Trust regions: the model, its approximate minimizer, and the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...errors import ProblemError
from .methods import TrustRegions
from .objective import Model, Objective, State
from .run import Run
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
    largest = method.max_radius or math.sqrt(size)
    radius = min(method.radius or largest / 8, largest)
    limit = method.max_inner or 10 * size
    model = _model(objective, method.hessian, run.state.x)
    here, product = model(run.state.x)
    while True:
        while True:
            norm = math.sqrt(here.square)
            share = min(method.kappa, (norm / run.history[0].grad_norm) ** method.theta)
            # No step has to be more exact than the end of the run: below that are rounding errors of the gradient.
            target = max(norm * share, 0.1 * run.tolerance)
            step = _truncated(objective.space, here, product, radius, target, limit)
            f = objective.value(space.each("retract", here.x, step.u))
            rounding = run.rounding(here.f)
            ratio = (here.f - f + rounding) / (step.decrease + rounding)
            length = math.sqrt(step.square)
            if not ratio >= 0.25:  # also where f is not finite
                radius = min(radius, length) / 4
            elif ratio > 0.75 and step.at_the_edge:
                radius = min(2 * radius, largest)
            if ratio > method.accept and f <= here.f + rounding:
                break
            if radius * math.sqrt(here.square) <= rounding or radius < run.eps * 1e-3:
                raise run.exhausted(step.decrease)
        here, product = model(space.each("retract", here.x, step.u))
        run.accept(here, length)


def _model(objective: Objective, hessian: str, x: Arrays) -> Callable[[Arrays], Model]:
    """Where the models of a run come from: for ``"auto"`` second derivatives of the pullback if they are right at `x`, otherwise
    differences."""
    if hessian == "differences":
        return objective.differences
    try:
        fault = _fault(objective, x)
    except RuntimeError as error:
        fault = f"f or a retraction cannot be differentiated twice ({error})"
    if fault is None:
        return objective.pullback
    if hessian == "auto":
        return objective.differences
    raise ProblemError(f"{fault}; use TrustRegions(hessian='differences')")


def _fault(objective: Objective, x: Arrays) -> str | None:
    """What is wrong with second derivatives at `x`: they are compared with differences along the gradient, and a torch.autograd.Function
    whose backward pass has no derivative leaves them out without a word."""
    space = objective.space
    (here, product), (_, differences) = objective.pullback(x), objective.differences(x)
    found, expected = product(here.gradient), differences(here.gradient)
    off = combined((1.0, found), (-1.0, expected))
    size, error = (math.sqrt(float(space.inner(x, u, u))) for u in (expected, off))
    if error <= 1e-2 * size + 1e-6 * math.sqrt(here.square):
        return None
    return f"second derivatives of f, or of a retraction, are off by {error:.1e} of {size:.1e} from differences of first ones"


def _truncated(space: Space, here: State, product: Product, radius: float, target: float, limit: int) -> Step:
    """Conjugate gradients for H u = −g, ended at the radius, at negative curvature, or when the residual is as short as `target` (Steihaug 1983;
    Toint 1981). Lengths and the model are summed from inner products, one wait for a device per product."""
    u = [torch.zeros_like(a) for a in here.gradient]
    residual, d = here.gradient, combined((-1.0, here.gradient))
    uu, ud, dd, rr = 0.0, 0.0, here.square, here.square
    decrease = 0.0
    for _ in range(limit):
        hd = product(d)
        curvature = float(space.inner(here.x, d, hd))
        t = rr / curvature if curvature > 0 else math.inf
        if not math.isfinite(curvature) or curvature <= 0 or uu + t * (2 * ud + t * dd) >= radius**2:
            t = (-ud + math.sqrt(ud * ud + dd * (radius**2 - uu))) / dd
            bend = curvature if math.isfinite(curvature) else 0.0
            return Step(combined((1.0, u), (t, d)), radius**2, decrease + t * (rr - 0.5 * t * bend), True)
        u, residual = combined((1.0, u), (t, d)), combined((1.0, residual), (t, hd))
        uu, decrease = uu + t * (2 * ud + t * dd), decrease + 0.5 * t * rr
        after = float(space.inner(here.x, residual, residual))
        if math.sqrt(after) <= target:
            break
        share, rr = after / rr, after
        ud, dd = share * (ud + t * dd), rr + share**2 * dd
        d = space.each("project", here.x, combined((share, d), (-1.0, residual)))
    return Step(u, uu, decrease, False)
