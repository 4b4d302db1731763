"""Every problem of the suite is solved to its last digits by `minimize` with its defaults."""

import pytest
from benchmarks.problems import PROBLEMS
from retract.optim import minimize


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", ["lbfgs", "conjugate_gradients", "trust_regions"])
def test_solved_with_defaults(method, name):
    problem = PROBLEMS[name]()
    found = minimize(problem.f, problem.x0, problem.manifold, method)
    assert found.success, found.message
    assert problem.gap(found.fun) <= 1e-12
    assert found.grad_norm <= 1e-9 * found.history[0].grad_norm
