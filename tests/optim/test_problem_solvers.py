"""The runner of the suite: what it counts, how problems are given to other libraries, and what it reports."""

import math
from pathlib import Path

import pytest
import torch
from benchmarks.problems import PROBLEMS, rayleigh, report
from benchmarks.problems.measure import gradient_norm, measure, solve
from benchmarks.problems.problem import Problem
from benchmarks.problems.solvers import SOLVERS, Missing, to_geoopt, to_pymanopt
from benchmarks.problems.trace import Trace, total
from retract.manifolds import Sphere
from small_problems import small


def cubes(x):
    return x.pow(3).sum()


def test_every_evaluation_is_counted_once_by_its_derivatives():
    trace = Trace(cubes)
    x = torch.ones(3, dtype=torch.float64)
    trace(x)  # a value
    moving = x.clone().requires_grad_()
    with torch.no_grad():
        trace(moving)  # a value
    trace(moving).backward()  # a gradient
    u = torch.zeros_like(x, requires_grad=True)
    (slope,) = torch.autograd.grad(trace(x + u), u, create_graph=True)  # a gradient, with three products
    last = trace.calls[-1]
    for _ in range(3):
        (product,) = torch.autograd.grad(slope, u, x, retain_graph=True)
    assert torch.equal(product, 6 * x)
    with trace.product():  # a product that forms its gradient itself
        (slope,) = torch.autograd.grad(trace(moving), moving, create_graph=True)
        torch.autograd.grad(slope, moving, x)
    assert trace.counts() == {"values": 2, "gradients": 2, "products": 4}
    assert trace.counts(last) == {"values": 2, "gradients": 2, "products": 0}
    assert total(trace.counts()) == 0.5 * 2 + 2 + 2 * 4
    assert [float(call.value) for call in trace.calls] == [3.0] * 5
    seconds = [call.seconds for call in trace.calls]
    assert seconds == sorted(seconds)
    assert trace.first(3.0) is trace.calls[0]
    assert trace.first(2.9) is None


