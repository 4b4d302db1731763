"""The laws of derivatives: of first and second order, in both modes, they equal differences, at special points too.

Every map is differentiated as a function of ambient arrays, from which `nearest` and `project` make points and tangents: so
differences stay on the manifold, and the derivative of `nearest` at a point is tested as well. Lengths and distances are not
differentiable at 0; that is another law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..manifolds import ExponentialManifold, GeodesicManifold, Manifold, QuotientManifold
from .setting import Setting, law

Map: TypeAlias = Callable[..., Any]
Arrays: TypeAlias = tuple[Tensor, ...]

STEP = 1e-4
"""The step of differences of fourth order, with truncation and rounding errors below 1e-10."""
LIMIT = 1e-6
"""The tolerance of derivatives against differences."""


def points(s: Setting) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, tangent u, second point y): generic points, and points where formulas divide by 0."""
    exponential, matrices = isinstance(s.m, ExponentialManifold), s.m.event_ndim == 2
    move = s.m.exp if exponential else s.m.retract
    left, _, right = torch.linalg.svd(s.u, full_matrices=False) if matrices else (s.u, s.u, s.u)
    yield "u = 0, y = x", torch.zeros_like(s.u), s.x
    if matrices:
        equal = 0.4 * s.m.project(s.x, left @ right)
        yield "equal singular values and angles", equal, move(s.x, equal)
    if s.thorough or not matrices:
        yield "a generic point", s.u, move(s.x, s.u)
    if s.thorough:
        tiny = 1e-9 * s.u
        yield "u and y − x of length 1e-9", tiny, move(s.x, tiny)
    if s.thorough and matrices:
        one = 0.4 * s.m.project(s.x, left[..., :1] @ right[..., :1, :])
        yield "one singular value and angle, the others 0", one, move(s.x, one)


def smooth_maps(m: Any) -> Iterator[tuple[str, Map]]:
    """The smooth maps: (name, function of x, u, v, y and a time)."""
    yield "nearest", lambda x, u, v, y, t: x
    yield "inner(u, v)", lambda x, u, v, y, t: m.inner(x, u, v)
    yield "inner(u, u)", lambda x, u, v, y, t: m.inner(x, u, u)
    yield "norm(u)²", lambda x, u, v, y, t: m.norm(x, u).square()
    yield "project", lambda x, u, v, y, t: m.project(x, v)
    yield "riemannian_gradient", lambda x, u, v, y, t: m.riemannian_gradient(x, v)
    yield "retract", lambda x, u, v, y, t: m.retract(x, u)
    yield "transport", lambda x, u, v, y, t: m.transport(x, u, v)
    if isinstance(m, ExponentialManifold):
        yield "exp", lambda x, u, v, y, t: m.exp(x, u)
        yield "geodesic", lambda x, u, v, y, t: m.geodesic(x, v, t)
    if isinstance(m, GeodesicManifold):
        yield "log", lambda x, u, v, y, t: m.log(x, y)
        yield "dist²", lambda x, u, v, y, t: m.dist(x, y).square()
        yield "parallel_transport", lambda x, u, v, y, t: m.parallel_transport(x, u, v)
        yield "transport_to", lambda x, u, v, y, t: m.transport_to(x, y, v)
    if isinstance(m, QuotientManifold):
        yield "horizontal", lambda x, u, v, y, t: m.horizontal(x, v)
        yield "vertical", lambda x, u, v, y, t: m.vertical(x, v)
        yield "align", lambda x, u, v, y, t: m.align(x, y)
        yield "canonical", lambda x, u, v, y, t: m.canonical(x)


def kinked_maps(m: Any) -> Iterator[tuple[str, Map]]:
    """The maps that have no derivative where they are 0: (name, function of x, u, v, y and a time)."""
    yield "norm", lambda x, u, v, y, t: m.norm(x, u)
    if isinstance(m, GeodesicManifold):
        yield "dist", lambda x, u, v, y, t: m.dist(x, y)


