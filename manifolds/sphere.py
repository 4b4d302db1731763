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

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0, 0.0]])
        >>> u = Sphere().project(x, torch.tensor([[5.0, torch.pi / 2, 0.0]]))  # tangent: orthogonal to x
        >>> Sphere().exp(x, u).round(decimals=6)
        tensor([[-0., 1., 0.]])
    """

    row_kernel = "vectors"

    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """1: every point has one representative."""
        return y.new_ones(y.shape[:-1] + (1,))
