"""The unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .spherical import UnitVectors

__all__ = ["Sphere"]


@dataclass(frozen=True)
class Sphere(UnitVectors):
    """Vectors of norm 1 in R^n, (*batch, n), with the metric of R^n. Injectivity radius π.

    On the rows of a matrix this is what other libraries call the oblique manifold.
    """

    row_kernel = "vectors"

    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """1: every point has one representative."""
        return y.new_ones(y.shape[:-1] + (1,))
