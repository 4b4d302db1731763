"""Hyperbolic space: what its models have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import factorial
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import GeometryError
from . import series
from .geodesic import GeodesicManifold

__all__ = ["Hyperbolic"]


@dataclass(frozen=True)
class Hyperbolic(GeodesicManifold):
    """Hypothesis: points are vectors, and the space is complete, simply connected and of constant curvature K < 0.

    Its geodesics are those of the hyperboloid, cosh θ · x + (sinh θ / θ) u with θ = ‖u‖ₓ/R and R = 1/√−K, and each pair
    of points is on one of them. The retraction is on the geodesic of u too, at the distance R asinh θ: with √(1 + θ²)
    in place of cosh θ and 1 in place of sinh θ / θ. It has no acceleration at its start, and no length of u that has
    a square takes it out of the range of floats.

    Raises:
        GeometryError: a curvature that is not a negative number.
    """

    curvature: float = -1.0
    """K, the sectional curvature of every plane."""
    event_ndim = 1
    reach: ClassVar[float]
    """`max_tangent_norm` in units of R: up to it the maps have digits near the origin in float32."""

    def __post_init__(self) -> None:
        if not -float("inf") < self.curvature < 0.0:
            raise GeometryError(
                f"curvature={self.curvature!r} is not a negative number; geoopt's Lorentz(k) has the curvature -1/k, "
                "its PoincareBall(c) has -c"
            )
        object.__setattr__(self, "max_tangent_norm", self.reach * self.radius)

    @property
    def radius(self) -> float:
        """R = 1/√−K, the unit in which lengths are pure numbers."""
        return float((-self.curvature) ** -0.5)

    @abstractmethod
    def longest_step(self, dtype: torch.dtype) -> float:
        """The length beyond which `exp` shortens a tangent, since its end has no place among the numbers of `dtype`."""

    @abstractmethod
    def half_chord(self, x: Tensor, y: Tensor) -> Tensor:
        """sinh(d/2R) for the distance d of `x` and `y`, (*batch, 1); its square has all derivatives at y = x."""

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """2R asinh(`half_chord`), (*batch, 1): accurate for tiny distances too, where an arc cosine has no digits.

        Where the points coincide it has no derivative: the first comes out as 0, the shortest subgradient. Its square
        has all of them: ``dist(x, y)**2 / 2`` has the gradient ``-log(y, x)``, and the metric as its Hessian there.
        """
        return 2.0 * self.radius * self.half_chord(x, y).asinh()

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic to ``retract(x, u)``, (*batch, n)."""
        return self.retract_and_transport(x, u, v)[1]


def shrinkage(square: Tensor) -> Tensor:
    """(d/2R)/(sinh(d/2R) cosh(d/2R)) = asinh h/(h √(1 + h²)) as a function of h² = sinh²(d/2R), smooth at 0.

    It is the factor of the chord in the logarithm.
    """
    near = square < _NEAR
    small, far = torch.where(near, square, 0.0), torch.where(near, 1.0, square)
    root = far.sqrt()
    return torch.where(near, series.polynomial(small, _SERIES), root.asinh() / (root * (1.0 + far).sqrt()))


# shrinkage: below this h² twelve terms of its series, with second derivatives, are exact.
_NEAR = 0.01
_SERIES = [(-4.0) ** j * factorial(j) ** 2 / factorial(2 * j + 1) for j in range(14)]
