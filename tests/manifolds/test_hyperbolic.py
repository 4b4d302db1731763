"""Hyperbolic space near and far, as hyperboloid and as ball: accuracy, training, and the other libraries."""

import math
import runpy
from fractions import Fraction
from pathlib import Path

import geoopt
import numpy as np
import pymanopt.manifolds
import pytest
import retract
import torch
from retract.errors import GeometryError
from retract.manifolds import Lorentz, PoincareBall, numerics, series
from retract.optim import RiemannianAdam, RiemannianSGD

MODELS = [Lorentz(), PoincareBall()]
accuracy = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "benchmarks" / "hyperbolic_accuracy.py"))


def far_point(manifold, radius, dtype, size=4):
    """A point at the distance `radius` from the origin, in a direction with irrational coordinates."""
    e = torch.arange(1, size + 1, dtype=torch.float64).sqrt()
    e = e / e.norm()
    if isinstance(manifold, Lorentz):
        return torch.cat([torch.tensor([math.cosh(radius)], dtype=torch.float64), math.sinh(radius) * e]).to(dtype)
    return (math.tanh(radius / 2) * e).to(dtype)


@pytest.mark.parametrize("samples", [1, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("model", ["Sheet", "Ball"])
def test_never_less_accurate_than_the_better_of_geoopt_and_pymanopt(model, dtype, samples):
    """With a floor of four roundings of the result, and of coordinates where it is a point or a tangent elsewhere."""
    eps = torch.finfo(dtype).eps
    rows = list(accuracy["table"](accuracy[model](), dtype, samples))
    assert len(rows) >= 50
    for name, radius, distance, errors in rows:
        where = f"{name} at {radius} from the origin, {distance} apart"
        best = min(e for library, e in errors.items() if library in ("geoopt", "pymanopt") and e is not None)
        floor = 4 * eps + {"exp": 4, "transport_to": 1}.get(name, 0) * errors["rounding"]
        assert errors["retract"] <= max(best, floor), f"{where}: {errors}"
        if name == "dist":
            assert errors["retract"] <= max(4 * eps, 0.5 * errors["rounding"] * (dtype == torch.float64)), where


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([20.0, 0.0], [19.0, 0.0], 1.0),
        ([20.0, 0.0], [-20.0, 0.0], 40.0),
        ([20.0, 0.0], [-1.0, 0.0], 21.0),
        ([20.0, 0.0], [0.0, 0.0], 20.0),
        ([20.0, 0.0], [20.0, 0.5 * math.pi], 40.0 - math.log(2.0)),
        ([20.0, 0.3], [20.0, 0.3], 0.0),
    ],
)
def test_distances_on_the_hyperboloid_at_radius_20_in_float32(x, y, expected):
    """Of polar coordinates (distance from the origin, angle)."""
    points = []
    for r, angle in (x, y):
        points.append(torch.tensor([math.cosh(r), math.sinh(r) * math.cos(angle), math.sinh(r) * math.sin(angle)]))
    assert float(Lorentz().dist(*points)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("manifold", [Lorentz(), Lorentz(-0.25), PoincareBall(), PoincareBall(-2.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_retraction_is_on_the_geodesic(manifold, dtype, generator):
    """At R asinh(‖u‖/R), for short and for very long u, where the exponential has left the floats."""
    radius = manifold.radius
    x = manifold.random_point(6, 4, generator=generator, dtype=dtype)
    u = manifold.random_tangent(x, generator=generator)
    u = u / manifold.norm(x, u) * radius
    for length in (1e-6, 0.3, 2.0, 10.0, 1e4):
        y = manifold.retract(x, length * u)
        away = math.asinh(length) * radius
        rounding = 64 * torch.finfo(dtype).eps * math.exp(away / radius)
        assert (manifold.dist(x, y) - away).abs().max() < rounding, length
        assert manifold.dist(y, manifold.exp(x, away * u / radius)).max() < rounding, length


def test_both_models_are_one_space(generator):
    """x̄/(1 + x₀) takes the hyperboloid to the ball, with distances, geodesics and transports."""

    def seen(x):
        return x[..., 1:] / (1.0 + x[..., :1])

    sheet, ball = MODELS
    x, y = sheet.random_point(2, 5, 4, generator=generator, dtype=torch.float64)
    u, v = (3.0 * sheet.random_tangent(x, generator=generator) for _ in range(2))
    a, b = torch.func.jvp(seen, (x,), (u,))
    assert torch.allclose(ball.dist(a, seen(y)), sheet.dist(x, y), rtol=1e-12)
    assert torch.allclose(ball.norm(a, b), sheet.norm(x, u), rtol=1e-12)
    assert torch.allclose(ball.exp(a, b), seen(sheet.exp(x, u)), rtol=1e-12)
    assert torch.allclose(ball.retract(a, b), seen(sheet.retract(x, u)), rtol=1e-12)
    assert torch.allclose(ball.log(a, seen(y)), torch.func.jvp(seen, (x,), (sheet.log(x, y),))[1], rtol=1e-12)
    c = torch.func.jvp(seen, (x,), (v,))[1]
    for carry in ("transport", "parallel_transport"):
        end, moved = sheet.exp(x, u) if carry == "parallel_transport" else sheet.retract(x, u), getattr(sheet, carry)
        expected = torch.func.jvp(seen, (end,), (moved(x, u, v),))[1]
        assert torch.allclose(getattr(ball, carry)(a, b, c), expected, rtol=1e-10, atol=1e-12), carry


@pytest.mark.parametrize("curvature", [-1.0, -0.3, -2.7])
def test_against_geoopt(curvature, generator):
    """At moderate distances, where both are right: k = −1/K on the hyperboloid, c = −K in the ball."""
    k = torch.tensor(-1.0 / curvature, dtype=torch.float64)
    for ours, theirs in (
        (Lorentz(curvature), geoopt.Lorentz(k=k)),
        (PoincareBall(curvature), geoopt.PoincareBall(c=1.0 / k)),
    ):
        bridged = retract.manifolds.from_geoopt(theirs)
        x, y = ours.random_point(2, 8, 4, generator=generator, dtype=torch.float64)
        u, v = (ours.random_tangent(x, generator=generator) for _ in range(2))
        u = u / ours.norm(x, u)
        for found, expected in (
            (ours.inner(x, u, v), bridged.inner(x, u, v)),
            (ours.riemannian_gradient(x, v), bridged.riemannian_gradient(x, v)),
            (ours.project(x, v + x), bridged.project(x, v + x)),
            (ours.exp(x, u), bridged.exp(x, u)),
            (ours.log(x, y), theirs.logmap(x, y)),
            (ours.dist(x, y), theirs.dist(x, y, keepdim=True)),
            (ours.transport_to(x, y, v), theirs.transp(x, y, v)),
        ):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_against_pymanopt(generator):
    theirs, ours = pymanopt.manifolds.PoincareBall(4), PoincareBall()
    for x, y in ours.random_point(6, 2, 4, generator=generator, dtype=torch.float64):
        u, v = (ours.random_tangent(x, generator=generator) for _ in range(2))
        a, b, p, q = (t.numpy() for t in (x, y, u, v))
        for found, expected in (
            (ours.inner(x, u, v), theirs.inner_product(a, p, q)),
            (ours.riemannian_gradient(x, v), theirs.euclidean_to_riemannian_gradient(a, q)),
            (ours.exp(x, u), theirs.exp(a, p)),
            (ours.log(x, y), theirs.log(a, b)),
            (ours.dist(x, y), theirs.dist(a, b)),
        ):
            assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("motion", ["retract", pytest.param("exp", marks=pytest.mark.long)])
@pytest.mark.parametrize("make", [RiemannianSGD, RiemannianAdam])
@pytest.mark.parametrize("manifold", [Lorentz(), PoincareBall(), Lorentz(-0.25), PoincareBall(-4.0)], ids=repr)
def test_a_thousand_steps_in_float32(manifold, make, motion):
    """Rows travel to targets three units away; they and their momentum stay where they belong, and arrive."""
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(manifold.random_point(6, 4, generator=generator))
    u = manifold.random_tangent(w.detach(), generator=generator)
    target = manifold.exp(w.detach(), 3.0 * manifold.radius * u / manifold.norm(w.detach(), u))
    options = {"lr": 0.02, "momentum": 0.9} if make is RiemannianSGD else {"lr": 0.05}
    optimizer = make([{"params": [w], "manifold": manifold, "motion": motion, "transport": "parallel"}], **options)
    for _ in range(1000):
        optimizer.zero_grad()
        (0.5 * manifold.dist(w, target).square().sum()).backward()
        optimizer.step()
    at, memory = w.detach(), optimizer.state[w]
    assert torch.isfinite(at).all()
    assert manifold.point_defect(at).max() < 1e-6
    manifold.check_tangent(at, memory["momentum_buffer" if make is RiemannianSGD else "exp_avg"])
    assert manifold.dist(at, target).max() < 1e-3 * manifold.radius


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("manifold", MODELS, ids=repr)
def test_gradients_far_out(manifold, dtype):
    """That of half the squared distance is minus the logarithm, up to rounding of coordinates; 0 at one point."""
    radius = 8.0 if dtype == torch.float64 else 4.0
    x, y = far_point(manifold, radius, dtype), far_point(manifold, 0.5 * radius, dtype).flip(-1)
    if isinstance(manifold, Lorentz):
        y = torch.cat([y[-1:], y[:-1]])
    for other in (y, x):
        at = x.clone().requires_grad_()
        (egrad,) = torch.autograd.grad(0.5 * manifold.dist(at, other).square().sum(), at)
        found, expected = manifold.riemannian_gradient(x, egrad), -manifold.log(x, other)
        gap = manifold.norm(x, found - expected)
        assert gap <= 8 * torch.finfo(dtype).eps * math.exp(radius) * manifold.norm(x, expected) + 1e-20


def test_the_gradient_on_the_hyperboloid_is_the_projection(generator):
    x = Lorentz(-0.5).random_point(5, 4, generator=generator, dtype=torch.float64)
    egrad = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    flipped = egrad * torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(Lorentz(-0.5).riemannian_gradient(x, egrad), Lorentz(-0.5).project(x, flipped))


@pytest.mark.parametrize("radius", [1.0, 6.0, 12.0])
def test_a_tangent_stays_as_it_is_under_projection(radius):
    """Far out the projection multiplies rounding errors by cosh², 7e9 at the distance 12."""
    x = far_point(Lorentz(), radius, torch.float32)
    u = Lorentz().log(x, far_point(Lorentz(), 0.1, torch.float32).roll(1).abs())
    u = torch.cat([(x[1:] @ u[1:] / x[0]).view(1) * (1.0 + torch.finfo(u.dtype).eps), u[1:]])  # rounded another way
    assert torch.equal(Lorentz().project(x, u), u)
    off = u + torch.eye(5)[0] * 1e-2 * u.norm()
    assert not torch.equal(Lorentz().project(x, off), off)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("curvature", [-1.0, -3.0])
def test_where_the_floats_of_a_ball_end(curvature, dtype):
    """Steps across the boundary end at the distance R log(1/ε); what rounding put outside counts as there."""
    ball, eps = PoincareBall(curvature), torch.finfo(dtype).eps
    origin, e = torch.zeros(4, dtype=dtype), far_point(PoincareBall(), 100.0, dtype) * ball.radius
    end = ball.radius * math.log(1.0 / eps)
    for y in (ball.exp(origin, 1e3 * e), ball.nearest(7.0 * e), ball.retract(0.5 * e, 1e15 * e)):
        assert torch.equal(ball.nearest(y), y)
        assert float(ball.dist(origin, y)) == pytest.approx(end, rel=0.05)
        assert float(ball.dist(-y, y)) == pytest.approx(2.0 * end, rel=0.05)
    y, outside = ball.nearest(e), (1.0 + 2.0 * eps) * e
    for found in (
        ball.dist(outside, -y),
        ball.log(outside, -y),
        ball.log(-y, outside),
        ball.exp(outside, e),
        ball.retract(outside, -e),
        ball.transport_to(outside, -y, e),
        ball.norm(outside, e),
    ):
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("curvature", [-1.0, -0.7])
@pytest.mark.parametrize("radius", [3.0, 15.0, 30.0])
def test_the_gap_has_all_digits(radius, curvature):
    """1 − ‖x‖²/R² of stored numbers, against fractions."""
    ball = PoincareBall(curvature)
    for size in range(1, 8):
        x = far_point(PoincareBall(), radius, torch.float64, size) * ball.radius
        exact = 1 + Fraction(curvature) * sum(Fraction(a) ** 2 for a in x.tolist())
        assert float(ball.gap(x)) == pytest.approx(float(exact), rel=1e-15 + 1e-19 * math.exp(radius), abs=0)


@pytest.mark.parametrize("manifold", MODELS, ids=repr)
def test_geodesics_to_the_middle(manifold):
    """From far out, up to what one rounding of the tangent changes, which turns it."""
    for radius in (1.0, 5.0, 10.0, 14.0):
        x, middle = (far_point(manifold, r, torch.float64) for r in (radius, 0.0))
        rounding = torch.finfo(x.dtype).eps * math.sinh(radius)
        if isinstance(manifold, Lorentz):
            rounding *= math.cosh(radius)
        assert manifold.dist(manifold.exp(x, manifold.log(x, middle)), middle) < 4 * rounding, radius


@pytest.mark.parametrize("curvature", [0.0, 1.0, math.nan, -math.inf])
@pytest.mark.parametrize("model", [Lorentz, PoincareBall])
def test_curvature_is_negative(model, curvature):
    with pytest.raises(GeometryError, match=rf"curvature={curvature} is not a negative number; geoopt's Lorentz\(k\)"):
        model(curvature)


def test_the_hyperboloid_needs_two_coordinates():
    with pytest.raises(GeometryError, match="at least 2 coordinates, of which the first follows"):
        Lorentz().check_point(torch.ones(3, 1))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_hyperbolic_functions_of_the_squared_argument(order):
    """Values and two derivatives against a hundred terms of the series, over the seam at 1."""
    square = torch.tensor([0.0, 1e-300, 1e-16, 1e-3, 0.999, 1.0, 1.001, 9.0, 40.0], dtype=torch.float64)
    square.requires_grad_()
    (value,) = series.hyperbolic(square, order)
    (slope,) = torch.autograd.grad(value.sum(), square, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), square)
    for found, lost in ((value, 0), (slope, 1), (bend, 2)):
        for at, one in zip(square.tolist(), found.tolist(), strict=True):
            terms = (math.perm(j, lost) / math.factorial(2 * j + order) * at ** (j - lost) for j in range(lost, 100))
            assert one == pytest.approx(math.fsum(terms), rel=1e-12)
    with torch.no_grad():
        assert torch.allclose(series.hyperbolic(square, order)[0], value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7])
def test_products_of_narrow_rows(n, generator):
    u, v = torch.randn(2, 3, 4, n, generator=generator, dtype=torch.float64)
    for a, b in ((u, v), (u, u), (u[0, 0], v[0, 0])):
        with torch.no_grad():
            found = numerics.dot(a, b, 1)
        assert found.shape == (*a.shape[:-1], 1)
        assert torch.allclose(found, (a * b).sum(-1, keepdim=True), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("curvature", [-1.0, -1e-4, -100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("model", [Lorentz, PoincareBall])
def test_all_maps_are_finite_at_all_distances(model, dtype, curvature, generator):
    """From points up to where squares of coordinates end, along tangents of any length, and between such points."""
    manifold, far = model(curvature), 21.0 if dtype == torch.float32 else 176.0
    lorentz = model is Lorentz
    origin = torch.zeros(8, 4, dtype=dtype)
    directions = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64).to(dtype)
    if lorentz:
        origin[:, 0], directions[..., 0] = manifold.radius, 0.0
    directions = directions / directions.norm(dim=-1, keepdim=True) * manifold.radius * (1.0 if lorentz else 0.5)
    v = torch.randn(8, 4, generator=generator, dtype=torch.float64).to(dtype)
    radii = [0.0, 1e-3, 1.0, 5.0, 10.0, 15.0, 19.0, 20.0, far, 0.25 * far, 0.5 * far, 0.75 * far]
    radii = torch.tensor(radii, dtype=dtype).reshape(-1, 1, 1, 1)
    x, y = (manifold.exp(origin, radii * each) for each in directions)
    a = manifold.project(x, v.expand_as(x))
    a = a / manifold.norm(x, a).clamp(min=torch.finfo(dtype).tiny)
    lengths = torch.cat([radii, torch.tensor([30.0, 100.0, 700.0, 1e6], dtype=dtype).reshape(-1, 1, 1, 1)]).movedim(
        0, 1
    )
    u, z = lengths * manifold.radius * a, y.movedim(0, 1)
    for name in ("exp", "retract"):
        assert torch.isfinite(getattr(manifold, name)(x, u)).all(), name
    for name in ("parallel_transport", "transport"):
        assert torch.isfinite(getattr(manifold, name)(x, u, a)).all(), name
    for found in (manifold.log(x, z), manifold.dist(x, z), manifold.transport_to(x, z, a)):
        assert torch.isfinite(found).all()


@pytest.mark.parametrize(("dtype", "radius", "limit"), [(torch.float32, 8.0, 22.18), (torch.float64, 12.0, 177.45)])
def test_steps_on_the_hyperboloid_end_at_the_limit(dtype, radius, limit):
    """Outwards from a point; from one far out where squares of coordinates end."""
    manifold = Lorentz()
    for start in (radius, 1.5 * limit):
        x = far_point(manifold, start, torch.float64)
        outwards = torch.cat([x[1:].norm().reshape(1), x[1:] / x[1:].norm() * x[0]])
        y = manifold.exp(x.to(dtype), 1e3 * outwards.to(dtype)).double()
        assert torch.isfinite(y).all()
        assert float(y[0].log()) <= 2.0 * limit + 0.01
        if start == radius:
            assert float(y[0].log()) + math.log(2.0) == pytest.approx(radius + limit, abs=0.01)
