"""The problems of the suite: starts, optima against other computations, invariance, generators of any size."""

import inspect
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benchmarks.problems import LARGER, PROBLEMS, max_cut, polish, thomson
from retract.manifolds import QuotientManifold
from scipy.optimize import minimize
from small_problems import SMALL, definite, rotation, small


def values_of_bfgs(problem, chart):
    """The values of f that scipy's BFGS sees on its way from the start, on all arrays mapped onto points by `chart`."""
    x0, values = problem.x0, []
    start = torch.zeros_like(x0) if chart is rotation else torch.linalg.cholesky(x0) if chart is definite else x0

    def evaluate(numbers):
        a = torch.from_numpy(numbers).view_as(x0).requires_grad_()
        value = problem.f(chart(a, x0))
        value.backward()
        values.append(float(value.detach()))
        return values[-1], a.grad.numpy().ravel()

    minimize(evaluate, start.numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 2000})
    return values


def test_every_problem_has_a_small_and_a_larger_size():
    assert SMALL.keys() == PROBLEMS.keys()
    for make, arguments in LARGER.items():
        inspect.signature(make).bind(**arguments)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("size", ["small", "default"])
def test_starts_are_points_with_a_finite_value_and_two_derivatives(name, size):
    problem = small(name) if size == "small" else PROBLEMS[name]()
    problem.manifold.check_point(problem.x0)
    assert problem.x0.is_contiguous()
    value = problem.f(problem.x0)
    assert value.shape == ()
    assert problem.gap(float(value)) > 1e-3

    def gradient(x):
        x = x.clone().requires_grad_()
        return x, *torch.autograd.grad(problem.f(x), x, create_graph=True)

    x, start = gradient(problem.x0)
    u, h = problem.manifold.random_tangent(problem.x0), 1e-6
    (product,) = torch.autograd.grad(start, x, u)
    difference = (gradient(problem.x0 + h * u)[1] - gradient(problem.x0 - h * u)[1]).detach() / (2 * h)
    assert torch.allclose(product, difference, rtol=1e-5, atol=1e-6 * float(product.norm()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_optimum_is_where_another_solver_ends(name):
    """scipy's BFGS, which knows no manifold, ends at the optimum to 1e-12, and sees no value below it on its way."""
    problem = small(name)
    values = values_of_bfgs(problem, SMALL[name][0])
    assert abs(problem.gap(min(values))) <= 1e-12
    assert problem.gap(values[0]) > 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_functions_on_quotients_are_invariant(name):
    problem = small(name)
    if isinstance(problem.manifold, QuotientManifold):
        other = problem.manifold.act(problem.manifold.random_group_element(problem.x0), problem.x0)
        assert (other - problem.x0).norm() > 0.1
        assert float(problem.f(other)) == pytest.approx(float(problem.f(problem.x0)), rel=1e-11)


@pytest.mark.parametrize("name", PROBLEMS)
def test_generators_depend_on_their_arguments_only(name, device):
    first = small(name)
    torch.manual_seed(5)
    again, other = small(name), small(name, seed=1)
    assert torch.equal(first.x0, again.x0)
    assert first.f(first.x0) == again.f(first.x0)
    assert (first.optimum, first.known) == (again.optimum, again.known)
    assert first.x0.shape == other.x0.shape
    assert not torch.equal(first.x0, other.x0)
    single = small(name, dtype=torch.float32, device=device)
    assert single.x0.device.type == single.f(single.x0).device.type == device.type
    assert single.x0.dtype == single.f(single.x0).dtype == torch.float32
    assert single.optimum == first.optimum
    assert float(single.f(single.x0)) == pytest.approx(float(first.f(first.x0)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "d", "energy"),
    [
        (4, 3, 3.674234614),
        (6, 3, 9.985281374),
        (12, 3, 49.165253058),
        (32, 3, 412.261274651),
        (5, 4, 10 / math.sqrt(2.5)),
    ],
)
def test_energies_of_charges_are_those_of_the_literature(n, d, energy):
    assert thomson(n, d).optimum == pytest.approx(energy, abs=5e-10)


def test_roots_of_e8_have_the_energy_of_their_inner_products():
    """Each of the 240 sees 56 at 60°, 126 at 90°, 56 at 120° and one opposite."""
    energy = 120 * (56 + 126 / math.sqrt(2) + 56 / math.sqrt(3) + 1 / 2)
    assert thomson(240, 8).optimum == pytest.approx(energy, rel=1e-14)


@pytest.mark.parametrize(("n", "degree"), [(15, 6), (24, 4), (300, 20)])
def test_dual_certificate_of_max_cut(n, degree):
    """With the Laplacian L read from the gradient, f + ⟨λ 1 − L, X Xᵀ⟩/4 is constant, and λ 1 − L has no negative eigenvalue."""
    problem = max_cut(n, degree)
    x = torch.eye(n, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(problem.f(x), x)
    adjacency = 2.0 * gradient
    assert torch.equal(adjacency, adjacency.mT)
    laplacian = adjacency.sum(0).diag() - adjacency
    most = float(torch.linalg.eigvalsh(laplacian)[-1])
    assert problem.optimum == pytest.approx(-0.25 * n * most, rel=1e-13)
    x = problem.x0
    assert float(problem.f(x)) == pytest.approx(-0.25 * float((x * (laplacian @ x)).sum()), rel=1e-12)


@pytest.mark.parametrize(("n", "energy"), [(7, 14.452977414), (9, 25.759986531)])
def test_unknown_optimum_is_polished(n, energy):
    problem = thomson(n)
    assert math.isnan(problem.optimum)
    polished = polish(problem)
    assert polished.optimum == pytest.approx(energy, abs=5e-10)  # Thomson's problem in the literature
    assert polished == replace(problem, optimum=polished.optimum, known="polished until two solvers agreed to 1e-14")


def test_two_solvers_have_to_agree(monkeypatch):
    problem = thomson(9)
    ends = {"trust_regions": 25.759986531, "lbfgs": 25.759986531}

    def solver(f, x0, manifold, method, gtol, gtol_rel):
        assert f is problem.f
        return SimpleNamespace(fun=ends[method])

    monkeypatch.setattr("retract.optim.minimize", solver)
    assert polish(problem).optimum == 25.759986531
    ends["lbfgs"] += 1e-9
    with pytest.raises(ArithmeticError, match="Thomson: two solvers end at 25.759986531 and 25.759986532"):
        polish(problem)
