"""`minimize` where the numbers are hard: functions that cancel, are unbounded or rounded, scales, dtypes and shapes of all kinds."""

import math

import geoopt
import pytest
import torch
from retract.errors import ProblemError
from retract.manifolds import Euclidean, Lorentz, SpectralSphere, Sphere, from_geoopt
from retract.optim import (
    LBFGS,
    Armijo,
    ConjugateGradients,
    RiemannianLBFGS,
    SteepestDescent,
    StrongWolfe,
    TrustRegions,
    minimize,
)
from retract.optim.solvers.objective import Objective
from retract.optim.solvers.space import Space
from solver_problems import LOW, A, normal, start
from torch import nn

NAMES = ["lbfgs", "conjugate_gradients", "trust_regions", "steepest_descent"]


def quadratic(x):
    return x @ A @ x


@pytest.mark.parametrize("method", NAMES)
def test_values_that_cancel_at_the_minimum(method):
    """f is 0 there but for the rounding errors of its terms."""
    for seed in (1, 2, 3):
        found = minimize(lambda x: quadratic(x) - LOW[0], start(Sphere(), (8,), seed=seed), Sphere(), method)
        assert found.success, found.message
        assert found.grad_norm <= 1e-9 * found.history[0].grad_norm


@pytest.mark.parametrize("method", NAMES)
def test_points_without_dimensions(method):
    x0 = {"a": torch.tensor(3.0, dtype=torch.float64), "b": torch.zeros(0, 3, dtype=torch.float64)}
    found = minimize(lambda x: (x["a"] - 1).square() + x["a"] ** 4, x0, {"b": Sphere(), "a": Euclidean()}, method)
    assert found.success, found.message
    assert float(4 * found.x["a"] ** 3 + 2 * found.x["a"]) == pytest.approx(2.0, abs=1e-6)


def test_parameters_without_dimensions_or_entries():
    """As in torch."""

    def trained(cls):
        params = [nn.Parameter(torch.full(shape, 0.5, dtype=torch.float64)) for shape in ((), (0,), (3,))]
        optimizer = cls(params, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = sum((p - 1).square().sum() + p.pow(4).sum() for p in params)
            loss.backward()
            return loss

        return [float(optimizer.step(closure).detach()) for _ in range(3)]

    assert trained(RiemannianLBFGS) == pytest.approx(trained(torch.optim.LBFGS), rel=1e-12)


def test_a_group_is_added_to_a_running_optimizer():
    p, q = (nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 2))
    optimizer = RiemannianLBFGS([p], line_search_fn="strong_wolfe", max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = (p - 2).square().sum() + (p - 2).pow(4).sum() + (q + 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.add_param_group({"params": [q]})
    losses = [float(optimizer.step(closure).detach()) for _ in range(6)]
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("method", NAMES)
def test_the_order_of_tensors_of_two_dtypes_does_not_matter(method):
    """The coarser one says when a run ends."""
    one, two = start(Sphere(), (8,)), normal(5, seed=2, dtype=torch.float32)

    def f(a, b):
        return quadratic(a) + (b.double() - a[:5]).square().sum()

    ab = minimize(lambda x: f(*x), [one, two], [Sphere(), Euclidean(1)], method)
    ba = minimize(lambda x: f(*reversed(x)), [two, one], [Euclidean(1), Sphere()], method)
    assert ab.success
    assert ba.success
    assert ab.message == ba.message
    assert abs(ab.nit - ba.nit) <= 1


@pytest.mark.parametrize("method", NAMES)
def test_a_function_in_float32_of_points_in_float64(method):
    found = minimize(lambda x: x.float() @ A.float() @ x.float(), start(Sphere(), (8,)), Sphere(), method)
    assert found.success, found.message
    assert found.grad_norm <= 1e-4 * found.history[0].grad_norm


@pytest.mark.parametrize("method", [*NAMES, LBFGS(search=StrongWolfe())], ids=str)
def test_functions_that_are_not_bounded_below(method):
    found = minimize(lambda x: x.sum(), torch.ones(8, dtype=torch.float64), Euclidean(1), method)
    assert not found.success
    assert "not bounded below" in found.message
    assert math.isfinite(found.fun)
    assert found.nfev < 2000


def test_trust_regions_refuse_points_without_a_gradient():
    found = minimize(lambda x: -x.exp().sum(), torch.ones(3, dtype=torch.float64), Euclidean(1), "trust_regions")
    assert not found.success
    assert math.isfinite(found.grad_norm)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e10])
