"""Flat space, in which every Riemannian optimizer is its Euclidean namesake."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics
from .conformal import ConformalManifold
from .geodesic import GeodesicManifold

__all__ = ["Euclidean"]


@dataclass(frozen=True)
class Euclidean(ConformalManifold, GeodesicManifold):
    """R^n with the dot product; ``Euclidean(0)`` makes every coordinate a point of its own.

    `event_ndim` decides what one point is, hence what has a common second moment in Adam:
    ``Euclidean(0)`` gives torch's Adam.

    Example:
        >>> import torch
        >>> x, u = torch.zeros(2, 3), torch.ones(2, 3)
        >>> Euclidean(1).retract(x, u).shape, Euclidean(1).norm(x, u).shape
        (torch.Size([2, 3]), torch.Size([2, 1]))
    """

    event_ndim: int = 0
    unmet_laws = ("nan_is_no_point",)  # as in torch, where no value is refused

    def conformal_factor(self, x: Tensor) -> float:
        """1."""
        return 1.0

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """‖u‖, (*batch, 1…)."""
        return numerics.length(u, self.event_ndim)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """`a` itself."""
        return a

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """`egrad` itself."""
        return egrad

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` itself."""
        return v

    def point_defect(self, x: Tensor) -> Tensor:
        """0, (*batch, 1…)."""
        return torch.zeros_like(numerics.dot(x, x, self.event_ndim))

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal arrays."""
        return numerics.random_normal(shape, generator, dtype, device)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """x + u."""
        return x + u

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """y − x."""
        return y - x

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` itself."""
        return v

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` itself."""
        return v
