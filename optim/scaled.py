"""`Scaled`: an array and a factor per point, multiplied out only where it must be."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..manifolds import Manifold

__all__ = ["Scaled"]


class Scaled(NamedTuple):
    """The tangent vectors `array` × `factor`, (points, n) × (points, 1) or a number.

    PSI gradients, clipped gradients and Adam steps are all of this form, so carrying the factor along
    saves one pass over memory and one temporary for each. `array` may be the user's own gradient or a
    state buffer: it is never written to through this class.
    """

    array: Tensor
    factor: Tensor | float = 1.0

    def times(self, factor: Tensor | float) -> Scaled:
        """The same vectors, longer by `factor` per point."""
        return Scaled(self.array, self.factor * factor)

    def length(self, manifold: Manifold, x: Tensor) -> Tensor:
        """Length in the metric, (points, 1): the factor enters after the root, for its square may overflow or vanish."""
        size = manifold.norm(x, self.array)
        return size if isinstance(self.factor, (int, float)) and self.factor == 1.0 else size * self.factor

    def add_to_(self, out: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """out ← out + weight × self, in place and without a temporary."""
        factor = self.factor * weight
        if isinstance(factor, (int, float)):
            return out.add_(self.array, alpha=factor)
        return out.addcmul_(self.array, factor)

    def tensor(self) -> Tensor:
        """The product; `array` itself where the factor is the number 1."""
        if isinstance(self.factor, (int, float)) and self.factor == 1.0:
            return self.array
        return self.array * self.factor
