"""The laws of quotients."""

from __future__ import annotations

import torch

from ..manifolds import GeodesicManifold, QuotientManifold, ScalingQuotient
from .maps import maps
from .setting import Setting, law


@law(QuotientManifold)
def metric_and_maps_respect_the_group(s: Setting) -> None:
    """The metric is invariant and every map equivariant: points and tangents of another representative transform alike."""
    m = s.m
    g, h = (m.random_group_element(s.x, generator=s.generator) for _ in range(2))
    x, u, v = (m.act(g, a) for a in (s.x, s.u, s.v))
    s.inputs |= {"g": g, "h": h}
    s.same(m.inner(x, u, v), m.inner(s.x, s.u, s.v), "inner at another representative")
    tol = s.tol * max(1.0, float(x.abs().max()))
    for name, function, arguments in maps(s):
        if name not in ("inner", "dist", "riemannian_gradient", "log", "transport_to"):
            moved = function(*(m.act(g, a) for a in arguments))
            s.same(moved, m.act(g, function(*arguments)), f"{name} at another representative", tol=tol)
    geodesic = isinstance(m, GeodesicManifold)
    if geodesic:
        y = m.retract(s.x, s.u)
        there, log = m.act(h, y), m.act(g, m.log(s.x, y))
        carried = m.act(h, m.transport_to(s.x, y, s.v))
        s.same(m.dist(x, there), m.dist(s.x, y), "dist between other representatives")
        s.same(m.log(x, there), log, "log between other representatives", tol=tol)
        s.same(m.transport_to(x, there, v), carried, "transport_to between other representatives", tol=tol)


@law(QuotientManifold)
def gradients_of_invariant_functions_are_horizontal(s: Setting) -> None:
    """The gradient, in the total space, of a function that is constant on classes is horizontal."""
    gradient = s.m.total_space.riemannian_gradient(s.x, s.egrad())
    s.same(s.m.horizontal(s.x, gradient), gradient, "the horizontal part of the gradient of an invariant function")


@law(QuotientManifold)
def horizontal_and_vertical_make_up_a_tangent(s: Setting) -> None:
    """horizontal + vertical is the tangent of the total space, and the two are orthogonal there."""
    total = s.m.total_space
    a = s.inputs["a"] = total.project(s.x, s.noise(*s.x.shape))
    horizontal, vertical = s.m.horizontal(s.x, a), s.m.vertical(s.x, a)
    s.same(horizontal + vertical, a, "horizontal + vertical")
    between = total.inner(s.x, horizontal, vertical)
    s.same(between, torch.zeros_like(between), "inner(horizontal, vertical) in the total space")
    s.tangent_at(s.x, horizontal, "the horizontal part")
    total.check_point(s.x)


@law(QuotientManifold)
def canonical_is_constant_on_classes(s: Setting) -> None:
    """canonical is the same for all representatives, align goes from one to the other, and same_point tells classes apart."""
    for _ in range(8):
        g = s.inputs["g"] = s.m.random_group_element(s.x, generator=s.generator)
        moved = s.m.act(g, s.x)
        s.same(s.m.canonical(moved), s.m.canonical(s.x), "canonical of another representative")
        s.holds(s.m.same_point(s.x, moved).all(), "same_point denies another representative")
        tol = s.tol * max(1.0, float(moved.abs().max()))
        s.same(s.m.align(s.x, moved), s.x, "align(x, another representative of x)", tol=tol)
    s.holds(s.m.same_point(s.x, s.m.canonical(s.x)).all(), "same_point denies the canonical representative")
    s.holds(not s.m.same_point(s.x, s.m.retract(s.x, s.u)).any(), "same_point takes retract(x, u) for x")


@law(ScalingQuotient)
def radius_scales_with_the_representative(s: Setting) -> None:
    """radius(act(g, x)) is g radius(x), g lies in [1e-4, 1e4], x itself is vertical, and 0 is no point."""
    g = s.inputs["g"] = s.m.random_group_element(s.x, generator=s.generator)
    s.same(
        s.m.horizontal(s.x, s.x), torch.zeros_like(s.x), "the horizontal part of x, whose class is the ray through it,"
    )
    ratio = s.m.radius(s.m.act(g, s.x)) / s.m.radius(s.x)
    s.same(ratio / g, torch.ones_like(g), "radius(act(g, x)) / (g radius(x))")
    s.between(g.min(), 0.99e-4, 1.01e4, "the least group element")
    s.between(g.max(), 0.99e-4, 1.01e4, "the greatest group element")
    defect = s.m.point_defect(torch.zeros_like(s.x)).max()
    s.holds(torch.isinf(defect), f"point_defect of a zero row is {float(defect):.3g}, not infinite")
