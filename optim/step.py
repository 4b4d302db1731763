"""The one update. SGD, Adam, PSI-SGD, PSI-SGDM, SGDG and Adam-G are choices of its four seams."""

from __future__ import annotations

from torch import Tensor

from ..manifolds import Manifold, ScalingQuotient
from . import stages
from .memory import Memory
from .motion import move
from .options import Options
from .representative import rescaling
from .rules import Rule

__all__ = ["update"]


def update(manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options) -> Tensor:
    """One step of the points `x` with Euclidean gradient `egrad`, both (points, n); returns the new points.

    Ambient stages change the Euclidean gradient, tangent stages the Riemannian one, the rule makes a step
    of it, the motion carries it out. `x` and `memory` may be overwritten, `egrad` never.
    """
    egrad = stages.ambient(manifold, x, egrad, options)
    gradient = stages.gradient(manifold, x, egrad)
    scale = None
    if isinstance(manifold, ScalingQuotient):
        assert isinstance(gradient.factor, Tensor)  # the squared radius
        scale = rescaling(gradient.factor.sqrt(), memory, options)
    gradient = stages.clip(manifold, x, gradient, options)
    step = rule(manifold, x, gradient, memory, options, scale)
    return move(manifold, x, step, memory, options, scale)
