"""`Problem`, and how its data are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from retract.manifolds import Manifold
from torch import Tensor

__all__ = ["Draw", "Problem", "polish"]


@dataclass(frozen=True)
class Problem:
    """A function on a manifold, a start, and the value at the minimizer.

    `x0` and `manifold` are a tensor and its manifold, or the same nest of them. Leading dimensions of `x0` before those of a point
    make a product of manifolds. `f` takes x and returns a scalar tensor that torch differentiates twice.
    """

    name: str
    manifold: Manifold | Sequence[Any] | dict[str, Any]
    f: Callable[[Any], Tensor]
    x0: Any
    optimum: float
    """Value of `f` at the minimizer, for the data in float64; NaN where it is not known (`polish`)."""
    known: str
    """How the optimum is known, in one sentence."""

    def gap(self, value: float) -> float:
        """(value − optimum) / max(1, |optimum|)."""
        return (value - self.optimum) / max(1.0, abs(self.optimum))


class Draw:
    """Random data from one seed, drawn in float64 on the CPU, so that every dtype and device gets the same problem up to rounding."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def permutation(self, n: int) -> Tensor:
        """The numbers 0 … n − 1 in random order."""
        return torch.randperm(n, generator=self.generator)

    def symmetric(self, n: int) -> Tensor:
        """A matrix of the Gaussian orthogonal ensemble, its eigenvalues in about [−2, 2]."""
        a = self.normal(n, n)
        return (a + a.mT) / math.sqrt(2.0 * n)

    def frame(self, *shape: int) -> Tensor:
        """Matrices with orthonormal columns, (*batch, n, k)."""
        return torch.linalg.qr(self.normal(*shape))[0].contiguous()

    def rotations(self, *shape: int) -> Tensor:
        """Orthogonal matrices of determinant 1, (*batch, n, n)."""
        q = self.frame(*shape)
        q[..., 0] *= torch.linalg.det(q).unsqueeze(-1)
        return q


def polish(problem: Problem, tolerance: float = 1e-14) -> Problem:
    """The problem with the value that trust regions and L-BFGS both reach from its start as the optimum.

    Raises:
        ArithmeticError: the two values differ by more than `tolerance` relative.
    """
    from retract.optim import minimize

    low, other = sorted(
        minimize(problem.f, problem.x0, problem.manifold, method=method, gtol=0.0, gtol_rel=1e-13).fun
        for method in ("trust_regions", "lbfgs")
    )
    if other - low > tolerance * max(1.0, abs(low)):
        raise ArithmeticError(
            f"{problem.name}: two solvers end at {low!r} and {other!r}; the optimum is not known to {tolerance}"
        )
    return replace(problem, optimum=low, known=f"polished until two solvers agreed to {tolerance}")
