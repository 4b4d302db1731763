"""The maps of a manifold, by name, with arguments for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from torch import Tensor

from ..manifolds import ExponentialManifold, GeodesicManifold
from .setting import Setting

__all__ = ["maps", "movers"]

Map: TypeAlias = Callable[..., Tensor]


def maps(s: Setting) -> Iterator[tuple[str, Map, tuple[Tensor, ...]]]:
    """Every map of the manifold that takes (x, tangent…), as (name, function, arguments)."""
    y = s.m.retract(s.x, s.u)
    yield "inner", s.m.inner, (s.x, s.u, s.v)
    yield "project", s.m.project, (s.x, s.v)
    yield "riemannian_gradient", s.m.riemannian_gradient, (s.x, s.v)
    yield "nearest", s.m.nearest, (s.x,)
    yield "retract", s.m.retract, (s.x, s.u)
    yield "transport", s.m.transport, (s.x, s.u, s.v)
    if isinstance(s.m, ExponentialManifold):
        yield "exp", s.m.exp, (s.x, s.u)
    if isinstance(s.m, GeodesicManifold):
        yield "log", s.m.log, (s.x, y)
        yield "dist", s.m.dist, (s.x, y)
        yield "parallel_transport", s.m.parallel_transport, (s.x, s.u, s.v)
        yield "transport_to", s.m.transport_to, (s.x, y, s.v)


def movers(s: Setting) -> Iterator[tuple[str, Map]]:
    """The maps along a tangent, as (name, function of x and u)."""
    m = s.m
    yield "retract", m.retract
    yield "transport", lambda x, u: m.transport(x, u, s.v)
    if isinstance(m, ExponentialManifold):
        yield "exp", m.exp
    if isinstance(m, GeodesicManifold):
        yield "parallel_transport", lambda x, u: m.parallel_transport(x, u, s.v)
