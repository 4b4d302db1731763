"""Solvers of this library, pymanopt and geoopt, from a problem and a tolerance of its gradient to the last point."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pymanopt
import torch
from pymanopt import manifolds as peers
from pymanopt import optimizers
from retract.optim import minimize
from torch import Tensor

from .problem import Problem
from .trace import Trace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # geoopt imports torch.jit.script
    import geoopt

__all__ = ["SOLVERS", "Missing", "to_pymanopt"]

Solver = Callable[[Problem, Trace, float, float], Tensor]
"""From a problem, its traced f, the length of the gradient to end at and the most seconds to the last point."""

ITERATIONS = 1_000_000
FIRST_ORDER_STEPS = 10_000


class Missing(Exception):  # noqa: N818
    """The library lacks what a solver needs on a manifold."""


def with_minimize(method: str) -> Solver:
    """`retract.optim.minimize` at its defaults."""

    def solve(problem: Problem, f: Trace, gtol: float, seconds: float) -> Tensor:
        result = minimize(
            f, problem.x0, problem.manifold, method, gtol=gtol, gtol_rel=0.0, max_iter=ITERATIONS, max_time=seconds
        )
        if result.exception is not None:
            raise result.exception
        return result.x

    return solve


Maps = tuple[Any, Callable[[Tensor], Any], Callable[..., Tensor]]
"""A manifold of pymanopt, and the maps to its points and, differentiably, back."""


def _rows(x: Tensor) -> Maps:
    if x.ndim == 1:
        return peers.Sphere(len(x)), Tensor.numpy, lambda a: a
    return peers.Oblique(x.shape[1], x.shape[0]), lambda b: b.mT.contiguous().numpy(), lambda a: a.mT


def _rays(x: Tensor) -> Maps:
    return peers.Sphere(len(x)), lambda b: (b / b.norm()).numpy(), lambda a: a


def _same(manifold: Any) -> Maps:
    return manifold, Tensor.numpy, lambda a: a


def _ball(x: Tensor) -> Maps:
    """The Poincaré ball, stereographic to the hyperboloid; both are isometric."""

    def down(b: Tensor) -> Any:
        return (b[..., 1:] / (1.0 + b[..., :1])).numpy()

    def up(a: Tensor) -> Tensor:
        square = a.square().sum(-1, keepdim=True)
        return torch.cat([1.0 + square, 2.0 * a], -1) / (1.0 - square)

    return peers.PoincareBall(x.shape[-1] - 1, k=x.shape[:-1].numel()), down, up


def _factors(x: Tensor, n: int) -> Maps:
    """Matrices of fixed rank as their SVD, with the metric of the ambient space."""

    def down(b: Tensor) -> Any:
        u, s, v = torch.linalg.svd(b[:n] @ b[n:].mT, full_matrices=False)
        k = b.shape[-1]
        return u[:, :k].contiguous().numpy(), s[:k].numpy(), v[:k].contiguous().numpy()

    def up(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
        return torch.cat([u * s, v.mT])

    return peers.FixedRankEmbedded(n, len(x) - n, x.shape[-1]), down, up


def to_pymanopt(problem: Problem) -> Maps:
    """pymanopt's manifold for a problem."""
    x = problem.x0
    make = {
        "Sphere": _rows,
        "PSI": _rays,
        "Euclidean": lambda x: _same(peers.Euclidean(*x.shape)),
        "Stiefel": lambda x: _same(peers.Stiefel(*x.shape)),
        "Grassmann": lambda x: _same(peers.Grassmann(*x.shape)),
        "SpecialOrthogonal": lambda x: _same(peers.SpecialOrthogonalGroup(x.shape[-1], k=x.shape[:-2].numel())),
        "SymmetricPositiveDefinite": lambda x: _same(peers.SymmetricPositiveDefinite(x.shape[-1])),
        "Lorentz": _ball,
        "FixedRank": lambda x: _factors(x, problem.manifold.n),
    }
    return make[type(problem.manifold).__name__](x)


