"""`minimize`: on every manifold, on products, in every dtype; its order of convergence; what ends a run; bad input."""

import math
import time

import pytest
import torch
from retract.errors import GeometryError, OptionError, ProblemError
from retract.manifolds import PSI, Euclidean, FixedRank, Sphere, Stiefel
from retract.optim import (
    LBFGS,
    Armijo,
    ConjugateGradients,
    HagerZhang,
    SteepestDescent,
    StrongWolfe,
    TrustRegions,
    minimize,
)
from solver_problems import LOW, PROBLEMS, A, completion, start

METHODS = {
    "lbfgs": "lbfgs",
    "lbfgs-strong-wolfe": LBFGS(search=StrongWolfe()),
    "cg-hager-zhang": "conjugate_gradients",
    "cg-fletcher-reeves": ConjugateGradients(HagerZhang(curvature=0.1), "fletcher_reeves"),
    "cg-polak-ribiere": ConjugateGradients(StrongWolfe(curvature=0.1), "polak_ribiere"),
    "cg-hestenes-stiefel": ConjugateGradients(HagerZhang(curvature=0.1), "hestenes_stiefel"),
    "trust-regions": "trust_regions",
    "trust-regions-differences": TrustRegions(hessian="differences"),
    "steepest-descent": "steepest_descent",
    "steepest-descent-armijo": SteepestDescent(Armijo()),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_manifold(method, problem):
    manifold, f, shape, optimum = PROBLEMS[problem]
    x0 = start(manifold, shape)
    before = x0.clone()
    found = minimize(f, x0, manifold, METHODS[method])
    assert found.success, found.message
    assert found.fun - optimum <= 1e-12 * max(1.0, abs(optimum))
    assert found.grad_norm <= 1e-9 * found.history[0].grad_norm
    assert torch.equal(x0, before)
    manifold.check_point(found.x, "x", 1e-12)
    assert found.fun == pytest.approx(float(f(found.x)), abs=1e-14)
    assert (found.nfev, found.njev, found.nhev) == found.history[-1][3:6]
    assert found.nit == len(found.history) - 1


@pytest.mark.parametrize("method", ["lbfgs", "conjugate_gradients", "trust_regions"])
def test_products_of_all_kinds_of_structures(method):
    """Terms of a sum on a product are minimized as if alone; the coupling term sees all tensors."""
    x0 = {
        "direction": start(Sphere(), (3, 8)),
        "frames": [start(Stiefel(), (8, 2)), start(PSI(), (8,))],
        "shift": (torch.ones(2, dtype=torch.float64),),
    }
    manifolds = {"direction": Sphere(), "frames": [Stiefel(), PSI()], "shift": (Euclidean(),)}

    def f(x):
        frame, weight = x["frames"]
        unit = weight / weight.norm()
        flat = (x["shift"][0] - unit[:2]).square().sum()
        return (
            torch.einsum("ri,ij,rj->", x["direction"], A, x["direction"])
            + (frame.mT @ A @ frame).trace()
            + unit @ A @ unit
            + flat
        )

    found = minimize(f, x0, manifolds, method)
    assert found.success
    assert found.fun == pytest.approx(float(4 * LOW[0] + LOW[:2].sum()), rel=1e-12)
    assert isinstance(found.x["shift"], tuple)
    assert found.x["direction"].shape == (3, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["lbfgs", "conjugate_gradients", "trust_regions", "steepest_descent"])
def test_the_dtype_is_kept(method, dtype):
    a = A.to(dtype)
    found = minimize(lambda x: x @ a @ x, start(Sphere(), (8,), dtype), Sphere(), method)
    assert found.success
    assert found.x.dtype == dtype
    assert found.fun == pytest.approx(float(LOW[0]), rel=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", ["lbfgs", "conjugate_gradients", "trust_regions"])
def test_the_representative_does_not_matter(method):
    """Rows of PSI and factors of FixedRank at other scales: the same path (the metric is not the dot product of arrays)."""
    rows = start(PSI(), (3, 8))
    scale = torch.tensor([[1e-2], [1.0], [1e3]], dtype=torch.float64)

    def quotients(x):
        unit = x / x.norm(dim=1, keepdim=True)
        return torch.einsum("ri,ij,rj->", unit, A, unit)

    for manifold, f, x, other in (
        (PSI(), quotients, rows, scale * rows),
        (FixedRank(2, 5), completion, start(FixedRank(2, 5), (11, 2)), None),
    ):
        if other is None:
            g = torch.tensor([[3.0, 1.0], [0.0, 0.1]], dtype=torch.float64)
            other = torch.cat([x[:5] @ g, x[5:] @ torch.linalg.inv(g).mT])
        one, two = (minimize(f, each, manifold, method, max_iter=12) for each in (x, other))
        values = torch.tensor([[record.fun for record in each.history] for each in (one, two)])
        assert torch.allclose(values[0], values[1], rtol=1e-7)


def test_what_ends_a_run():
    f, x0 = (lambda x: x @ A @ x), start(Sphere(), (8,))

    def ended(**options):
        return minimize(f, x0, Sphere(), **options)

    assert "gradient" in ended(gtol=1e-3, gtol_rel=0.0).message
    assert ended(gtol=1e-3, gtol_rel=0.0).grad_norm <= 1e-3
    assert ended(xtol=1e-2).message.startswith("the step")
    assert ended(xtol=1e-2).success
    assert ended(ftol=1e-4).message.startswith("f has changed")
    few = ended(max_iter=3)
    assert (few.nit, few.success) == (3, False)
    assert "max_iter=3" in few.message
    assert "max_time" in ended(max_time=0.0).message
    assert ended(max_iter=0).nit == 0
    minimum = torch.linalg.eigh(A)[1][:, 0]
    assert minimize(lambda x: (x - minimum).square().sum(), minimum, Sphere()).nit == 0


def test_rounding_ends_a_run_with_success():
    """A tolerance out of reach: the end is where f cannot be lowered in its dtype, and that is a success."""
    for method in ("lbfgs", "conjugate_gradients", "trust_regions"):
        found = minimize(lambda x: x @ A @ x, start(Sphere(), (8,)), Sphere(), method, gtol_rel=0.0)
        assert found.success, method
        assert found.fun == pytest.approx(float(LOW[0]), rel=1e-14)
        assert found.grad_norm <= 1e-9 * found.history[0].grad_norm
        assert found.nit < 200


def test_the_callback_and_exceptions():
    f, x0, seen = (lambda x: x @ A @ x), start(Sphere(), (8,)), []

    def stop(x, record):
        seen.append((x.clone(), record))
        if len(seen) == 4:
            raise StopIteration("enough")

    found = minimize(f, x0, Sphere(), callback=stop)
    assert (found.nit, found.message, found.success) == (3, "enough", True)
    assert torch.equal(seen[0][0], x0)
    assert torch.equal(seen[-1][0], found.x)

    for error in (ValueError("no"), KeyboardInterrupt()):

        def breaks(x, record, error=error):
            if record.nfev > 5:
                raise error

        found = minimize(f, x0, Sphere(), callback=breaks)
        assert found.exception is error
        assert not found.success
        assert found.fun < found.history[0].fun
        assert found.fun == pytest.approx(float(f(found.x)))

    calls = []

    def fails(x):
        calls.append(0)
        if len(calls) == 6:
            raise ZeroDivisionError("in f")
        return x @ A @ x

    found = minimize(fails, x0, Sphere())
    assert isinstance(found.exception, ZeroDivisionError)
    assert found.history[-1].fun == found.fun
    with pytest.raises(ZeroDivisionError):
        minimize(lambda x: 1 / 0, x0, Sphere())


def test_f_that_is_infinite_away_from_the_start():
    """A barrier: trials beyond it are shortened."""
    x0 = torch.tensor([0.9, 0.1], dtype=torch.float64)
    for method in METHODS.values():
        found = minimize(lambda x: -x.log().sum() + 3 * x.sum(), x0, Euclidean(1), method)
        assert found.success
        assert torch.allclose(found.x, torch.full_like(x0, 1 / 3), atol=1e-7)


def test_time_is_measured_and_progress_printed(capsys):
    found = minimize(lambda x: x @ A @ x, start(Sphere(), (8,)), Sphere(), display=True, max_iter=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "f = " in lines[0]
    times = [record.time for record in found.history]
    assert times == sorted(times)
    began = time.perf_counter()

    def slow(x):
        time.sleep(0.01)
        return x @ A @ x

    minimize(slow, start(Sphere(), (8,)), Sphere(), max_time=0.05, gtol_rel=0.0)
    assert time.perf_counter() - began < 1.0


X0 = torch.ones(4, dtype=torch.float64) / 2
BAD = [
    (lambda x: x.sum() / 0.0, X0, Sphere(), {}, ProblemError, "f\\(x0\\) = inf"),
    (lambda x: x, X0, Sphere(), {}, ProblemError, "returned a tensor of torch.float64, \\(4,\\)"),
    (lambda x: 3.0, X0, Sphere(), {}, ProblemError, "returned 3.0"),
    (lambda x: torch.tensor(1.0), X0, Sphere(), {}, ProblemError, "does not depend on x"),
    (lambda x: x.detach().sum(), X0, Sphere(), {}, ProblemError, "does not depend on x"),
    (lambda x: (x - 0.5).norm().sqrt(), X0, Sphere(), {}, ProblemError, "gradient at x0 is not finite"),
    (lambda x: x.sum(), 2 * X0, Sphere(), {}, GeometryError, "x0 is not on Sphere"),
    (lambda x: x.sum(), X0.half(), Sphere(), {}, GeometryError, "float32 or float64"),
    (lambda x: x.sum(), [X0, X0], [Sphere()], {}, GeometryError, "structure"),
    (lambda x: x.sum(), [X0, X0], Sphere(), {}, GeometryError, "structure"),
    (lambda x: x.sum(), X0, "sphere", {}, GeometryError, "not a Manifold"),
    (lambda x: x.sum(), [], [], {}, GeometryError, "no tensors"),
    (lambda x: x.sum(), X0, Sphere(), {"method": "newton"}, OptionError, "'newton'"),
    (lambda x: x.sum(), X0, Sphere(), {"gtol": -1.0}, OptionError, "gtol"),
    (lambda x: x.sum(), X0, Sphere(), {"max_iter": math.nan}, OptionError, "max_iter"),
]  # fmt: skip


@pytest.mark.parametrize(("f", "x0", "manifold", "options", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(f, x0, manifold, options, kind, message):
    with pytest.raises(kind, match=message):
        minimize(f, x0, manifold, **options)


def test_the_worst_row_is_named():
    x0 = start(Sphere(), (5, 4))
    x0[3] *= 1.5
    with pytest.raises(GeometryError, match="row 3 is off by 0.5"):
        minimize(lambda x: x.sum(), x0, Sphere())


def test_a_gradient_that_is_not_that_of_f():
    """A wrong derivative: the search finds no descent, and the message says so."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ A @ x

        @staticmethod
        def backward(ctx, grad):
            return -2 * grad * (A @ ctx.saved_tensors[0])

    found = minimize(Wrong.apply, start(Sphere(), (8,)), Sphere())
    assert not found.success
    assert "no descent" in found.message
