"""The laws of manifolds whose geodesics are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..manifolds import EmbeddedManifold, ExponentialManifold, GeodesicManifold, Spherical, checks
from ..optim import RiemannianSGD
from ..optim.execution.dispatch import kernel_for
from ..optim.rules import Momentum
from .setting import Setting, law


@law(ExponentialManifold)
def exponential_starts_along_its_tangent(s: Setting) -> None:
    """exp(x, 0) is x, bitwise, exp(x, u) is a point, and exp(x, t u) parts from x + t u like t² or faster."""
    s.bitwise(s.m.exp(s.x, torch.zeros_like(s.u)), s.x, "exp(x, 0) to x")
    s.on(s.m.exp(s.x, s.u), "exp(x, u)")
    s.same(s.m.geodesic(s.x, s.u, 0.5), s.m.exp(s.x, 0.5 * s.u), "geodesic(x, u, 1/2) against exp(x, u/2)")
    if s.dtype == torch.float64:
        steps = checks.RETRACTION_STEPS
        gaps = [float((s.m.exp(s.x, t * s.u) - s.x - t * s.u).norm()) for t in steps]
        if max(gaps) >= 1e-12:
            s.between(checks.order(steps, gaps), 1.98, torch.inf, "the order at which exp parts from x + u")


@law(ExponentialManifold)
def geodesics_take_many_times(s: Setting) -> None:
    """geodesic at an array of times equals exp of each."""
    row = (0,) * len(s.batch)
    x, u = s.x[row], s.u[row]
    times = torch.linspace(-0.5, 1.0, 4, dtype=s.dtype, device=s.device)
    together = s.m.geodesic(x, u, times.view(-1, *[1] * s.m.event_ndim))
    alone = torch.stack([s.m.exp(x, float(t) * u) for t in times])
    s.same(together, alone, "geodesic at four times against exp of each")


@law(ExponentialManifold)
def geodesics_have_no_acceleration(s: Setting) -> None:
    """Where the metric is the ambient dot product, the second derivative of a geodesic has no tangential part."""
    embedded = isinstance(s.m, EmbeddedManifold)
    if embedded and s.dtype == torch.float64:
        h = 1e-3
        bend = (s.m.exp(s.x, h * s.u) + s.m.exp(s.x, -h * s.u) - 2 * s.x) / h**2
        acceleration = s.m.project(s.x, bend).norm()
        s.within(acceleration, 1e-5 * max(1.0, float(bend.norm())), "the acceleration, 0, of a geodesic")


@law(GeodesicManifold)
def geodesics_continue_themselves(s: Setting) -> None:
    """Two geodesics end to end, with parallel transport of the velocity, are one of twice the length."""
    there = s.m.exp(s.x, s.u)
    onward = s.m.exp(there, s.m.parallel_transport(s.x, s.u, s.u))
    s.same(onward, s.m.exp(s.x, 2 * s.u), "two geodesics end to end against one of twice the length")


@law(GeodesicManifold)
def logarithm_inverts_the_exponential(s: Setting) -> None:
    """log(x, exp(x, u)) is u and dist is ‖u‖, for ‖u‖ below injectivity_radius, or 3 where that is infinite."""
    radius = s.m.injectivity_radius
    for length in (1e-6, 0.1, 0.97 * min(3.0 if radius == torch.inf else radius, s.m.max_tangent_norm)):
        u, far = s.along(length), f"at length {length:.3g}"
        y = s.m.exp(s.x, u)
        s.same(s.m.log(s.x, y), u, f"log of exp {far}", tol=s.tol if length < 1 else 20 * s.tol)
        s.same(s.m.dist(s.x, y), s.m.norm(s.x, u), f"dist(x, exp(x, u)) {far}")
        s.same(s.m.dist(y, s.x), s.m.norm(s.x, u), f"dist(exp(x, u), x) {far}")
        s.same(s.m.norm(s.x, s.m.log(s.x, y)), s.m.dist(s.x, y), f"norm of log against dist {far}")


@law(GeodesicManifold)
def distance_to_itself_is_zero(s: Setting) -> None:
    """dist(x, x) and log(x, x) are 0."""
    limit = 100 * torch.finfo(s.dtype).eps
    s.within(s.m.dist(s.x, s.x), limit, "dist(x, x), 0,")
    s.within(s.m.norm(s.x, s.m.log(s.x, s.x)), limit, "log(x, x), 0,")


@law(GeodesicManifold)
def parallel_transport_is_isometric(s: Setting) -> None:
    """parallel_transport and transport_to are linear and isometric, agree, and are the identity where the point stays."""
    m = s.m
    y = m.exp(s.x, s.u)
    for name, carry in (
        ("parallel_transport", lambda v: m.parallel_transport(s.x, s.u, v)),
        ("transport_to", lambda v: m.transport_to(s.x, y, v)),
    ):
        v, w = carry(s.v), carry(s.w)
        s.tangent_at(y, v, name)
        s.same(m.inner(y, v, w), m.inner(s.x, s.v, s.w), f"inner after {name} against before")
        s.same(carry(2 * s.v + s.w), 2 * v + w, f"{name} of 2 v + w against the sum of both")
    along = m.parallel_transport(s.x, s.u, s.v)
    s.same(m.transport_to(s.x, y, s.v), along, "transport_to(x, exp(x, u), v) against parallel_transport(x, u, v)")
    still = m.parallel_transport(s.x, torch.zeros_like(s.u), s.v)
    s.same(still, s.v, "parallel_transport(x, 0, v) against v")
    s.same(m.transport_to(s.x, s.x, s.v), s.v, "transport_to(x, x, v) against v")


@law(GeodesicManifold)
def row_kernels_have_its_formulas(s: Setting) -> None:
    """Where row_kernel is not None, steps of the row kernels, if there are any for the dtype and the device, are those of the maps."""
    lists = isinstance(s.m, Spherical)
    if s.m.row_kernel is None or (not lists and isinstance(kernel_for(s.m, s.dtype, s.device, Momentum()), str)):
        return
    for motion in ("retract", "exp"):
        ends: list[Tensor] = []
        for rows in (False, True):
            w = nn.Parameter(s.x.reshape(-1, s.x.shape[-1]).clone())
            path = {"foreach": rows, "fused": False} if lists else {"fused": rows}
            group = {"params": [w], "manifold": s.m, "motion": motion, **path}
            optimizer = RiemannianSGD([group], lr=0.3, momentum=0.9)
            for tangent in (s.u, s.v):
                factor = s.m.conformal_factor(s.x) if isinstance(s.m, Spherical) else 1.0
                w.grad = (tangent / factor).reshape(w.shape)
                optimizer.step()
            ends.append(torch.cat([w.detach(), optimizer.state[w]["momentum_buffer"]]))
        s.same(ends[0], ends[1], f"two steps with motion={motion!r} by its maps against those by the row kernels")
