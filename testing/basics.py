"""The laws of every manifold, and those of a metric that is, or is a multiple of, the ambient dot product."""

from __future__ import annotations

import copy
from itertools import product

import torch

from ..manifolds import ConformalManifold, EmbeddedManifold, Manifold, checks, numerics
from .anywhere import evaluated, importable, pickled
from .maps import maps, movers
from .setting import Setting, law


@law(Manifold)
def metric_is_an_inner_product(s: Setting) -> None:
    """inner is symmetric, bilinear and positive, and norm is its square root."""
    inner = s.m.inner
    s.same(inner(s.x, s.u, s.v), inner(s.x, s.v, s.u), "inner(u, v) against inner(v, u)")
    linear = 2 * inner(s.x, s.u, s.v) + inner(s.x, s.w, s.v)
    s.same(inner(s.x, 2 * s.u + s.w, s.v), linear, "inner(2 u + w, v) against 2 inner(u, v) + inner(w, v)")
    s.between(inner(s.x, s.u, s.u).min(), 0, torch.inf, "the least inner(u, u)")
    s.same(s.m.norm(s.x, s.u).square(), inner(s.x, s.u, s.u), "norm(u)² against inner(u, u)")


@law(Manifold)
def scalars_keep_event_dimensions(s: Setting) -> None:
    """Scalars per point have shape (*batch, 1…), with the event dimensions as size 1."""
    expected = s.batch + (1,) * s.m.event_ndim
    for name, scalar in (
        ("inner", s.m.inner(s.x, s.u, s.v)),
        ("point_defect", s.m.point_defect(s.x)),
        ("tangent_defect", s.m.tangent_defect(s.x, s.u)),
    ):
        s.holds(scalar.shape == expected, f"{name} has shape {tuple(scalar.shape)}, not {tuple(expected)}")


@law(Manifold)
def projection_is_linear_and_idempotent(s: Setting) -> None:
    """project is linear, and projecting a second time changes nothing."""
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    s.inputs |= {"a": a, "b": b}
    p = s.m.project(s.x, a)
    s.same(s.m.project(s.x, p), p, "project twice against once")
    linear = 2 * p + s.m.project(s.x, b)
    s.same(s.m.project(s.x, 2 * a + b), linear, "project(2 a + b) against 2 project(a) + project(b)")
    s.tangent_at(s.x, s.m.random_tangent(s.x, generator=s.generator), "a random tangent")


@law(EmbeddedManifold)
def projection_is_self_adjoint(s: Setting) -> None:
    """project(a)·b equals a·project(b)."""
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    s.inputs |= {"a": a, "b": b}
    s.same((s.m.project(s.x, a) * b).sum(), (a * s.m.project(s.x, b)).sum(), "project(a)·b against a·project(b)")


@law(Manifold)
def gradient_is_dual_to_the_metric(s: Setting) -> None:
    """inner(gradient, u) equals egrad·u for every tangent u, and the gradient is tangent."""
    egrad = s.inputs["egrad"] = s.egrad()
    s.tangent_at(s.x, s.m.riemannian_gradient(s.x, egrad), "riemannian_gradient")
    for name, u in (("u", s.u), ("v", s.v), ("w", s.w)):
        gap = checks.duality_gap(s.m, s.x, egrad, u)
        s.within(gap, s.tol, f"inner(gradient, {name}) against egrad·{name}")


@law(Manifold)
def gradient_is_of_second_order(s: Setting) -> None:
    """f(retract(x, t u)) − f(x) − t inner(gradient, u) vanishes like t²."""
    if s.dtype == torch.float64:
        order = checks.gradient_order(s.m, s.f, s.x, generator=s.generator)
        s.within(abs(order - 2), 0.02, f"the order {order:.3g} of the gap of the gradient, which should be 2,")


@law(Manifold)
def nearest_is_a_point_and_leaves_points(s: Setting) -> None:
    """nearest leaves a point as it is, bitwise, and makes a point of an array close to one."""
    s.bitwise(s.m.nearest(s.x), s.x, "nearest(x) to x")
    a = s.inputs["a"] = s.x + 0.01 * s.noise(*s.x.shape)
    s.on(s.m.nearest(a), "nearest of an array off by 0.01")


@law(Manifold)
def points_are_told_from_other_arrays(s: Setting) -> None:
    """check_point and check_tangent take points and tangents; an array that nearest would move is refused, with the row."""
    s.m.check_point(s.x)
    s.m.check_tangent(s.x, s.u)
    x = s.x.reshape(-1, *s.event)[0]
    a = x + 0.5 * s.noise(*s.event)
    s.inputs |= {"a": a}
    if (s.m.nearest(a) - a).abs().max() > 0.01:
        rows = torch.stack([x, a])
        s.refuses("the second row of [x, a], which nearest would move,", ["row 1 is off by"], s.m.check_point, rows)
    if s.m.event_ndim:
        number = torch.ones((), dtype=s.dtype, device=s.device)
        s.refuses("a single number", ["dimensions"], s.m.check_point, number)


