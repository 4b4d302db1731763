"""Conformal manifolds: methods that are theorems when the metric is a multiple of the dot product on an open set."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from . import numerics
from .base import Manifold

__all__ = ["ConformalManifold"]


class ConformalManifold(Manifold):
    """Hypothesis: representatives fill an open subset of the ambient space, and at `x` the metric is the
    dot product divided by one positive scalar per point, `conformal_factor(x)`.

    Then the Riemannian gradient is the factor times the Euclidean one, and addition is a retraction. An
    update of such a manifold is a linear combination of arrays at hand, which the optimizers use to work
    in place: the gradient never needs an array of its own.
    """

    @abstractmethod
    def conformal_factor(self, x: Tensor) -> Tensor | float:
        """The factor λ in ⟨u, v⟩ₓ = u·v / λ(x), (*batch, 1…) or a number. Law: positive on points."""

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """u·v / λ(x), (*batch, 1…)."""
        return numerics.dot(u, v, self.event_ndim) / self.conformal_factor(x)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """‖u‖ / √λ(x), (*batch, 1…): as in `Manifold.norm`, without a square of `u`, which may overflow or vanish."""
        return numerics.length(u, self.event_ndim) / self.conformal_factor(x) ** 0.5

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """λ(x) `egrad`, (*batch, *event)."""
        return egrad * self.conformal_factor(x)

    def nearest(self, a: Tensor) -> Tensor:
        """`a` itself: its rows already represent points."""
        return a

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """x + u, (*batch, *event)."""
        return x + u
