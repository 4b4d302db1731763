"""The laws of the abstract classes, one function each. A manifold runs every law of every class it inherits.

Those of geodesics, of quotients and of derivatives are in files of their own, and are registered with these.
"""

import copy
import pickle

import derivatives
import geodesics
import pytest
import quotients
import torch
from maps import maps, movers
from retract import manifolds
from retract.manifolds import ConformalManifold, EmbeddedManifold, Manifold, checks, numerics
from retract.manifolds.errors import GeometryError
from setting import LAWS, Setting, law

__all__ = ["LAWS", "Setting", "derivatives", "geodesics", "quotients"]


@law(Manifold)
def metric_is_an_inner_product(s):
    inner = s.m.inner
    s.same(inner(s.x, s.u, s.v), inner(s.x, s.v, s.u), "inner(u, v) against inner(v, u)")
    linear = 2 * inner(s.x, s.u, s.v) + inner(s.x, s.w, s.v)
    s.same(inner(s.x, 2 * s.u + s.w, s.v), linear, "inner(2 u + w, v) against 2 inner(u, v) + inner(w, v)")
    s.between(inner(s.x, s.u, s.u).min(), 0, torch.inf, "the least inner(u, u)")
    s.same(s.m.norm(s.x, s.u), torch.full_like(s.m.norm(s.x, s.u), 0.7), "norm of tangents scaled to 0.7")


@law(Manifold)
def scalars_keep_event_dimensions(s):
    expected = s.batch + (1,) * s.m.event_ndim
    for name, scalar in (
        ("inner", s.m.inner(s.x, s.u, s.v)),
        ("point_defect", s.m.point_defect(s.x)),
        ("tangent_defect", s.m.tangent_defect(s.x, s.u)),
    ):
        s.holds(scalar.shape == expected, f"{name} has shape {tuple(scalar.shape)}, not {tuple(expected)}")


@law(Manifold)
def projection_is_linear_and_idempotent(s):
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    p = s.m.project(s.x, a)
    s.same(s.m.project(s.x, p), p, "project twice against once")
    s.same(
        s.m.project(s.x, 2 * a + b), 2 * p + s.m.project(s.x, b), "project(2 a + b) against 2 project(a) + project(b)"
    )
    s.tangent_at(s.x, s.m.random_tangent(s.x, generator=s.generator), "a random tangent")


@law(EmbeddedManifold)
def projection_is_self_adjoint(s):
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    s.same((s.m.project(s.x, a) * b).sum(), (a * s.m.project(s.x, b)).sum(), "project(a)·b against a·project(b)")


@law(Manifold)
def gradient_is_dual_to_the_metric(s):
    egrad = s.egrad()
    s.tangent_at(s.x, s.m.riemannian_gradient(s.x, egrad), "riemannian_gradient")
    for u in (s.u, s.v, s.w):
        s.within(checks.duality_gap(s.m, s.x, egrad, u).max(), s.tol, "⟨gradient, u⟩ against egrad·u")


@law(Manifold)
def gradient_is_of_second_order(s):
    if s.dtype == torch.float64:
        order = checks.gradient_order(s.m, s.f, s.x, generator=s.generator)
        s.within(abs(order - 2), 0.02, f"the order {order:.3g} of the gap of the gradient, which should be 2,")


@law(Manifold)
def nearest_is_a_point_and_leaves_points(s):
    s.bitwise(s.m.nearest(s.x), s.x, "nearest(x) to x")
    s.on(s.m.nearest(s.x + 0.01 * s.noise(*s.x.shape)), "nearest of an array off by 0.01")


@law(Manifold)
def points_are_told_from_other_arrays(s):
    s.m.check_point(s.x)
    s.m.check_tangent(s.x, s.u)
    off = torch.tensor(s.case.off, dtype=s.dtype, device=s.device)
    if not isinstance(s.m, manifolds.Euclidean):
        rows = torch.stack([s.m.random_point(*off.shape, dtype=s.dtype, device=s.device), off])
        with pytest.raises(GeometryError, match=r"row 1 is off by .* \(tolerance"):
            s.m.check_point(rows)
        with pytest.raises(GeometryError, match="dimensions"):
            s.m.check_point(torch.ones((), dtype=s.dtype, device=s.device))


@law(Manifold)
def complex_arrays_are_refused(s):
    """In any argument: products would lack a conjugate."""
    for name, function, arguments in maps(s):
        for place in range(len(arguments)):
            given = [a + 1j * a if i == place else a for i, a in enumerate(arguments)]
            try:
                function(*given)
            except GeometryError as error:
                s.holds(f"{name} of" in str(error) and "complex" in str(error), f"{name} said: {error}")
            else:
                s.holds(False, f"{name} took argument {place} complex")
    with pytest.raises(GeometryError, match="complex"):
        s.m.check_point(s.x + 0j)
    with pytest.raises(GeometryError, match="complex"):
        s.m.check_tangent(s.x, s.u + 0j)


@law(Manifold)
def retraction_at_zero_is_the_point_itself(s):
    s.bitwise(s.m.retract(s.x, torch.zeros_like(s.u)), s.x, "retract(x, 0) to x")
    with torch.no_grad():
        s.bitwise(s.m.retract(s.x, torch.zeros_like(s.u)), s.x, "retract(x, 0) without derivatives to x")


