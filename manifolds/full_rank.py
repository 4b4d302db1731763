"""Pairs of factors of full rank, with the metric in which each is measured by the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics
from .base import Manifold

__all__ = ["FullRankFactors", "Pair", "ScaledFactors", "inverse_triangle"]

Pair = tuple[Tensor, Tensor]

WELL = 10.0
"""Weights are inverted from one factorisation up to this mean condition: that of singular values which are evenly
spread from 1 to 90 on a logarithmic scale."""


@dataclass(frozen=True, repr=False)
class ScaledFactors(Manifold):
    """Hypothesis: a point is a pair of factors B (n × k) and A (k × m), stored as B over Aᵀ in one array
    (*batch, n + m, k), with the metric in which each factor is measured by the other.
    """

    k: int = 1
    """The rank, the inner size of the product."""
    n: int | None = None
    """The number of rows that are B; None: not known yet."""
    damping: float = 0.0
    """The share of the mean scale of both factors that is added to each, in [0, 1)."""
    degree: float = 1.0
    """For k = 1: the degree p of the activation between the factors."""
    event_ndim = 2

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("n", self.n)):
            if (type(value) is not int or value < 1) and not (name == "n" and value is None):
                raise GeometryError(f"{type(self).__name__}: {name}={value!r} is not an integer ≥ 1")
        for name, fits, interval in (
            ("damping", lambda value: 0 <= value < 1, "[0, 1)"),
            ("degree", lambda value: 0 < value < math.inf, "(0, inf)"),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or not fits(value):
                raise GeometryError(f"{type(self).__name__}: {name}={value!r} is not a number in {interval}")
            object.__setattr__(self, name, float(value))  # groups and checkpoints are compared by repr
        if self.degree != 1 and self.k > 1:
            raise GeometryError(
                f"{type(self).__name__}: degree={self.degree} with k={self.k}: an activation of another degree than 1 leaves "
                "scalings of single units, so k is 1"
            )

    def __repr__(self) -> str:
        named = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        given = ", ".join(f"{name}={value!r}" for name, value, usual in named if name == "k" or value != usual)
        return f"{type(self).__name__}({given})"

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`; n has to be known, and both factors need at least k rows."""
        error = super().event_error(event)
        if error is not None:
            return error
        rows, k = event
        if self.n is None:
            return (
                f"{self!r} does not know how many of the {rows} rows are the first factor: name it, as in "
                f"{type(self).__name__}({self.k}, n=…)"
            )
        if k != self.k or rows - self.n < self.k or self.n < self.k:
            return (
                f"a point of {self!r} is an array of (n + m) × {self.k}, n = {self.n} rows of B over m of Aᵀ, and rank "
                f"{self.k} needs n, m ≥ {self.k}; not {rows} × {k}"
            )
        return None

    def split(self, x: Tensor) -> Pair:
        """B and Aᵀ, (*batch, n, k) and (*batch, m, k), views of `x`, or of a tangent."""
        return x[..., : self.n, :], x[..., self.n :, :]

    def weights(self, x: Tensor) -> Pair:
        """What tangents of B and of Aᵀ are measured by, each (*batch, k, k): A Aᵀ + λ and BᵀB + λ; for k = 1 and degree p
        p ‖u‖²ᵖ⁻² ‖v‖² + λ and ‖u‖²ᵖ + λ.

        λ is `damping` times the mean of both traces over k.
        """
        return self.weights_of(*self._grams(x))

    def weights_of(self, bb: Tensor, aa: Tensor) -> Pair:
        """`weights` from the Grams BᵀB and A Aᵀ, each (*batch, k, k)."""
        of_b, of_a = self._undamped(bb, aa)
        added = self._shift(of_b, of_a) * torch.eye(self.k, dtype=bb.dtype, device=bb.device)
        return of_b + added, of_a + added

    def _grams(self, x: Tensor) -> Pair:
        if self.k > 1:
            b, a = (factor.mT @ factor for factor in self.split(x))
        else:
            b, a = (numerics.dot(factor, factor, 2) for factor in self.split(x))
        return b, a

    def _undamped(self, bb: Tensor, aa: Tensor) -> Pair:
        if self.degree == 1:
            return aa, bb
        return self.degree * bb ** (self.degree - 1) * aa, bb**self.degree

    def _shift(self, of_b: Tensor, of_a: Tensor) -> Tensor | float:
        """λ of the undamped weights, (*batch, 1, 1), above 0."""
        tiny = torch.finfo(of_b.dtype).tiny
        if not self.damping:
            return tiny
        traces = (weight.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for weight in (of_b, of_a))
        return self.damping / (2 * self.k) * sum(traces) + tiny

    def _roots(self, x: Tensor, own: Pair | None = None) -> Pair:
        """Lower triangular roots of the weights, from the Grams of `x` if they are known, for k > 1; all are factored at once."""

        def grams(matrices: Tensor) -> Tensor:
            frames = (factor @ matrix for factor, matrix in zip(reversed(self.split(x)), matrices, strict=True))
            return torch.stack([frame.mT @ frame for frame in frames])

        first, second = self.roots_of(torch.stack(self.weights_of(*(own or self._grams(x)))), grams).unbind()
        return first, second

    def roots_of(self, weights: Tensor, grams: Callable[[Tensor], Tensor]) -> Tensor:
        """Lower triangular roots of the `weights` of B and of Aᵀ, (2, *batch, k, k), for k > 1.

        Without damping the Gram of factors of condition κ has condition κ². A second factorisation, of the Gram of the factors
        divided by the first root, leaves an error of the order of κ ε instead of κ² ε (CholeskyQR2: Yamamoto, Nakatsukasa,
        Yanagisawa & Fukaya 2015). ``grams`` returns the Grams of Aᵀ times the first, and of B times the second of two given
        matrices.
        """
        roots = numerics.cholesky(weights)
        if self.damping:
            return roots
        second, info = torch.linalg.cholesky_ex(grams(inverse_triangle(roots).mT))
        exact = (info == 0)[..., None, None]  # for others, singular up to rounding, the first root has to do
        return torch.where(exact, roots @ torch.where(exact, second, 0.0), roots)

    def inverses_of(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Inverses of the `weights` of B and of Aᵀ from one factorisation, (2, *batch, k, k), and which points they serve,
        (*batch).

        They do where ‖L‖ ‖L⁻¹‖ ≤ `WELL` k for the roots L of both: they and products with them have an error of the order of
        the square of that over k, times ε. Elsewhere factors are divided by `roots_of`, one triangle after the other.
        """
        lower, info = torch.linalg.cholesky_ex(weights)
        if info.any():  # of a singular matrix there is no inverse
            identity = torch.eye(self.k, dtype=weights.dtype, device=weights.device)
            lower = torch.where((info == 0)[..., None, None], lower, identity)
        inverses = torch.cholesky_inverse(lower)
        traces = (each.diagonal(dim1=-2, dim2=-1).sum(-1) for each in (weights, inverses))
        product = next(traces) * next(traces)
        return inverses, ((info == 0) & (product <= (WELL * self.k) ** 2)).all(0)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """tr(u_Bᵀ v_B W_B) + tr(u_Aᵀ v_A W_A) with the `weights` W, (*batch, 1, 1)."""
        times = torch.mul if self.k == 1 else torch.matmul
        (b, a), (c, d), (of_b, of_a) = self.split(u), self.split(v), self.weights(x)
        return numerics.dot(times(b, of_b), c, 2) + numerics.dot(times(a, of_a), d, 2)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """Length of `u` times roots of the weights, (*batch, 1, 1): no square of `u` is formed, which may overflow or vanish."""
        b, a = self.split(u)
        if self.k == 1:
            of_b, of_a = (weight.sqrt() for weight in self.weights(x))
            return numerics.length(torch.cat([b * of_b, a * of_a], -2), 2)
        of_b, of_a = self._roots(x)
        return numerics.length(torch.cat([b @ of_b, a @ of_a], -2), 2)

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """The gradients of the factors times the inverse weights, (*batch, n + m, k)."""
        parts = self.split(egrad)
        if self.k == 1:
            return torch.cat([part / weight for part, weight in zip(parts, self.weights(x), strict=True)], -2)
        return torch.cat([_divided(part, root) for part, root in zip(parts, self._roots(x), strict=True)], -2)

    def nearest(self, a: Tensor) -> Tensor:
        """`a` itself: points are an open set of arrays."""
        return a

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """x + u: B + u_B and A + u_A, (*batch, n + m, k)."""
        return x + u

    def _singular(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The smallest and the largest singular value of B and of A, four of (*batch, 1, 1)."""
        least, most = [], []
        for factor in self.split(torch.where(numerics.finite_matrices(x), x, 0.0)):
            values = torch.linalg.svdvals(factor).unsqueeze(-1)
            least.append(values[..., -1:, :])
            most.append(values[..., :1, :])
        return least[0], most[0], least[1], most[1]

    def point_defect(self, x: Tensor) -> Tensor:
        """0 for a point and infinite for other arrays, (*batch, 1, 1).

        Points are finite factors of rank k, up to rounding; with damping all for which one of the weights is not 0.
        """
        least_b, most_b, least_a, most_a = self._singular(x)
        if self.damping:
            full = most_b > 0 if self.degree != 1 else (most_b > 0) | (most_a > 0)
        else:
            rounding = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
            full = (least_b > rounding * most_b) & (least_a > rounding * most_a)
        return torch.where(full & numerics.finite_matrices(x), 0.0, torch.inf).to(x.dtype)

    def advice(self, x: Tensor) -> str:
        """Which factor of `x`, (n + m, k), lacks rank, with its singular values, and what to do."""
        if not torch.isfinite(x).all():
            return "its factors are not finite; re-initialize them"
        admitted = "" if self.damping else ", or admit it with a damping, such as damping=1e-2"
        return f"{self.lack(x)}; re-initialize it{admitted}"

    def lack(self, x: Tensor) -> str:
        """Which factor of `x`, (n + m, k), lacks rank, with its singular values."""
        least_b, most_b, least_a, most_a = (float(value) for value in self._singular(x))
        ratio_b, ratio_a = (least / most if most else 0.0 for least, most in ((least_b, most_b), (least_a, most_a)))
        name, least, most = ("B", least_b, most_b) if ratio_b <= ratio_a else ("A", least_a, most_a)
        return (
            f"its factor {name} has rank below {self.k}, with the smallest singular value {least:.2g} beside {most:.2g}"
        )

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal factors."""
        return numerics.random_normal(shape, generator, dtype, device)


@dataclass(frozen=True, repr=False)
class FullRankFactors(ScaledFactors):
    """Pairs of factors of full rank themselves, the representatives of `FixedRank`, with its metric.

    >>> import torch
    >>> from retract.manifolds import FixedRank
    >>> FixedRank(2, 5).total_space
    FullRankFactors(k=2, n=5)
    """

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """`a` itself: points are an open set of arrays."""
        return a

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` itself."""
        return v


def _divided(a: Tensor, root: Tensor) -> Tensor:
    """a (L Lᵀ)⁻¹ for lower triangular L, (*batch, n, k), by two products, which take a third of the time of solving from the
    right."""
    inverse = inverse_triangle(root)
    return (a @ inverse.mT) @ inverse


def inverse_triangle(root: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, (*batch, k, k)."""
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device).expand_as(root)
    return torch.linalg.solve_triangular(root, identity, upper=False)
