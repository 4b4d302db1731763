"""The vocabulary of quotients: points are classes, stored as representatives."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from . import numerics
from .base import Manifold
from .conformal import ConformalManifold

__all__ = ["QuotientManifold", "ScalingQuotient"]


class QuotientManifold(Manifold):
    """Classes of a total space under a group that acts linearly on arrays.

    A point is stored as one representative, a tangent vector as its horizontal lift there. Extra laws:
    the metric is invariant and every map is equivariant under the action (points and lifts transform
    alike), and the gradient of an invariant function is horizontal before any projection.
    """

    @property
    @abstractmethod
    def total_space(self) -> Manifold:
        """The manifold whose points are the representatives."""

    @abstractmethod
    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """Horizontal part of the tangent `u` of the total space, (*batch, *event)."""

    @abstractmethod
    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """The group element `g` applied to representatives, or to lifts at them, (*batch, *event)."""

    @abstractmethod
    def random_group_element(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One random group element per point of `x`, in the shape that `act` takes."""

    @abstractmethod
    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """The representative of y's class that is nearest to `x`'s, (*batch, *event)."""

    @abstractmethod
    def canonical(self, x: Tensor) -> Tensor:
        """One fixed representative per class, (*batch, *event). Law: constant on classes."""

    def vertical(self, x: Tensor, u: Tensor) -> Tensor:
        """Part of `u` along the class, which the quotient does not see, (*batch, *event)."""
        return u - self.horizontal(x, u)

    def same_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether `x` and `y` represent the same class up to `numerics.tolerance`, (*batch, 1…), bool."""
        gap = numerics.norm(self.align(x, y) - x, self.event_ndim)
        return gap <= numerics.tolerance(x.dtype) * numerics.norm(x, self.event_ndim)


class ScalingQuotient(ConformalManifold, QuotientManifold):
    """A quotient by positive scaling of whole points, with the scale-invariant metric u·v / ‖x‖².

    The norm of a representative means nothing in the quotient, and updates let it drift. So optimizers
    may apply the group along the way: `radius` is what they watch, `act` is how they bring it back.
    """

    def conformal_factor(self, x: Tensor) -> Tensor:
        """‖x‖², (*batch, 1…)."""
        return self.radius(x).square()

    def radius(self, x: Tensor) -> Tensor:
        """Norm of the representative, (*batch, 1…). Law: radius(act(g, x)) = g radius(x).

        A zero row, which is no point, gets √tiny instead: then it does not become NaN. Rows whose squares do not fit
        the dtype (norms above 1e19 in float32) have no conformal factor in it.
        """
        return numerics.norm(x, self.event_ndim).clamp(min=numerics.root_tiny(x.dtype))

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """‖u‖ / ‖x‖, (*batch, 1…): as in `Manifold.norm`, without a square, which may overflow or vanish."""
        return numerics.length(u, self.event_ndim) / self.radius(x)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """g x for positive `g` of shape (*batch, 1…)."""
        return x * g

    def random_group_element(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Positive factors, log-uniform in [1e-4, 1e4], (*batch, 1…)."""
        shape = x.shape[: x.ndim - self.event_ndim] + (1,) * self.event_ndim
        uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return 10.0 ** (8.0 * uniform - 4.0)

    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """‖x‖/‖y‖, (*batch, 1…): the factor that brings `y` to the norm of `x`."""
        return self.radius(x) / self.radius(y)

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` scaled to the norm of `x`, (*batch, *event)."""
        return self.alignment(x, y) * y

    def canonical(self, x: Tensor) -> Tensor:
        """The representative of norm 1, (*batch, *event)."""
        return x / self.radius(x)