def probes(s: Setting) -> Iterator[tuple[str, Map, Arrays, Arrays]]:
    """(name, map of five ambient arrays, the arrays, a direction for them); messages show the arrays."""
    m = s.m

    def ambient(function: Map) -> Map:
        def composed(x: Tensor, u: Tensor, v: Tensor, y: Tensor, t: Tensor) -> Any:
            x = m.nearest(x)
            return function(x, m.project(x, u), m.project(x, v), m.nearest(y), t)

        return composed

    for place, u, y in points(s):
        s.inputs = {"x": s.x, "u": u, "v": s.v, "y": y}
        arrays = (s.x, u, s.v, y, torch.zeros(s.batch + (1,) * m.event_ndim, dtype=s.dtype, device=s.device))
        for name, function in smooth_maps(m):
            yield f"{name} at {place}", ambient(function), arrays, tuple(s.noise(*a.shape) for a in arrays)
        off = (0.8 * s.x + 0.1 * s.v, *arrays[1:])
        yield f"nearest off the manifold, {place}", ambient(lambda x, *_: x), off, tuple(s.noise(*a.shape) for a in off)
        for name, function in kinked_maps(m):
            if "0," not in place and "1e-9" not in place:
                yield f"{name} at {place}", ambient(function), arrays, tuple(s.noise(*a.shape) for a in arrays)


def difference(function: Map, arrays: Arrays, direction: Arrays) -> Any:
    """The central difference of fourth order of a function that returns a tensor or a tuple of tensors."""

    def value(steps: float) -> Arrays:
        found = function(*(a + steps * STEP * d for a, d in zip(arrays, direction, strict=True)))
        return found if isinstance(found, tuple) else (found,)

    stencil = zip(*(value(steps) for steps in (1, -1, 2, -2)), strict=True)
    slopes = tuple((8 * (a - b) - (c - d)) / (12 * STEP) for a, b, c, d in stencil)
    return slopes if len(slopes) > 1 else slopes[0]