@law(Manifold)
def nan_is_no_point(s: Setting) -> None:
    """check_point refuses a row of NaN."""
    x = s.x.reshape(-1, *s.event)[0]
    rows = torch.stack([x, torch.full_like(x, torch.nan)])
    s.refuses("a row of NaN", ["row 1 is off by"], s.m.check_point, rows)


@law(Manifold)
def complex_arrays_are_refused(s: Setting) -> None:
    """Every map refuses complex arrays, in any argument: products would lack a conjugate."""
    for name, function, arguments in maps(s):
        for place in range(len(arguments)):
            given = [a + 1j * a if i == place else a for i, a in enumerate(arguments)]
            s.refuses(f"{name} with argument {place} complex", [f"{name} of", "complex"], function, *given)
    s.refuses("a complex point", ["complex"], s.m.check_point, s.x + 0j)
    s.refuses("a complex tangent", ["complex"], s.m.check_tangent, s.x, s.u + 0j)


@law(Manifold)
def retraction_at_zero_is_the_point_itself(s: Setting) -> None:
    """retract(x, 0) is x as an array, bitwise."""
    zero = s.inputs["u"] = torch.zeros_like(s.u)
    s.bitwise(s.m.retract(s.x, zero), s.x, "retract(x, 0) to x")
    with torch.no_grad():
        s.bitwise(s.m.retract(s.x, zero), s.x, "retract(x, 0) without derivatives to x")


@law(Manifold)
def retraction_agrees_to_first_order(s: Setting) -> None:
    """retract(x, t u) parts from exp(x, t u), or from x + t u where no exp is known, like t² or faster."""
    if s.dtype == torch.float64:
        order = checks.retraction_order(s.m, s.x, generator=s.generator)
        s.holds(order > 1.98, f"retract parts from exp, or from x + u, at order {order:.4g}, not above 1.98")


@law(Manifold)
def retraction_stays_on_the_manifold(s: Setting) -> None:
    """retract(x, u) is a point, for ‖u‖ up to max_tangent_norm."""
    for length in s.lengths():
        s.on(s.m.retract(s.x, s.along(length)), f"retract(x, u) with ‖u‖ = {length:g}")


@law(Manifold)
def transport_is_a_vector_transport(s: Setting) -> None:
    """transport(x, u, v) is tangent at retract(x, u), linear in v, and equal to v for u = 0; retract_and_transport gives both."""
    s.same(s.m.transport(s.x, torch.zeros_like(s.u), s.v), s.v, "transport(x, 0, v) against v")
    for length in s.lengths():
        u, far = s.along(length), f"with ‖u‖ = {length:g}"
        y, moved = s.m.retract(s.x, u), s.m.transport(s.x, u, s.v)
        # After a long step the result may be much shorter than v, and has the rounding error of v.
        off, size = (numerics.norm(a, s.m.event_ndim) for a in (moved - s.m.project(y, moved), moved))
        share = off / torch.maximum(size, numerics.norm(s.v, s.m.event_ndim))
        s.within(share, s.tol, f"the part of transport(x, u, v) that is not tangent at retract(x, u), {far},")
        linear = 2 * moved + s.m.transport(s.x, u, s.w)
        s.same(s.m.transport(s.x, u, 2 * s.v + s.w), linear, f"transport of 2 v + w against the sum of both {far}")
        both = s.m.retract_and_transport(s.x, u, s.v)
        s.same(both[0], y, f"the point of retract_and_transport against retract {far}")
        s.same(both[1], moved, f"the tangent of retract_and_transport against transport {far}")


@law(Manifold)
def random_points_are_deterministic(s: Setting) -> None:
    """random_point gives points, the same ones for the same generator."""
    draws = []
    for _ in range(2):
        generator = torch.Generator(s.device).manual_seed(s.seed + 5)
        draws.append(s.m.random_point(*s.x.shape, generator=generator, dtype=s.dtype, device=s.device))
    s.bitwise(draws[0], draws[1], "a second random_point from the same seed")
    s.on(draws[0], "random_point")
    s.holds(not torch.equal(draws[0], s.point()), "another seed draws the same random_point")


@law(Manifold)
def batch_equals_loop(s: Setting) -> None:
    """A map of a batch equals the map of each point, and of the same batch with another dimension."""
    for name, function, arguments in maps(s):
        together = function(*arguments)
        alone = [function(*(a[i] for a in arguments)) for i in product(*map(range, s.batch))]
        s.same(torch.stack(alone).view_as(together), together, f"{name} of single points against the batch")
        more = function(*(a.unsqueeze(0) for a in arguments))[0]
        s.same(more, together, f"{name} with another batch dimension against without")


