"""One solver, or all of them in turn, on one problem: what it evaluated, how long it took, and where it ended."""

from __future__ import annotations

import gc
import math
import time
from typing import Any

import torch
from torch import Tensor

from .problem import Problem
from .solvers import SOLVERS, Missing
from .trace import Trace

__all__ = ["measure", "solve"]

Result = dict[str, Any]

GAP, GRADIENT = 1e-10, 1e-9


def gradient_norm(problem: Problem, x: Tensor) -> float:
    """‖grad f(x)‖ in the metric of this library's manifold."""
    x = x.detach().clone().requires_grad_()
    (egrad,) = torch.autograd.grad(problem.f(x), x)
    x = x.detach()
    gradient = problem.manifold.riemannian_gradient(x, egrad)
    square = float(problem.manifold.inner(x, gradient, gradient).sum())
    return math.sqrt(max(square, 0.0))  # an indefinite product of the ambient space may round below 0


def solve(problem: Problem, name: str, seconds: float) -> Result:
    """One run: what was evaluated until the gap was reached and in all, the seconds until then, and where it ended."""
    start = gradient_norm(problem, problem.x0)
    gc.collect()
    trace = Trace(problem.f)
    try:
        x = SOLVERS[name](problem, trace, GRADIENT * start, seconds)
    except Missing as error:
        return {"missing": str(error)}
    except Exception as error:  # a solver's failure is a result
        return {"error": f"{type(error).__name__}: {error}"}
    ended = time.perf_counter() - trace.start
    reached = trace.first(problem.optimum + GAP * max(1.0, abs(problem.optimum)))
    return {
        "reached": trace.counts(reached) if reached else None,
        "seconds": [reached.seconds] if reached else [],
        "total": trace.counts(),
        "ended": ended,
        "gap": problem.gap(float(problem.f(x))),
        "gradient": gradient_norm(problem, x) / start,
    }


def measure(problem: Problem, rounds: int, seconds: float) -> dict[str, Result]:
    """All solvers, one after the other in every round: {solver: result} with the seconds of every round."""
    x = problem.x0.clone().requires_grad_()
    for _ in range(3):  # compiled and cached what torch compiles and caches
        (egrad,) = torch.autograd.grad(problem.f(x), x, create_graph=True)
        torch.autograd.grad(egrad, x, problem.x0)
    results: dict[str, Result] = {}
    for _ in range(rounds):
        for name in SOLVERS:
            if name not in results:
                results[name] = solve(problem, name, seconds)
            elif results[name].get("reached"):
                results[name]["seconds"] += solve(problem, name, seconds).get("seconds", [])
    return results