def with_pymanopt(optimizer: Any) -> Solver:
    """An optimizer of pymanopt at its defaults, on the same f through torch, ended by the same tolerance alone."""

    def solve(problem: Problem, f: Trace, gtol: float, seconds: float) -> Tensor:
        manifold, down, up = to_pymanopt(problem)
        if optimizer is optimizers.TrustRegions and isinstance(manifold, peers.FixedRankEmbedded):
            raise Missing("the Hessian of FixedRankEmbedded")

        @pymanopt.function.pytorch(manifold)
        def cost(*arrays: Tensor) -> Tensor:
            return f(up(*arrays))

        operator = cost.get_hessian_operator()

        @functools.wraps(operator)
        def traced(*arguments: Any) -> Any:
            with f.product():
                return operator(*arguments)

        cost._hessian = traced
        limits = {"max_iterations": ITERATIONS, "max_cost_evaluations": ITERATIONS, "max_time": seconds}
        solver = optimizer(min_gradient_norm=gtol, min_step_size=1e-15, verbosity=0, **limits)
        try:
            with np.errstate(all="ignore"):
                found = solver.run(pymanopt.Problem(manifold, cost), initial_point=down(problem.x0)).point
        except NotImplementedError as error:
            raise Missing(f"a map of {type(manifold).__name__}") from error
        return up(*map(torch.from_numpy, found if isinstance(found, list | tuple) else [found]))

    return solve


def to_geoopt(problem: Problem) -> Any:
    """A parameter at the start, on geoopt's manifold for a problem."""
    manifold = {
        "Sphere": geoopt.Sphere,
        "PSI": geoopt.Sphere,
        "Euclidean": lambda: geoopt.Euclidean(ndim=1),
        "Stiefel": geoopt.EuclideanStiefel,
        "SpecialOrthogonal": geoopt.EuclideanStiefel,
        "SymmetricPositiveDefinite": geoopt.SymmetricPositiveDefinite,
        "Lorentz": lambda: geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64)),
    }.get(type(problem.manifold).__name__)
    if manifold is None:
        raise Missing("its manifold")
    x = problem.x0.clone()
    return geoopt.ManifoldParameter(x / x.norm() if manifold is geoopt.Sphere and x.ndim == 1 else x, manifold())


def with_geoopt(make: Callable[[list[Any]], torch.optim.Optimizer]) -> Solver:
    """An optimizer of geoopt; it has no tolerance, so it ends 1e-14 above the optimum, where it stands still, or by its limits."""

    def solve(problem: Problem, f: Trace, gtol: float, seconds: float) -> Tensor:
        x = to_geoopt(problem)
        optimizer = make([x])

        def closure() -> float:
            optimizer.zero_grad()
            value = f(x)
            value.backward()
            return float(value.detach())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's searches and geoopt's warn where they find no step
            for _ in range(FIRST_ORDER_STEPS):
                optimizer.step(closure)
                stuck = getattr(optimizer, "step_size_history", [])[-2:] == [None, None]
                gap = problem.gap(float(f.calls[-1].value))
                if stuck or not gap > 1e-14 or time.perf_counter() - f.start > seconds:
                    break
        return x.detach().as_subclass(Tensor)

    return solve


SOLVERS: dict[str, Solver] = {
    "retract L-BFGS": with_minimize("lbfgs"),
    "retract CG": with_minimize("conjugate_gradients"),
    "retract TR": with_minimize("trust_regions"),
    "retract SD": with_minimize("steepest_descent"),
    "pymanopt CG": with_pymanopt(optimizers.ConjugateGradient),
    "pymanopt TR": with_pymanopt(optimizers.TrustRegions),
    "pymanopt SD": with_pymanopt(optimizers.SteepestDescent),
    "geoopt line search": with_geoopt(lambda p: geoopt.optim.RiemannianLineSearch(p, "wolfe", cg_method="fr")),
    "geoopt Adam": with_geoopt(lambda p: geoopt.optim.RiemannianAdam(p, lr=1e-2)),
    "geoopt SGD": with_geoopt(lambda p: geoopt.optim.RiemannianSGD(p, lr=1e-3, momentum=0.9)),
}
"""By library and method. Rates are those of geoopt's own tests; its search is scipy's for Wolfe's conditions, with Fletcher & Reeves's
directions."""