@law(Manifold)
def tangents_may_be_stacked(s: Setting) -> None:
    """inner, project and the transports take a stack of tangents at one batch of points, (k, *batch, *event)."""
    for name, function, (*fixed, last) in maps(s):
        if name in ("inner", "project", "riemannian_gradient", "transport", "parallel_transport", "transport_to"):
            stack = torch.stack([last, s.w, -last])
            alone = torch.stack([function(*fixed, each) for each in stack])
            s.same(function(*fixed, stack), alone, f"{name} of a stack against {name} of each")


@law(Manifold)
def inputs_stay_as_they_are(s: Setting) -> None:
    """No map writes to its arguments, and results have the dtype and device of the arguments."""
    for name, function, arguments in maps(s):
        before = [a.clone() for a in arguments]
        result = function(*arguments)
        for place, (a, b) in enumerate(zip(arguments, before, strict=True)):
            s.bitwise(a, b, f"argument {place} of {name} after the call")
        s.holds(result.dtype == s.dtype, f"{name} returns {result.dtype}")
        s.holds(result.device.type == s.device.type, f"{name} returns an array on {result.device}")


@law(Manifold)
def steps_are_finite(s: Setting) -> None:
    """Maps along u are finite for ‖u‖ = 0, from 1e-30, and up to max_tangent_norm."""
    for length in s.lengths():
        u = s.along(length)
        for name, move in movers(s):
            s.finite(move(s.x, u), f"{name} along a tangent of length {length:g}")


@law(Manifold)
def steps_are_differentiable(s: Setting) -> None:
    """Maps along u have finite derivatives for ‖u‖ = 0, from 1e-30, and up to max_tangent_norm."""
    for length in s.lengths():
        for name, move in movers(s):
            u = s.along(length).requires_grad_()
            (slope,) = torch.autograd.grad((move(s.x, u) * s.v).sum() + 0 * u.sum(), u)
            s.finite(slope, f"the gradient of {name} at a tangent of length {length:g}")


@law(Manifold)
def steps_of_any_length_end_on_the_manifold(s: Setting) -> None:
    """On a compact manifold that does not lower max_tangent_norm, maps along u give points of it and finite tangents for ‖u‖ up
    to 1e30, and 1e100 in float64, with and without derivatives."""
    if not s.m.compact or s.m.max_tangent_norm < Manifold.max_tangent_norm:
        return
    for length in (1e2, 1e5, 1e6, 1e8, 1e10, 1e15, 1e19, 1e30, *([1e100] if s.dtype == torch.float64 else [])):
        u = s.along(length)
        for (name, move), wanted in product(movers(s), (False, True)):
            with torch.set_grad_enabled(wanted):
                reached = move(s.x, u.clone().requires_grad_(wanted)).detach()
            what = f"{name} along a tangent of length {length:g}" + wanted * ", where its derivative is wanted,"
            s.finite(reached, what)
            if name in ("retract", "exp"):
                s.on(reached, what)


@law(Manifold)
def vmap_and_compile_agree(s: Setting) -> None:
    """torch.vmap over the points and torch.compile of every map, in one graph, give the same result as the map."""
    torch.compiler.reset()  # the compiler stops compiling a function after eight manifolds
    for name, function, arguments in maps(s):
        expected = function(*arguments)
        if s.batch:
            s.same(torch.vmap(function)(*arguments), expected, f"{name} under vmap")
        with importable(s.m):
            compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
        s.same(compiled, expected, f"{name} compiled")


@law(Manifold)
def manifolds_are_values(s: Setting) -> None:
    """A manifold that is pickled or copied equals itself and has the same hash and repr."""
    for name, twin in (("unpickled", pickled(s.m)), ("copied", copy.deepcopy(s.m))):
        s.holds(twin == s.m, f"{name}, it is not equal to itself")
        s.holds(hash(twin) == hash(s.m), f"{name}, it has another hash")
        s.holds(repr(twin) == repr(s.m), f"{name}, it is {twin!r}")


@law(Manifold)
def repr_evaluates(s: Setting) -> None:
    """repr(manifold) is an expression whose value equals the manifold."""
    twin = evaluated(s.m)
    s.holds(twin == s.m, f"repr, {s.m!r}, evaluates to {twin!r}")


@law(ConformalManifold)
def conformal_factor_is_the_metric(s: Setting) -> None:
    """conformal_factor is λ in the metric u·v / λ and in the gradient λ egrad."""
    factor = s.m.conformal_factor(s.x)
    s.same(s.m.riemannian_gradient(s.x, s.v), s.v * factor, "riemannian_gradient(x, v) against λ v")
    dot = numerics.dot(s.u, s.v, s.m.event_ndim)
    s.same(s.m.inner(s.x, s.u, s.v) * factor, dot, "λ inner(u, v) against u·v")
