"""Seam 4: moving the points, and carrying along what is tangent to them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..manifolds import (
    ConformalManifold,
    Euclidean,
    ExponentialManifold,
    GeodesicManifold,
    Manifold,
    QuotientManifold,
    numerics,
)
from .memory import Memory
from .options import Options
from .scaled import Scaled

__all__ = ["is_linear", "move"]


def is_linear(manifold: Manifold, options: Options, carries: bool = True) -> bool:
    """Whether moving is a linear combination in place, without temporaries; `carries` says that vectors go along."""
    still = options["transport"] == "none" or not carries
    return isinstance(manifold, ConformalManifold) and options["motion"] == "retract" and still


def move(manifold: Manifold, x: Tensor, step: Scaled, memory: Memory, options: Options, scale: Tensor | None) -> Tensor:
    """New points, (points, n), after rescaling by `scale` and one tangent `step`; carries ``memory.vectors``.

    On a conformal manifold without transport the move is a linear combination, and `x` itself is
    overwritten and returned.
    """
    flat = isinstance(manifold, Euclidean)
    if (flat or is_linear(manifold, options, bool(memory.vectors))) and not options["differentiable"]:
        return _add_(x, step, scale)
    if scale is not None:
        assert isinstance(manifold, QuotientManifold)
        x = manifold.act(scale, x)
    u = step.tensor()
    motion = "retract" if flat else options["motion"]
    transport = "none" if flat or not memory.vectors else options["transport"]
    if motion == "retract" and transport == "manifold" and memory.vectors:
        for key, v in memory.vectors.items():
            y, memory.vectors[key] = manifold.retract_and_transport(x, u, v)
        return y
    y = manifold.retract(x, u) if motion == "retract" else _exp(manifold, x, u)
    if transport == "project":
        memory.vectors = {key: manifold.project(y, v) for key, v in memory.vectors.items()}
    elif transport != "none":
        assert isinstance(manifold, GeodesicManifold)
        for key, v in memory.vectors.items():
            memory.vectors[key] = (
                manifold.parallel_transport(x, u, v) if motion == "exp" else manifold.transport_to(x, y, v)
            )
    return y


def _add_(x: Tensor, step: Scaled, scale: Tensor | None) -> Tensor:
    if scale is None:
        return step.add_to_(x)
    if isinstance(step.factor, (int, float)) and step.factor == 1.0:
        return torch.addcmul(step.array, x, scale, out=x)
    return step.add_to_(x.mul_(scale))


def _exp(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """The exponential, put back on the manifold: it keeps to it in exact arithmetic and for tangent `u` only, and rounding
    adds up. As with a retraction, a point that does not move stays as it is, wherever it lies."""
    assert isinstance(manifold, ExponentialManifold)
    y = manifold.exp(x, u)
    return numerics.hold_still(u, manifold.nearest(y), y, manifold.event_ndim)