@pytest.mark.parametrize("name", PROBLEMS)
def test_pymanopt_gets_the_same_function_start_and_metric(name):
    problem = small(name)
    manifold, down, up = to_pymanopt(problem)
    start = down(problem.x0)
    parts = start if isinstance(start, tuple) else (start,)
    arrays = [torch.from_numpy(a).requires_grad_() for a in parts]
    value = problem.f(up(*arrays))
    assert float(value.detach()) == pytest.approx(float(problem.f(problem.x0)), rel=1e-12)
    if len(parts) == 1:  # fixed-rank matrices have another metric there
        (egrad,) = torch.autograd.grad(value, arrays)
        gradient = manifold.euclidean_to_riemannian_gradient(start, egrad.numpy())
        assert manifold.norm(start, gradient) == pytest.approx(gradient_norm(problem, problem.x0), rel=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_geoopt_gets_the_same_function_and_start(name):
    problem = small(name)
    if type(problem.manifold).__name__ in ("Grassmann", "FixedRank"):
        with pytest.raises(Missing, match="its manifold"):
            to_geoopt(problem)
        return
    x = to_geoopt(problem)
    assert x.manifold.check_point_on_manifold(x.detach())
    assert float(problem.f(x).detach()) == pytest.approx(float(problem.f(problem.x0)), rel=1e-12)


@pytest.mark.slow
def test_every_solver_is_measured_on_the_same_problem():
    problem = rayleigh(n=8)
    results = measure(problem, rounds=2, seconds=20.0)
    assert results.keys() == SOLVERS.keys()
    for name, result in results.items():
        assert result["reached"], name
        assert len(result["seconds"]) == 2
        assert 0 < result["seconds"][0] <= result["ended"]
        assert abs(result["gap"]) <= 1e-10
        assert all(result["reached"][kind] <= result["total"][kind] for kind in result["total"])
        assert (result["total"]["products"] > 0) == name.endswith("TR")
        assert (result["total"]["values"] > 0) == (name.startswith("pymanopt") or name.endswith("TR"))
    counts = results["pymanopt TR"]["total"]  # a gradient per product and per accepted step, and one at the start
    assert counts["gradients"] <= counts["products"] + counts["values"]
    assert max(results[name]["gradient"] for name in results if "L-BFGS" in name or "TR" in name) <= 1e-9


def test_what_a_library_lacks_and_what_fails_are_results():
    assert solve(small("frechet_mean"), "pymanopt CG", 5.0) == {"missing": "a map of PoincareBall"}
    assert solve(small("completion_fixed_rank"), "pymanopt TR", 5.0) == {"missing": "the Hessian of FixedRankEmbedded"}
    assert solve(small("dominant_subspace"), "geoopt Adam", 5.0) == {"missing": "its manifold"}

    def fails(x):
        if x[0] != 1.0:
            raise ValueError("no such point")
        return x.square().sum() + x[1]

    x0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    problem = Problem("failing", Sphere(), fails, x0, 0.0, "not at all")
    assert solve(problem, "pymanopt SD", 5.0) == {"error": "ValueError: no such point"}


def result(gradients=10, values=0, products=0, seconds=(1.0,), **more):
    """A result of a solver that reached the gap."""
    counts = {"gradients": gradients, "values": values, "products": products}
    return {"reached": counts, "seconds": list(seconds), "gap": 1e-15, "gradient": 1e-9, **more}


CONTENT = {
    "problems": {
        "one": {
            "name": "One",
            "solvers": {
                "retract CG": result(10),
                "pymanopt CG": result(8, 24, seconds=(4.0, 2.0, 9.0)),
                "geoopt SGD": {"missing": "its manifold"},
            },
        },
        "two": {
            "name": "Two",
            "solvers": {
                "retract CG": result(10, products=5),
                "pymanopt CG": result(5),
                "geoopt SGD": {"reached": None, "seconds": [], "gap": 0.5, "gradient": 0.25},
            },
        },
    }
}


def test_profiles_are_shares_of_problems_within_a_factor_of_the_best():
    values = report.costs(CONTENT, report.evaluations)
    assert values == {
        "one": {"retract CG": 10.0, "pymanopt CG": 20.0, "geoopt SGD": math.inf},
        "two": {"retract CG": 20.0, "pymanopt CG": 5.0, "geoopt SGD": math.inf},
    }
    assert report.profile(values, "retract CG") == ([1.0, 4.0], [0.5, 1.0])
    assert report.profile(values, "pymanopt CG") == ([1.0, 2.0], [0.5, 1.0])
    assert report.profile(values, "geoopt SGD") == ([], [])
    values["two"]["pymanopt CG"] = math.inf
    assert report.profile(values, "pymanopt CG") == ([2.0], [0.5])
    assert report.costs(CONTENT, report.seconds)["one"] == {
        "retract CG": 1.0,
        "pymanopt CG": 4.0,
        "geoopt SGD": math.inf,
    }


def test_tables_show_counts_seconds_and_ends():
    assert report.table(CONTENT, report.cell).splitlines() == [
        "| problem | retract CG | pymanopt CG | geoopt SGD |",
        "| --- | --- | --- | --- |",
        "| One | 10 · 1 | 8 + 24f · 4 |  |",
        "| Two | 10 + 5H · 1 | 5 · 1 | – |",
    ]
    assert report.table(CONTENT, report.end).splitlines()[2:] == [
        "| One | 1e-15 · 1e-09 | 1e-15 · 1e-09 |  |",
        "| Two | 1e-15 · 1e-09 | 1e-15 · 1e-09 | 5e-01 · 2e-01 |",
    ]
    assert report.cell({"error": "ValueError"}) == report.end({"error": "ValueError"}) == "failed"
    assert report.comparison(CONTENT) == (
        "The best method of this library against the best of pymanopt: no more evaluations on 1 of 2, median ratio 2.25; "
        "no more seconds on 2 of 2, median ratio 0.62."
    )


def test_picture_is_drawn_twice_the_same(tmp_path):
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        report.draw({"default": CONTENT, "larger": CONTENT}, path)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_page_lists_the_problems_as_they_are():
    page = Path(report.PAGE).read_text()
    assert report.put(page, "problems", report.problems()) == page, "run docs/benchmarks/problems/report.py"
    assert report.put("a <!-- x: written by report.py --> b <!-- end of x --> c", "x", "\\1") == (
        "a <!-- x: written by report.py -->\n\n\\1\n\n<!-- end of x --> c"
    )
