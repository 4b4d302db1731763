"""Embedded manifolds: methods that are theorems when the metric is the ambient dot product."""

from __future__ import annotations

from torch import Tensor

from . import numerics
from .base import Manifold

__all__ = ["EmbeddedManifold"]


class EmbeddedManifold(Manifold):
    """Hypothesis: tangent vectors are ambient arrays, the metric is their dot product, and `project` is
    the orthogonal projection onto them.

    Then the Riemannian gradient is the projection of the Euclidean one, and projecting at the new point
    is a vector transport (Absil, Mahony & Sepulchre 2008, eqs. 3.37 and 8.10). Quotients whose
    horizontal lifts carry the ambient dot product satisfy the hypothesis with "horizontal" for "tangent".
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Ambient dot product, (*batch, 1…)."""
        return numerics.dot(u, v, self.event_ndim)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """‖u‖, (*batch, 1…): as in `Manifold.norm`, without a square of `u`, which may overflow or vanish."""
        return numerics.length(u, self.event_ndim)

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """Orthogonal projection of `egrad`, (*batch, *event)."""
        return self.project(x, egrad)

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Orthogonal projection of `v` at ``retract(x, u)``, (*batch, *event)."""
        return self.retract_and_transport(x, u, v)[1]

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with the new point computed once."""
        y = self.retract(x, u)
        return y, self.project(y, v)
