"""The laws of the abstract classes, one function each. A manifold runs every law of every class it inherits."""

import copy
import math
import pickle

import pytest
import torch
from retract import manifolds
from retract.manifolds import (
    ConformalManifold,
    EmbeddedManifold,
    ExponentialManifold,
    GeodesicManifold,
    Manifold,
    QuotientManifold,
    ScalingQuotient,
    checks,
    numerics,
)
from retract.manifolds.errors import GeometryError

LAWS = []


def law(cls):
    def register(function):
        LAWS.append((cls, function))
        return function

    return register


class Setting:
    """A case with points, tangents and a test function drawn for it."""

    def __init__(self, case, generator, device, dtype=torch.float64, manifold=None):
        self.case, self.generator, self.device, self.dtype = case, generator, device, dtype
        self.m = manifold or case.manifold
        self.batch, self.event = case.shape[:1], case.shape[1:]
        if self.m.event_ndim == 0:
            self.batch, self.event = case.shape, ()
        self.x = self.point()
        # Well inside the injectivity radius, of different lengths.
        self.u = self.tangent(0.7)
        self.v, self.w = self.tangent(1.3), self.tangent(0.4)
        self.c = self.noise(*case.invariant(self.x).shape)

    @property
    def tol(self):
        """Rounding of a handful of operations on numbers of order one."""
        return 2000 * torch.finfo(self.dtype).eps

    def point(self):
        shape = (*self.batch, *self.event)
        return self.m.random_point(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def noise(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def tangent(self, length):
        u = self.m.random_tangent(self.x, generator=self.generator)
        return u * (length / self.m.norm(self.x, u))

    def f(self, x):
        """A smooth function, constant on classes, whose gradient and Hessian are of order one."""
        z = self.case.invariant(x)
        return (self.c * z).sin().sum() + 0.5 * (self.c * z).sum().square() / z.numel()

    def egrad(self):
        x = self.x.clone().requires_grad_()
        return torch.autograd.grad(self.f(x), x)[0]

    def same(self, a, b, tol=None):
        """Equal within tol, relative to size."""
        size = max(1.0, float(b.abs().max()))
        gap = float((a - b).abs().max())
        assert gap <= (tol or self.tol) * size, f"differ by {gap:.3g} at size {size:.3g}"

    def on(self, y, tol=None):
        defect = float(self.m.point_defect(y).max())
        assert defect <= (tol or self.tol), f"point defect {defect:.3g}"

    def tangent_at(self, y, v, tol=None):
        defect = float(self.m.tangent_defect(y, v).max())
        assert defect <= (tol or self.tol), f"tangent defect {defect:.3g}"


@law(Manifold)
def metric_is_an_inner_product(s):
    inner = s.m.inner
    s.same(inner(s.x, s.u, s.v), inner(s.x, s.v, s.u))
    s.same(inner(s.x, 2 * s.u + s.w, s.v), 2 * inner(s.x, s.u, s.v) + inner(s.x, s.w, s.v))
    assert (inner(s.x, s.u, s.u) > 0).all()
    s.same(s.m.norm(s.x, s.u), torch.full_like(s.m.norm(s.x, s.u), 0.7))


@law(Manifold)
def scalars_keep_event_dimensions(s):
    expected = s.batch + (1,) * s.m.event_ndim
    for scalar in (s.m.inner(s.x, s.u, s.v), s.m.point_defect(s.x), s.m.tangent_defect(s.x, s.u)):
        assert scalar.shape == expected


@law(Manifold)
def projection_is_linear_and_idempotent(s):
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    p = s.m.project(s.x, a)
    s.same(s.m.project(s.x, p), p)
    s.same(s.m.project(s.x, 2 * a + b), 2 * p + s.m.project(s.x, b))
    s.tangent_at(s.x, s.m.random_tangent(s.x, generator=s.generator))


@law(EmbeddedManifold)
def projection_is_self_adjoint(s):
    a, b = s.noise(*s.x.shape), s.noise(*s.x.shape)
    s.same((s.m.project(s.x, a) * b).sum(), (a * s.m.project(s.x, b)).sum())


@law(Manifold)
def gradient_is_dual_to_the_metric(s):
    egrad = s.egrad()
    s.tangent_at(s.x, s.m.riemannian_gradient(s.x, egrad))
    for u in (s.u, s.v, s.w):
        assert float(checks.duality_gap(s.m, s.x, egrad, u).max()) <= s.tol


@law(Manifold)
def gradient_is_of_second_order(s):
    if s.dtype == torch.float64:
        assert abs(checks.gradient_order(s.m, s.f, s.x, generator=s.generator) - 2) < 0.02


@law(Manifold)
def nearest_is_a_point_and_leaves_points(s):
    assert torch.equal(s.m.nearest(s.x), s.x)
    s.on(s.m.nearest(s.x + 0.01 * s.noise(*s.x.shape)))


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
def retraction_at_zero_is_the_point_itself(s):
    assert torch.equal(s.m.retract(s.x, torch.zeros_like(s.u)), s.x)


@law(Manifold)
def retraction_agrees_to_first_order(s):
    if s.dtype == torch.float64:
        order = checks.retraction_order(s.m, s.x, generator=s.generator)
        assert order > 1.98, order


@law(Manifold)
def retraction_stays_on_the_manifold(s):
    for length in (1e-8, 1e-3, 1.0, 3.0):
        s.on(s.m.retract(s.x, s.u * length))


@law(Manifold)
def transport_is_a_vector_transport(s):
    y = s.m.retract(s.x, s.u)
    moved = s.m.transport(s.x, s.u, s.v)
    s.tangent_at(y, moved)
    s.same(s.m.transport(s.x, s.u, 2 * s.v + s.w), 2 * moved + s.m.transport(s.x, s.u, s.w))
    s.same(s.m.transport(s.x, torch.zeros_like(s.u), s.v), s.v)


@law(Manifold)
def random_points_are_deterministic(s):
    draws = []
    for _ in range(2):
        generator = torch.Generator(s.device).manual_seed(5)
        draws.append(s.m.random_point(*s.x.shape, generator=generator, dtype=s.dtype, device=s.device))
    assert torch.equal(*draws)
    s.on(draws[0])
    assert not torch.equal(draws[0], s.point())


def maps(s):
    """Every map of the manifold that takes (x, tangent…), as (name, function, arguments)."""
    y = s.m.retract(s.x, s.u)
    yield "inner", s.m.inner, (s.x, s.u, s.v)
    yield "project", s.m.project, (s.x, s.v)
    yield "gradient", s.m.riemannian_gradient, (s.x, s.v)
    yield "retract", s.m.retract, (s.x, s.u)
    yield "transport", s.m.transport, (s.x, s.u, s.v)
    if isinstance(s.m, ExponentialManifold):
        yield "exp", s.m.exp, (s.x, s.u)
    if isinstance(s.m, GeodesicManifold):
        yield "log", s.m.log, (s.x, y)
        yield "dist", s.m.dist, (s.x, y)
        yield "parallel_transport", s.m.parallel_transport, (s.x, s.u, s.v)
        yield "transport_to", s.m.transport_to, (s.x, y, s.v)


@law(Manifold)
def batch_equals_loop(s):
    for name, function, arguments in maps(s):
        together = function(*arguments)
        for i in range(s.batch[0]):
            alone = function(*(a[i] for a in arguments))
            assert (alone - together[i]).abs().max() <= s.tol * max(1.0, float(alone.abs().max())), name


@law(Manifold)
def inputs_stay_as_they_are(s):
    for name, function, arguments in maps(s):
        before = [a.clone() for a in arguments]
        result = function(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True)), name
        assert result.dtype == s.dtype, name
        assert result.device.type == s.device.type, name


@law(Manifold)
def steps_are_finite_and_differentiable(s):
    movers = [s.m.retract, lambda x, u: s.m.transport(x, u, s.v)]
    if isinstance(s.m, ExponentialManifold):
        movers.append(s.m.exp)
    if isinstance(s.m, GeodesicManifold):
        movers.append(lambda x, u: s.m.parallel_transport(x, u, s.v))
    foreign = not type(s.m).__module__.startswith("retract.") or isinstance(s.m, manifolds.geoopt.FromGeoopt)
    for length in (0.0, 1e-30, 1e-12, 1.0, 1e4):
        for mover in movers:
            u = (s.u * length).requires_grad_()
            y = mover(s.x, u)
            if foreign and length == 1e4:
                continue  # a hyperbolic cosine of 1e4 is infinite, and geoopt clamps where it likes
            assert torch.isfinite(y).all(), (length, mover)
            if foreign:
                continue  # geoopt's maps have NaN gradients at 0
            (slope,) = torch.autograd.grad((y * s.v).sum() + 0 * u.sum(), u)
            assert torch.isfinite(slope).all(), (length, mover)


@law(Manifold)
def vmap_and_compile_agree(s):
    if isinstance(s.m, manifolds.geoopt.FromGeoopt):
        return  # geoopt's maps are torch.jit.script functions, which neither transforms
    for name, function, arguments in maps(s):
        expected = function(*arguments)
        s.same(torch.vmap(function)(*arguments), expected)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert (compiled(*arguments) - expected).abs().max() <= s.tol * max(1.0, float(expected.abs().max())), name


@law(Manifold)
def manifolds_are_values(s):
    for twin in (pickle.loads(pickle.dumps(s.m)), copy.deepcopy(s.m)):
        assert twin == s.m
        assert hash(twin) == hash(s.m)
        assert repr(twin) == repr(s.m)
    if s.case.repr_evaluates:
        assert eval(repr(s.m), {**vars(manifolds), type(s.m).__name__: type(s.m)}) == s.m


@law(Manifold)
def known_values_hold(s):
    for method, arguments, expected in s.case.known:
        tensors = [torch.tensor(a, dtype=s.dtype, device=s.device) for a in arguments]
        s.same(getattr(s.m, method)(*tensors), torch.tensor(expected, dtype=s.dtype, device=s.device))


@law(ExponentialManifold)
def exponential_starts_along_its_tangent(s):
    assert torch.equal(s.m.exp(s.x, torch.zeros_like(s.u)), s.x)
    s.on(s.m.exp(s.x, s.u))
    s.same(s.m.geodesic(s.x, s.u, 0.5), s.m.exp(s.x, 0.5 * s.u))
    if s.dtype == torch.float64:
        steps = checks.RETRACTION_STEPS
        gaps = [float((s.m.exp(s.x, t * s.u) - s.x - t * s.u).norm()) for t in steps]
        assert checks.order(steps, gaps) > 1.98 or max(gaps) < 1e-12


@law(ExponentialManifold)
def geodesics_have_no_acceleration(s):
    if s.dtype == torch.float64 and isinstance(s.m, EmbeddedManifold):
        h = 1e-3
        bend = (s.m.exp(s.x, h * s.u) + s.m.exp(s.x, -h * s.u) - 2 * s.x) / h**2
        assert float(s.m.project(s.x, bend).norm()) < 1e-5 * max(1.0, float(bend.norm()))


@law(GeodesicManifold)
def geodesics_continue_themselves(s):
    there = s.m.exp(s.x, s.u)
    s.same(s.m.exp(there, s.m.parallel_transport(s.x, s.u, s.u)), s.m.exp(s.x, 2 * s.u))


@law(GeodesicManifold)
def logarithm_inverts_the_exponential(s):
    reach = min(s.case.injectivity, 3.0)
    for length in (1e-6, 0.1, 0.97 * reach):
        u = s.u * (length / s.m.norm(s.x, s.u))
        y = s.m.exp(s.x, u)
        s.same(s.m.log(s.x, y), u, tol=s.tol if length < 1 else 20 * s.tol)
        s.same(s.m.dist(s.x, y), s.m.norm(s.x, u))
        s.same(s.m.dist(y, s.x), s.m.norm(s.x, u))
        s.same(s.m.norm(s.x, s.m.log(s.x, y)), s.m.dist(s.x, y))


@law(GeodesicManifold)
def distance_to_itself_is_zero(s):
    assert float(s.m.dist(s.x, s.x).max()) <= 100 * torch.finfo(s.dtype).eps
    assert float(s.m.norm(s.x, s.m.log(s.x, s.x)).max()) <= 100 * torch.finfo(s.dtype).eps


@law(GeodesicManifold)
def parallel_transport_is_isometric(s):
    y = s.m.exp(s.x, s.u)
    for carry in (s.m.parallel_transport, lambda x, u, v: s.m.transport_to(x, y, v)):
        v, w = carry(s.x, s.u, s.v), carry(s.x, s.u, s.w)
        s.tangent_at(y, v)
        s.same(s.m.inner(y, v, w), s.m.inner(s.x, s.v, s.w))
        s.same(carry(s.x, s.u, 2 * s.v + s.w), 2 * v + w)
    s.same(s.m.transport_to(s.x, y, s.v), s.m.parallel_transport(s.x, s.u, s.v))
    s.same(s.m.parallel_transport(s.x, torch.zeros_like(s.u), s.v), s.v)
    s.same(s.m.transport_to(s.x, s.x, s.v), s.v)


@law(ConformalManifold)
def conformal_factor_is_the_metric(s):
    factor = s.m.conformal_factor(s.x)
    s.same(s.m.riemannian_gradient(s.x, s.v), s.v * factor)
    s.same(s.m.inner(s.x, s.u, s.v) * factor, numerics.dot(s.u, s.v, s.m.event_ndim))


@law(QuotientManifold)
def metric_and_maps_respect_the_group(s):
    g = s.m.random_group_element(s.x, generator=s.generator)
    x, u, v = (s.m.act(g, a) for a in (s.x, s.u, s.v))
    s.same(s.m.inner(x, u, v), s.m.inner(s.x, s.u, s.v))
    size = float(x.abs().max())
    for name, function, arguments in maps(s):
        if name in ("inner", "dist", "gradient", "log", "transport_to"):
            continue
        s.same(
            function(*(s.m.act(g, a) for a in arguments)), s.m.act(g, function(*arguments)), tol=s.tol * max(1, size)
        )
    y, h = s.m.retract(s.x, s.u), s.m.random_group_element(s.x, generator=s.generator)
    s.same(s.m.dist(x, s.m.act(h, y)), s.m.dist(s.x, y))
    s.same(s.m.log(x, s.m.act(h, y)), s.m.act(g, s.m.log(s.x, y)), tol=s.tol * max(1, size))
    s.same(s.m.transport_to(x, s.m.act(h, y), v), s.m.act(h, s.m.transport_to(s.x, y, s.v)), tol=s.tol * max(1, size))


@law(QuotientManifold)
def gradients_of_invariant_functions_are_horizontal(s):
    gradient = s.m.total_space.riemannian_gradient(s.x, s.egrad())
    s.same(s.m.horizontal(s.x, gradient), gradient)
    g = s.m.random_group_element(s.x, generator=s.generator)
    s.same(s.f(s.m.act(g, s.x)), s.f(s.x))


@law(QuotientManifold)
def horizontal_and_vertical_make_up_a_tangent(s):
    total = s.m.total_space
    a = total.project(s.x, s.noise(*s.x.shape))
    horizontal, vertical = s.m.horizontal(s.x, a), s.m.vertical(s.x, a)
    s.same(horizontal + vertical, a)
    s.same((horizontal * vertical).sum(), torch.zeros((), dtype=s.dtype, device=s.device))
    s.tangent_at(s.x, horizontal)
    total.check_point(s.x)


@law(QuotientManifold)
def canonical_is_constant_on_classes(s):
    for _ in range(8):
        moved = s.m.act(s.m.random_group_element(s.x, generator=s.generator), s.x)
        s.same(s.m.canonical(moved), s.m.canonical(s.x))
        assert s.m.same_point(s.x, moved).all()
        s.same(s.m.align(s.x, moved), s.x, tol=s.tol * max(1.0, float(moved.abs().max())))
    assert s.m.same_point(s.x, s.m.canonical(s.x)).all()
    assert not s.m.same_point(s.x, s.m.retract(s.x, s.u)).any()


@law(ScalingQuotient)
def radius_scales_with_the_representative(s):
    g = s.m.random_group_element(s.x, generator=s.generator)
    s.same(s.m.horizontal(s.x, s.x), torch.zeros_like(s.x))  # the class of x is the ray through it
    ratio = s.m.radius(s.m.act(g, s.x)) / s.m.radius(s.x)
    s.same(ratio / g, torch.ones_like(g))
    assert float(g.min()) >= 1e-4
    assert float(g.max()) <= 1e4
    assert math.isinf(float(s.m.point_defect(torch.zeros_like(s.x)).max()))