@pytest.mark.parametrize("method", [*NAMES, TrustRegions(hessian="differences")], ids=str)
def test_units_of_coordinates(method, scale):
    """A minimum far from the start, or next to it."""
    x0 = scale * normal(8, seed=3)
    found = minimize(lambda x: (x / scale - 1).square().sum() + (x / scale - 1).pow(4).sum(), x0, Euclidean(1), method)
    assert found.success, found.message
    assert torch.allclose(found.x, torch.full_like(x0, scale), rtol=1e-7)
    assert found.nfev < 250


METHODS = [*NAMES, TrustRegions(hessian="differences"), LBFGS(search=StrongWolfe()), SteepestDescent(search=Armijo())]
METHODS += [ConjugateGradients(beta=beta) for beta in ("fletcher_reeves", "polak_ribiere", "hestenes_stiefel")]


def quartic(x):
    return (x - 1).square().sum() + (x - 1).pow(4).sum() + x[0] * x[1]


@pytest.mark.parametrize("power", [-480, -166, -30, 30, 166, 480])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_units_of_coordinates_in_flat_space(method, dtype, power):
    """In other units, by a power of 2: the same path, bit by bit, also from 0."""
    power = power if dtype == torch.float64 else power // 10
    for x0 in (normal(8, seed=3, dtype=dtype), torch.zeros(8, dtype=dtype)):
        one, two = (
            minimize(lambda x, s=s: quartic(x / s), s * x0, Euclidean(1), method, max_iter=200)
            for s in (1.0, 2.0**power)
        )
        assert one.success, one.message
        assert two.message == one.message
        assert torch.equal(two.x, 2.0**power * one.x)
        assert [record.fun for record in two.history] == [record.fun for record in one.history]


@pytest.mark.parametrize("power", [-1000, -332, -20, 20, 332, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_units_of_values(method, dtype, power):
    """f multiplied by a power of 2, on a product: the same path, bit by bit."""
    power = power if dtype == torch.float64 else power // 10
    matrix = A.to(dtype)
    x0 = {"on": start(Sphere(), (8,), dtype=dtype), "off": torch.ones(8, dtype=dtype)}

    def f(x):
        return x["on"] @ matrix @ x["on"] + (x["off"] - x["on"]).square().sum() + x["off"].pow(4).sum()

    one, two = (
        minimize(lambda x, s=s: s * f(x), x0, {"on": Sphere(), "off": Euclidean(1)}, method, max_iter=1000)
        for s in (1.0, 2.0**power)
    )
    assert one.success, one.message
    assert two.message == one.message
    for key in x0:
        assert torch.equal(two.x[key], one.x[key])
    for a, b in zip(one.history, two.history, strict=True):
        assert (b.fun, b.grad_norm, b.step, b.nfev) == (2.0**power * a.fun, 2.0**power * a.grad_norm, a.step, a.nfev)
    assert (two.fun, two.grad_norm) == (two.history[-1].fun, two.history[-1].grad_norm)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_conjugate_gradients_do_not_depend_on_the_unit_of_f(scale):
    """Multiplied by a power of 2: the same path, bit by bit. Few searches near the minimizer make the bound of β active."""
    for seed in range(5):
        x0 = start(Sphere(), (8,), seed=seed)
        one, two = (minimize(lambda x, s=s: s * quadratic(x), x0, Sphere(), "conjugate_gradients") for s in (1, scale))
        assert [record.fun * scale for record in one.history] == [record.fun for record in two.history]


def test_tolerances_are_in_the_units_of_f():
    """However long its gradients are."""
    for scale in (2.0**-400, 2.0**400):
        found = minimize(
            lambda x, s=scale: s * quadratic(x), start(Sphere(), (8,)), Sphere(), gtol=1e-3 * scale, gtol_rel=0
        )
        assert found.grad_norm <= 1e-3 * scale < found.history[-2].grad_norm
    found = minimize(lambda x: 2.0**-400 * quadratic(x), start(Sphere(), (8,)), Sphere(), ftol=1e-12)
    assert (found.nit, found.message) == (1, "f has changed as little as asked for")


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e10])
@pytest.mark.parametrize("method", [*NAMES, TrustRegions(hessian="differences")], ids=str)
def test_a_start_far_from_the_minimum(method, scale):
    """Or next to 0, in units of the way on which f changes."""
    found = minimize(quartic, scale * normal(8, seed=3), Euclidean(1), method)
    assert found.success, found.message
    assert found.nfev < 400


