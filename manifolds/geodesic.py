"""Manifolds whose geodesics are known in closed form, and the methods that follow."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .base import Manifold

__all__ = ["ExponentialManifold", "GeodesicManifold"]


class ExponentialManifold(Manifold):
    """A manifold whose exponential map is known."""

    @abstractmethod
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Point at time 1 of the geodesic that leaves `x` with velocity `u`, (*batch, *event). Law:
        ``exp(x, 0)`` is `x`; the geodesic has no acceleration."""

    def geodesic(self, x: Tensor, u: Tensor, t: Tensor | float) -> Tensor:
        """Point at time `t`, (*batch, *event); `t` is a number or broadcasts against `u`, as in shape (times, 1…)."""
        return self.exp(*torch.broadcast_tensors(x, u * t))


class GeodesicManifold(ExponentialManifold):
    """A manifold where logarithm and parallel transport are known as well."""

    injectivity_radius: float = math.inf
    """Length up to which geodesics are the shortest. Law: `log` inverts `exp` below it."""
    row_kernel: ClassVar[Literal["rays", "vectors", "lines", "ball", "sheet"] | None] = None
    """Which formulas of the row kernels (`optim.kernels`) are those of this class, whose points are vectors: on a `Spherical`
    manifold those of vectors modulo positive scaling, of unit vectors, or of unit vectors modulo sign; on a `Hyperbolic` one those
    of the ball or of the sheet. Each class says so for itself, for a subclass may have other maps; None: its points are stepped by
    the maps of the class, on the reference path."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.row_kernel = vars(cls).get("row_kernel")

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Shortest `u` with exp(x, u) = y, (*batch, *event). Law: inverts `exp` below `injectivity_radius`."""

    @abstractmethod
    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` carried to ``exp(x, u)`` along that geodesic, (*batch, *event). Law: linear and isometric."""

    @abstractmethod
    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` carried from `x` along the minimizing geodesic to `y`, as a tangent at the representative `y`
        at hand, (*batch, *event). Law: linear and isometric."""

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of the minimizing geodesic, (*batch, 1…)."""
        return self.norm(x, self.log(x, y))
