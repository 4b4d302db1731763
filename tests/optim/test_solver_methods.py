"""The methods of `minimize` one by one: orders of convergence, conjugate directions, steps in trust regions, Hessians."""

import itertools
import math

import pytest
import torch
from benchmarks.problems import frechet_mean, karcher_mean, rosenbrock
from retract.errors import ProblemError
from retract.manifolds import Euclidean, Sphere, Stiefel
from retract.optim import LBFGS, ConjugateGradients, SteepestDescent, TrustRegions, minimize
from retract.optim.solvers.objective import Objective, State
from retract.optim.solvers.space import Space
from retract.optim.solvers.trust_regions import _truncated
from solver_problems import LOW, PROBLEMS, A, normal, start


@pytest.mark.parametrize("problem", ["sphere", "stiefel", "grassmann"])
def test_trust_regions_converge_quadratically(problem):
    """Of the last steps before rounding, log ‖g₊‖ falls at least 1.8 times as deep as log ‖g‖."""
    manifold, f, shape, _ = PROBLEMS[problem]
    found = minimize(f, start(manifold, shape), manifold, TrustRegions(kappa=0.01), gtol_rel=1e-13)
    norms = [one.grad_norm / found.history[0].grad_norm for one in found.history]
    orders = [math.log(b) / math.log(a) for a, b in itertools.pairwise(norms) if 1e-6 < a < 0.1]
    assert orders
    assert max(orders) >= 1.8
    assert norms[-1] <= 1e-12


@pytest.mark.parametrize("problem", ["flat", "sphere", "psi"])
def test_limited_memory_converges_superlinearly(problem):
    """With memory for all directions the gradients of the last steps fall by a tenth each, and faster than before; those of steepest
    descent by a constant factor."""
    manifold, f, shape, _ = PROBLEMS[problem]

    def factors(method):
        history = minimize(f, start(manifold, shape), manifold, method, gtol_rel=1e-12).history
        logs = [math.log(one.grad_norm) for one in history]
        half = (len(logs) - 1) // 2
        return math.exp((logs[half] - logs[0]) / half), math.exp((logs[-1] - logs[-5]) / 4)

    first, last = factors(LBFGS(memory=60))
    assert last <= 0.1
    assert last <= 0.4 * first
    first, last = factors(SteepestDescent())
    assert last >= 0.4


@pytest.mark.parametrize("beta", ["fletcher_reeves", "polak_ribiere", "hestenes_stiefel", "hager_zhang"])
def test_betas_are_those_of_the_papers(beta):
    """The second direction, −g + β T(d), by the formulas with everything carried to the new point by hand."""
    m, f, shape, _ = PROBLEMS["stiefel"]
    space = Space([m])
    objective = Objective(lambda x: f(x[0]), space)
    here = objective.start([start(m, shape)])
    directions = ConjugateGradients(beta=beta).start(space)
    d, slope, length, guess = directions.next(here)
    assert torch.equal(d[0], -here.gradient[0])
    trial = objective.along(here, d, 0.3 * guess)
    directions.remember(here, d, length, slope, trial)
    (x,), (y,), g, before = here.x, trial.state.x, trial.state.gradient[0], here.gradient[0]
    carried, former = (m.transport(x, 0.3 * guess * d[0], v) for v in (d[0], before))
    change = g - former

    def dot(u, v):
        return float(m.inner(y, u, v))

    dy = dot(carried, change)
    expected = {
        "fletcher_reeves": dot(g, g) / dot(before, before),
        "polak_ribiere": max(0.0, dot(g, change) / dot(before, before)),
        "hestenes_stiefel": max(0.0, dot(g, change) / dy),
        "hager_zhang": dot(change - 2 * carried * dot(change, change) / dy, g) / dy,
    }[beta]
    found, slope, length, _ = directions.next(trial.state)
    assert torch.allclose(found[0], -g + expected * carried, rtol=1e-10)
    assert slope == pytest.approx(dot(found[0], g), rel=1e-9)
    assert length == pytest.approx(dot(found[0], found[0]) ** 0.5, rel=1e-9)


