"""The motion of points, and the transport of their tangent vectors."""

from __future__ import annotations

from torch import Tensor

from ..manifolds import Euclidean, ExponentialManifold, GeodesicManifold, Manifold, numerics
from .memory import Memory
from .options import Options

__all__ = ["move"]


def move(manifold: Manifold, x: Tensor, u: Tensor, memory: Memory, options: Options) -> Tensor:
    """The new points, (points, n), after the tangent step `u`; transports ``memory.vectors`` to them."""
    flat = isinstance(manifold, Euclidean)
    motion = "retract" if flat else options["motion"]
    transport = "none" if flat or not memory.vectors else options["transport"]
    if motion == "retract" and transport == "manifold":
        for name, v in memory.vectors.items():
            y, memory.vectors[name] = manifold.retract_and_transport(x, u, v)
        return y
    y = manifold.retract(x, u) if motion == "retract" else _exp(manifold, x, u)
    if transport == "project":
        memory.vectors = {name: manifold.project(y, v) for name, v in memory.vectors.items()}
    elif transport != "none":
        assert isinstance(manifold, GeodesicManifold)
        memory.vectors = {
            name: manifold.parallel_transport(x, u, v) if motion == "exp" else manifold.transport_to(x, y, v)
            for name, v in memory.vectors.items()
        }
    return y


def _exp(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """The exponential followed by `nearest`, since it stays on the manifold only for exactly tangent `u` and in exact
    arithmetic. A point with u = 0 is returned unchanged, as by a retraction."""
    assert isinstance(manifold, ExponentialManifold)
    y = manifold.exp(x, u)
    return numerics.hold_still(u, manifold.nearest(y), y, manifold.event_ndim)
