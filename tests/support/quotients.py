"""The laws of quotients."""

import torch
from maps import maps
from retract.manifolds import QuotientManifold, ScalingQuotient
from setting import law


@law(QuotientManifold)
def metric_and_maps_respect_the_group(s):
    g, h = (s.m.random_group_element(s.x, generator=s.generator) for _ in range(2))
    x, u, v = (s.m.act(g, a) for a in (s.x, s.u, s.v))
    s.same(s.m.inner(x, u, v), s.m.inner(s.x, s.u, s.v), "inner at another representative")
    tol = s.tol * max(1.0, float(x.abs().max()))
    for name, function, arguments in maps(s):
        if name not in ("inner", "dist", "riemannian_gradient", "log", "transport_to"):
            moved = function(*(s.m.act(g, a) for a in arguments))
            s.same(moved, s.m.act(g, function(*arguments)), f"{name} at another representative", tol=tol)
    y = s.m.retract(s.x, s.u)
    there, log = s.m.act(h, y), s.m.act(g, s.m.log(s.x, y))
    carried = s.m.act(h, s.m.transport_to(s.x, y, s.v))
    s.same(s.m.dist(x, there), s.m.dist(s.x, y), "dist between other representatives")
    s.same(s.m.log(x, there), log, "log between other representatives", tol=tol)
    s.same(s.m.transport_to(x, there, v), carried, "transport_to between other representatives", tol=tol)


@law(QuotientManifold)
def gradients_of_invariant_functions_are_horizontal(s):
    gradient = s.m.total_space.riemannian_gradient(s.x, s.egrad())
    s.same(s.m.horizontal(s.x, gradient), gradient, "the horizontal part of the gradient of an invariant function")
    g = s.m.random_group_element(s.x, generator=s.generator)
    s.same(s.f(s.m.act(g, s.x)), s.f(s.x), "the case's invariant at another representative")


@law(QuotientManifold)
def horizontal_and_vertical_make_up_a_tangent(s):
    total = s.m.total_space
    a = total.project(s.x, s.noise(*s.x.shape))
    horizontal, vertical = s.m.horizontal(s.x, a), s.m.vertical(s.x, a)
    s.same(horizontal + vertical, a, "horizontal + vertical")
    s.same((horizontal * vertical).sum(), torch.zeros((), dtype=s.dtype, device=s.device), "horizontal·vertical")
    s.tangent_at(s.x, horizontal, "the horizontal part")
    total.check_point(s.x)


@law(QuotientManifold)
def canonical_is_constant_on_classes(s):
    for _ in range(8):
        moved = s.m.act(s.m.random_group_element(s.x, generator=s.generator), s.x)
        s.same(s.m.canonical(moved), s.m.canonical(s.x), "canonical of another representative")
        s.holds(s.m.same_point(s.x, moved).all(), "same_point denies another representative")
        tol = s.tol * max(1.0, float(moved.abs().max()))
        s.same(s.m.align(s.x, moved), s.x, "align(x, another representative of x)", tol=tol)
    s.holds(s.m.same_point(s.x, s.m.canonical(s.x)).all(), "same_point denies the canonical representative")
    s.holds(not s.m.same_point(s.x, s.m.retract(s.x, s.u)).any(), "same_point takes retract(x, u) for x")


@law(ScalingQuotient)
def radius_scales_with_the_representative(s):
    g = s.m.random_group_element(s.x, generator=s.generator)
    s.same(
        s.m.horizontal(s.x, s.x), torch.zeros_like(s.x), "the horizontal part of x, whose class is the ray through it,"
    )
    ratio = s.m.radius(s.m.act(g, s.x)) / s.m.radius(s.x)
    s.same(ratio / g, torch.ones_like(g), "radius(act(g, x)) / (g radius(x))")
    s.between(g.min(), 0.99e-4, 1.01e4, "the least group element")
    s.between(g.max(), 0.99e-4, 1.01e4, "the greatest group element")
    defect = s.m.point_defect(torch.zeros_like(s.x)).max()
    s.holds(torch.isinf(defect), f"point_defect of a zero row is {float(defect):.3g}, not infinite")