@law(Manifold)
def retraction_agrees_to_first_order(s):
    if s.dtype == torch.float64:
        order = checks.retraction_order(s.m, s.x, generator=s.generator)
        s.holds(order > 1.98, f"retract parts from exp, or from x + u, at order {order:.4g}, not above 1.98")


@law(Manifold)
def retraction_stays_on_the_manifold(s):
    for length in (1e-8, 1e-3, 1.0, 3.0):
        s.on(s.m.retract(s.x, s.u * length), f"retract(x, {length:g} u)")


@law(Manifold)
def transport_is_a_vector_transport(s):
    y = s.m.retract(s.x, s.u)
    moved = s.m.transport(s.x, s.u, s.v)
    s.tangent_at(y, moved, "transport(x, u, v) at retract(x, u)")
    linear = 2 * moved + s.m.transport(s.x, s.u, s.w)
    s.same(s.m.transport(s.x, s.u, 2 * s.v + s.w), linear, "transport of 2 v + w against the sum of both")
    s.same(s.m.transport(s.x, torch.zeros_like(s.u), s.v), s.v, "transport(x, 0, v) against v")


@law(Manifold)
def random_points_are_deterministic(s):
    draws = []
    for _ in range(2):
        generator = torch.Generator(s.device).manual_seed(5)
        draws.append(s.m.random_point(*s.x.shape, generator=generator, dtype=s.dtype, device=s.device))
    s.bitwise(*draws, "a second random_point from the same seed")
    s.on(draws[0], "random_point")
    s.holds(not torch.equal(draws[0], s.point()), "another seed draws the same random_point")


@law(Manifold)
def batch_equals_loop(s):
    for name, function, arguments in maps(s):
        together = function(*arguments)
        for i in range(s.batch[0]):
            s.same(function(*(a[i] for a in arguments)), together[i], f"{name} of row {i} alone against the batch")


@law(Manifold)
def inputs_stay_as_they_are(s):
    for name, function, arguments in maps(s):
        before = [a.clone() for a in arguments]
        result = function(*arguments)
        for place, (a, b) in enumerate(zip(arguments, before, strict=True)):
            s.bitwise(a, b, f"argument {place} of {name} after the call")
        s.holds(result.dtype == s.dtype, f"{name} returns {result.dtype}")
        s.holds(result.device.type == s.device.type, f"{name} returns an array on {result.device}")


@law(Manifold)
def steps_are_finite(s):
    for length in (0.0, 1e-30, 1e-12, 1.0, 1e4):
        if length <= s.case.reach:
            for name, move in movers(s):
                s.finite(move(s.x, s.u * length), f"{name} along a tangent of length {0.7 * length:g}")


@law(Manifold)
def steps_are_differentiable(s):
    for length in (0.0, 1e-30, 1e-12, 1.0, 1e4):
        if length <= s.case.reach:
            for name, move in movers(s):
                u = (s.u * length).requires_grad_()
                (slope,) = torch.autograd.grad((move(s.x, u) * s.v).sum() + 0 * u.sum(), u)
                s.finite(slope, f"the gradient of {name} at a tangent of length {0.7 * length:g}")


@law(Manifold)
def vmap_and_compile_agree(s):
    torch.compiler.reset()  # the compiler gives up on code that it has compiled for eight other manifolds
    for name, function, arguments in maps(s):
        expected = function(*arguments)
        s.same(torch.vmap(function)(*arguments), expected, f"{name} under vmap")
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        s.same(compiled(*arguments), expected, f"{name} compiled")


@law(Manifold)
def manifolds_are_values(s):
    for name, twin in (("unpickled", pickle.loads(pickle.dumps(s.m))), ("copied", copy.deepcopy(s.m))):
        s.holds(twin == s.m, f"{name}, it is not equal to itself")
        s.holds(hash(twin) == hash(s.m), f"{name}, it has another hash")
        s.holds(repr(twin) == repr(s.m), f"{name}, it is {twin!r}")
    if s.case.repr_evaluates:
        twin = eval(repr(s.m), {**vars(manifolds), type(s.m).__name__: type(s.m)})
        s.holds(twin == s.m, f"its repr evaluates to {twin!r}")


@law(Manifold)
def known_values_hold(s):
    for method, arguments, expected in s.case.known:
        tensors = [torch.tensor(a, dtype=s.dtype, device=s.device) for a in arguments]
        value = torch.tensor(expected, dtype=s.dtype, device=s.device)
        s.same(getattr(s.m, method)(*tensors), value, f"{method}{arguments}")


@law(ConformalManifold)
def conformal_factor_is_the_metric(s):
    factor = s.m.conformal_factor(s.x)
    s.same(s.m.riemannian_gradient(s.x, s.v), s.v * factor, "riemannian_gradient against λ egrad")
    dot = numerics.dot(s.u, s.v, s.m.event_ndim)
    s.same(s.m.inner(s.x, s.u, s.v) * factor, dot, "λ inner(u, v) against u·v")