def paired(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """The dot product of two tuples of arrays."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def functional(s: Setting, function: Map, arrays: Arrays) -> Map:
    """A random linear functional of the map's value."""
    weights = s.noise(*function(*arrays).shape)
    return lambda *arguments: (weights * function(*arguments)).sum()


def gradient(f: Map, arrays: Arrays, create_graph: bool = False) -> tuple[Arrays, Arrays]:
    """Leaves with the values of `arrays`, and the gradients of `f` there by reverse mode."""
    leaves = tuple(a.detach().requires_grad_() for a in arrays)
    found = torch.autograd.grad(f(*leaves), leaves, create_graph=create_graph, materialize_grads=True)
    return leaves, found


@law(Manifold)
def first_derivatives_equal_differences(s: Setting) -> None:
    """First derivatives of all maps in all arguments, in forward and in reverse mode, equal differences, at u = 0 and y = x too."""
    if s.dtype != torch.float64:
        return
    for name, function, arrays, direction in probes(s):
        f = functional(s, function, arrays)
        slope = difference(function, arrays, direction)
        s.same(jvp(function, arrays, direction)[1], slope, f"forward mode through {name}", tol=LIMIT)
        along = difference(f, arrays, direction)
        s.same(paired(gradient(f, arrays)[1], direction), along, f"reverse mode through {name}", tol=LIMIT)


@law(Manifold)
def second_derivatives_equal_differences(s: Setting) -> None:
    """Second derivatives of all maps in all arguments equal differences of first ones, at u = 0 and y = x too."""
    if s.dtype != torch.float64:
        return
    every = (0, 1, 2, 3, 4)
    for name, function, arrays, direction in probes(s):
        if not (s.thorough or "y = x" in name):
            continue
        f = functional(s, function, arrays)

        def slope(*arguments: Tensor, f: Map = f, direction: Arrays = direction) -> Any:
            return jvp(f, arguments, direction)[1]

        bend = difference(lambda *arguments, f=f: gradient(f, arguments)[1], arrays, direction)
        leaves, first = gradient(f, arrays, create_graph=True)
        if any(a.requires_grad for a in first):
            double = torch.autograd.grad(paired(first, direction), leaves, materialize_grads=True)
        else:
            double = tuple(torch.zeros_like(a) for a in arrays)
        modes = [("reverse over reverse", double)]
        if s.thorough:
            modes.append(("forward over reverse", jvp(grad(f, argnums=every), arrays, direction)[1]))
            modes.append(("reverse over forward", grad(slope, argnums=every)(*arrays)))
            twice = jvp(slope, arrays, direction)[1]
            s.same(twice, paired(bend, direction), f"forward over forward through {name}", tol=LIMIT)
        size = max(1.0, *(float(b.abs().max()) for b in bend))  # of all: they come from the same differences
        for mode, found in modes:
            for one, other in zip(found, bend, strict=True):
                s.same(one, other, f"{mode} through {name}", tol=LIMIT, size=size)


@law(Manifold)
def derivatives_batch(s: Setting) -> None:
    """torch.vmap of the derivatives at single points equals the derivatives of the batch."""
    if s.dtype != torch.float64 or not s.thorough or not s.batch:
        return
    for name, function, arrays, direction in probes(s):
        alone = vmap(lambda point, towards, function=function: jvp(function, point, towards)[1])(arrays, direction)
        s.same(alone, jvp(function, arrays, direction)[1], f"forward mode under vmap through {name}")
        points = vmap(grad(lambda point, function=function: function(*point).sum()))(arrays)
        batch = gradient(lambda *arguments, function=function: function(*arguments).sum(), arrays)[1]
        for one, other in zip(points, batch, strict=True):
            s.same(one, other, f"reverse mode under vmap through {name}")


@law(GeodesicManifold)
def half_the_squared_distance_has_minus_the_logarithm_as_gradient(s: Setting) -> None:
    """dist(x, y)²/2 has the gradient −log(y, x) in y, where x and y coincide too."""
    for place, _, y in points(s):
        s.inputs = {"x": s.x, "y": y}
        at = y.detach().requires_grad_()
        (egrad,) = torch.autograd.grad(0.5 * s.m.dist(s.x, at).square().sum(), at)
        descent = s.m.riemannian_gradient(y, egrad)
        s.same(descent, -s.m.log(y, s.x), f"the gradient of dist(x, y)²/2 at {place} against −log(y, x)")


@law(Manifold)
def kinks_have_subgradients(s: Setting) -> None:
    """norm at u = 0 and dist at y = x, which have no derivative, give a subgradient: one at most 1 long."""
    zero = torch.zeros_like(s.u).requires_grad_()
    (egrad,) = torch.autograd.grad(s.m.norm(s.x, zero).sum() + 0 * zero.sum(), zero)
    slopes = [("norm(u) at u = 0", egrad)]
    if isinstance(s.m, GeodesicManifold):
        at = s.x.clone().requires_grad_()
        slopes.append(("dist(x, y) at y = x", torch.autograd.grad(s.m.dist(s.x, at).sum(), at)[0]))
    for name, egrad in slopes:
        length = s.m.norm(s.x, s.m.riemannian_gradient(s.x, egrad))
        s.within(length, 1 + s.tol, f"the length of the slope of {name}, which is a subgradient and at most 1 long,")


@law(GeodesicManifold)
def maps_are_finite_at_the_cut_locus(s: Setting) -> None:
    """At injectivity_radius log, dist and transport_to are finite, with finite derivatives, and no vector gets longer."""
    if s.m.injectivity_radius == torch.inf:
        return
    y = s.m.exp(s.x, s.u * (s.m.injectivity_radius / s.m.norm(s.x, s.u)))
    places = [("at the injectivity radius", y)]
    if s.m.point_defect(-s.x).max() <= s.tol:
        places.append(("at −x", -s.x))
    for place, other in places:
        s.inputs = {"x": s.x, "y": other, "v": s.v}
        at = other.clone().requires_grad_()
        carried = s.m.transport_to(s.x, at, s.v)
        for name, value in (("log", s.m.log(s.x, at)), ("dist", s.m.dist(s.x, at)), ("transport_to", carried)):
            s.finite(value.detach(), f"{name} {place}")
            s.finite(torch.autograd.grad(value.sum(), at)[0], f"the gradient of {name} {place}")
        growth = (s.m.norm(other, carried) / s.m.norm(s.x, s.v)).detach()
        s.within(growth, 1 + s.tol, f"the growth of a vector under transport_to {place}, at most 1,")