def test_lengths_without_a_square():
    for scale in (1e-200, 1e200):
        with pytest.raises(ProblemError, match="take x in other units"):
            minimize(lambda x, s=scale: quartic(x / s), scale * normal(8), Euclidean(1))


@pytest.mark.parametrize(
    ("manifold", "shape", "radius"),
    [(SpectralSphere(1e-3), (4, 3), 1e-3), (Lorentz(-1e6), (5,), 1e-3), (Sphere(), (5,), 1.0)],
    ids=str,
)
def test_slopes_are_those_of_the_curve(manifold, shape, radius):
    """Up to a share of the square of a short step, in radii of the manifold."""
    x, target = (start(manifold, (3, *shape), seed=seed) for seed in (1, 2))
    space = Space([manifold])
    objective = Objective(lambda x: (x[0] - target).square().sum(), space)
    here = objective.start([x])
    d, t = [-g for g in here.gradient], 0.01 * radius / here.square**0.5
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective.function([manifold.retract(x, time * d[0])]), time)
    assert objective.along(here, d, t).slope == pytest.approx(float(slope), abs=1e-3 * here.square)


def test_retractions_that_cannot_be_differentiated():
    """geoopt's of Stiefel changes the factor of a QR decomposition in place."""
    manifold = from_geoopt(geoopt.EuclideanStiefel())
    x0, f = start(manifold, (8, 2)), lambda x: (x.mT @ A @ x).trace()
    found = minimize(f, x0, manifold)
    assert found.success, found.message
    assert found.fun == pytest.approx(float(LOW[:2].sum()), rel=1e-12)


def test_the_end_is_told_as_it_is():
    x0, calls = start(Sphere(), (8,)), []

    def exhausted(x):
        calls.append(0)
        if len(calls) > 5:
            raise StopIteration
        return quadratic(x)

    found = minimize(exhausted, x0, Sphere())
    assert isinstance(found.exception, StopIteration)
    assert not found.success

    def detached(x):
        calls.append(0)
        return quadratic(x.detach() if len(calls) > 20 else x)

    calls.clear()
    found = minimize(detached, x0, Sphere(), "steepest_descent")
    assert isinstance(found.exception, ProblemError)
    assert found.fun < found.history[0].fun


def test_a_callback_gets_a_copy():
    x0 = start(Sphere(), (8,))
    assert (
        minimize(quadratic, x0, Sphere(), callback=lambda x, record: x.zero_()).fun
        == minimize(quadratic, x0, Sphere()).fun
    )


@pytest.mark.parametrize("method", NAMES)
def test_inference_mode_is_left(method):
    x0 = start(Sphere(), (8,))
    with torch.inference_mode():
        found = minimize(quadratic, x0 * 1.0, Sphere(), method)
    assert found.success
    assert not found.x.is_inference()


@pytest.mark.parametrize("hessian", ["auto", "differences"])
def test_trust_regions_evaluate_nothing_twice(hessian):
    """At the start, for the models and for the test of second derivatives: a gradient each, and one for the difference."""
    found = minimize(quadratic, start(Sphere(), (8,)), Sphere(), TrustRegions(hessian=hessian), max_iter=1)
    steps = found.njev - 1 - (3 if hessian == "auto" else 1)
    products = found.nhev if hessian == "differences" else 0
    assert steps - products == 1
