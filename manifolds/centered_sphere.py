"""The unit sphere of vectors of mean zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from . import numerics
from .spherical import UnitVectors

__all__ = ["CenteredSphere"]


@dataclass(frozen=True)
class CenteredSphere(UnitVectors):
    """Vectors of norm 1 and mean 0 in R^n, (*batch, n), n ≥ 3: a great sphere of `Sphere`, with its metric and its geodesics.

    Nero keeps the rows of every weight there (Liu et al. 2021): a neuron whose weights have mean zero does not see a constant that
    is added to all of its inputs.

    Example:
        >>> import torch
        >>> CenteredSphere().nearest(torch.tensor([[1.0, 1.0, 4.0]]))
        tensor([[-0.4082, -0.4082,  0.8165]])
    """

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Spherical.event_error`; of two coordinates with mean 0 no direction is left."""
        error = super().event_error(event)
        if error is None and event[0] < 3:
            return "a point needs at least 3 coordinates: with 2 no direction is left to move in"
        return error

    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """1: every point has one representative."""
        return y.new_ones(y.shape[:-1] + (1,))

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """b − x⟨x, b⟩ with b = a − mean a, (*batch, n)."""
        return super().project(x, _centered(a))

    def nearest(self, a: Tensor) -> Tensor:
        """b/‖b‖ with b = a − mean a, (*batch, n); a point stays as it is, bitwise."""
        b = _centered(a)
        return numerics.settle(a, self.point_defect(a), b / numerics.norm(b, 1), a.shape[-1])

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """(x + b)/‖x + b‖ with b = u − mean u, (*batch, n)."""
        return super().retract(x, _centered(u))

    def point_defect(self, x: Tensor) -> Tensor:
        """|‖x‖ − 1| + √n |mean x|, (*batch, 1)."""
        return super().point_defect(x) + x.shape[-1] ** 0.5 * x.mean(-1, keepdim=True).abs()


def _centered(a: Tensor) -> Tensor:
    return a - a.mean(-1, keepdim=True)
