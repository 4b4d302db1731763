"""The maps of a manifold, by name, with arguments for them."""

from retract.manifolds import ExponentialManifold, GeodesicManifold


def maps(s):
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


def movers(s):
    """Those that go along a tangent, as (name, function of x and u)."""
    yield "retract", s.m.retract
    yield "transport", lambda x, u: s.m.transport(x, u, s.v)
    if isinstance(s.m, ExponentialManifold):
        yield "exp", s.m.exp
    if isinstance(s.m, GeodesicManifold):
        yield "parallel_transport", lambda x, u: s.m.parallel_transport(x, u, s.v)