def test_steps_in_a_trust_region_lower_the_model_by_what_they_say():
    """Steps for positive definite and indefinite Hessians, inside and at the edge, against the model itself."""
    n = 6
    for seed in range(20):
        h = normal(n, n, seed=seed)
        h = h + h.mT + (0.0 if seed % 2 else 8.0) * torch.eye(n, dtype=h.dtype)
        g = normal(n, seed=50 + seed)
        space = Space([Euclidean(1)])
        here = State([torch.zeros_like(g)], 0.0, [g], float(g @ g))
        for radius in (0.1, 1.0, 100.0):
            step = _truncated(space, here, lambda v, h=h: [h @ v[0]], radius, 1e-10, 50)
            u = step.u[0]
            assert step.decrease == pytest.approx(-float(g @ u + 0.5 * u @ h @ u), rel=1e-9)
            assert step.square == pytest.approx(float(u @ u), rel=1e-9)
            if step.at_the_edge:
                assert float(u.norm()) == pytest.approx(radius, rel=1e-9)
            else:
                assert torch.allclose(h @ u, -g, atol=1e-6)
            bend = float(g @ h @ g)
            t = radius / float(g.norm())
            cauchy = t if bend <= 0 else min(t, float(g @ g) / bend)
            assert step.decrease >= (1 - 1e-9) * (cauchy * float(g @ g) - 0.5 * cauchy**2 * bend)
            assert step.at_the_edge or float(torch.linalg.eigvalsh(h)[0]) > 0


def test_a_saddle_is_left_along_negative_curvature():
    """Trust regions from next to a maximum: the curvature is negative, and the step goes to the edge."""
    vectors = torch.linalg.eigh(A)[1]
    x0 = Sphere().nearest(vectors[:, -1] + 1e-7 * vectors[:, 0])
    found = minimize(lambda x: x @ A @ x, x0, Sphere(), "trust_regions")
    assert found.fun == pytest.approx(float(LOW[0]), rel=1e-12)
    assert all(b.fun <= a.fun + 1e-14 for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.nit <= 12


def test_hessians_that_do_not_exist():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ A @ x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * grad * (A @ ctx.saved_tensors[0])

    x0 = start(Sphere(), (8,))
    with pytest.raises(ProblemError, match="second derivatives of f, or of a retraction, are off by"):
        minimize(Once.apply, x0, Sphere(), TrustRegions(hessian="pullback"))
    found = minimize(Once.apply, x0, Sphere(), "trust_regions")
    assert found.success
    assert found.fun == pytest.approx(float(LOW[0]), rel=1e-13)


def test_hessians_that_are_not_symmetric():
    """A backward pass with a derivative that is right along the gradient at the start and nowhere else."""
    x0 = start(Sphere(), (8,))
    with torch.no_grad():
        g = Sphere().riemannian_gradient(x0, 2 * A @ x0)
        other = Sphere().project(x0, x0.sin())
        other = other - g * (other @ g) / (g @ g)
        wrong = 20 * torch.outer(g, other) / (g.norm() * other.norm())

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * A @ x

        @staticmethod
        def backward(ctx, v):
            return (2 * A + wrong) @ v

    class Lopsided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ A @ x

        @staticmethod
        def backward(ctx, grad):
            return grad * Slope.apply(ctx.saved_tensors[0])

    with pytest.raises(ProblemError, match="not symmetric"):
        minimize(Lopsided.apply, x0, Sphere(), TrustRegions(hessian="pullback"))
    assert minimize(Lopsided.apply, x0, Sphere(), "trust_regions").fun == pytest.approx(float(LOW[0]), rel=1e-13)


@pytest.mark.parametrize("method", ["lbfgs", "conjugate_gradients", "trust_regions", "steepest_descent"])
def test_solvers_stay_on_their_device(method, device):
    a = A.to(device)
    x0 = {"rows": start(Sphere(), (3, 8)).to(device), "frame": start(Stiefel(), (8, 2)).to(device)}

    def f(x):
        return torch.einsum("ri,ij,rj->", x["rows"], a, x["rows"]) + (x["frame"].mT @ a @ x["frame"]).trace()

    found = minimize(f, x0, {"rows": Sphere(), "frame": Stiefel()}, method)
    assert found.success
    assert found.x["frame"].device.type == device.type
    assert found.fun == pytest.approx(float(3 * LOW[0] + LOW[:2].sum()), rel=1e-12)


@pytest.mark.parametrize("beta", ["fletcher_reeves", "polak_ribiere", "hestenes_stiefel", "hager_zhang"])
@pytest.mark.parametrize("make", [karcher_mean, frechet_mean])
def test_the_first_guess_is_good_where_convergence_is_fast(make, beta):
    """The gradient falls by a factor of ten per iteration, and the curvature stays: about one evaluation for each."""
    for seed in range(3):
        problem = make(seed=seed)
        found = minimize(problem.f, problem.x0, problem.manifold, ConjugateGradients(beta=beta))
        assert found.success, found.message
        assert found.nfev <= found.nit + 4


def test_conjugate_gradients_start_anew():
    """From some of these starts they converge linearly with exact searches, in 500 iterations, if they never do."""
    for seed in range(6):
        problem = rosenbrock(seed=seed)
        found = minimize(problem.f, problem.x0, problem.manifold, "conjugate_gradients")
        assert found.success, found.message
        assert found.nfev < 250
