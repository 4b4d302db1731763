"""The update of all optimizers: SGD, Adam, PSI-SGD, PSI-SGDM, SGDG and Adam-G are choices of manifold, rule and options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..manifolds import Euclidean, Manifold, ScalingQuotient
from .memory import Memory
from .motion import move
from .options import Options
from .radius import rescaling
from .rules import Rule
from .stages import ambient

__all__ = ["update"]


def update(manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options) -> Tensor:
    """One step of the points `x` with Euclidean gradient `egrad`, both (points, n); returns the new points.

    With γ the Riemannian gradient, shortened to `max_point_norm`, and the `Coefficients` of `rule`

        v ← keep · v + take · γ,    u = along · v + ahead · γ,    y = R(x, u),    v ← T(v),

    where R is the retraction or the exponential, and T the transport. On a scaling quotient x, γ and v are first moved to the
    representative that the option `radius` selects. `memory` is changed in place; `x` and `egrad` are not.
    """
    gradient = manifold.riemannian_gradient(x, ambient(manifold, x, egrad, options))
    if isinstance(manifold, ScalingQuotient):
        scale = rescaling(manifold.radius(x), memory, options)
        if scale is not None:
            x, gradient = manifold.act(scale, x), manifold.act(scale, gradient)
            memory.vectors = {name: manifold.act(scale, v) for name, v in memory.vectors.items()}
    limit = None if isinstance(manifold, Euclidean) else options["max_point_norm"]
    length: Any = None
    if rule.reads_lengths or limit is not None:
        length = manifold.norm(x, gradient)
    if limit is not None:
        shrink = torch.clamp(limit / length, max=1.0)
        gradient, length = gradient * shrink, length * shrink
    coefficients = rule(length, memory, options)
    step = _times(coefficients.ahead, gradient)
    for name, v in memory.vectors.items():
        keep, take, along = coefficients.of(name)
        v = _sum(_times(keep, v), _times(take, gradient))
        step, memory.vectors[name] = _sum(step, _times(along, v)), v
    return move(manifold, x, torch.zeros_like(x) if step is None else step, memory, options)


def _times(factor: Any, a: Tensor) -> Tensor | None:
    """factor · a; None for the number 0, since 0 · ∞ would be NaN."""
    if isinstance(factor, (int, float)):
        return None if factor == 0 else a if factor == 1 else a * factor
    return a * factor


def _sum(a: Tensor | None, b: Tensor | None) -> Any:
    return b if a is None else a if b is None else a + b
