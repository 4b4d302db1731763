"""The spectral sphere: matrices of one spectral norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics
from .embedded import EmbeddedManifold

__all__ = ["SpectralSphere"]


@dataclass(frozen=True)
class SpectralSphere(EmbeddedManifold):
    """Matrices with the largest singular value σ₁ = R, (*batch, n, p), with the metric of R^{n×p}.

    R = `radius` √(n/p), so that `radius` is the operator norm between root mean squares: a layer of n outputs and p inputs gives
    outputs with at most `radius` times the root mean square of its inputs (Xie et al. 2026). With the singular vectors u₁, v₁

        T_x = {A : ⟨u₁ v₁ᵀ, A⟩ = 0},    R_x(A) = R (x + A)/σ₁(x + A).

    It is smooth where σ₁ is simple, which it is but on a set of measure 0; elsewhere one pair of singular vectors is taken. The derivatives
    of `project` with respect to x are those of a singular value decomposition, and need all singular values to be different.

    Example:
        >>> import torch
        >>> x = SpectralSphere().nearest(torch.diag(torch.tensor([3.0, 1.0])))
        >>> x.diagonal()
        tensor([1.0000, 0.3333])
        >>> SpectralSphere().project(x, torch.ones(2, 2))
        tensor([[0., 1.],
                [1., 1.]])

    Raises:
        GeometryError: a radius that is not positive.
    """

    radius: float = 1.0
    """The operator norm between root mean squares."""
    event_ndim = 2
    compact = True

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < float("inf"):
            raise GeometryError(f"radius={self.radius!r} is not a positive number")

    def size(self, x: Tensor) -> float:
        """R of points in the shape of `x`: `radius` √(n/p)."""
        n, p = x.shape[-2:]
        return float(self.radius * (n / p) ** 0.5)

    def normal(self, x: Tensor) -> Tensor:
        """u₁ v₁ᵀ, (*batch, n, p): the unit normal."""
        left, _, right = numerics.svd(x)
        return left[..., :, :1] @ right[..., :1, :]

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """a − u₁ v₁ᵀ ⟨u₁ v₁ᵀ, a⟩, (*batch, n, p)."""
        normal = self.normal(x)
        return a - normal * numerics.dot(normal, a, 2)

    def nearest(self, a: Tensor) -> Tensor:
        """R a/σ₁(a), (*batch, n, p), the point on the ray of `a`; a point stays as it is, bitwise."""
        largest = _largest(a)
        defect = (largest / self.size(a) - 1.0).abs()
        return numerics.settle(a, defect, a * (self.size(a) / largest), a.shape[-2] * a.shape[-1])

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """R (x + u)/σ₁(x + u), (*batch, n, p)."""
        moved = x + u
        return numerics.hold_still(u, moved * (self.size(x) / _largest(moved)), moved, 2)

    def point_defect(self, x: Tensor) -> Tensor:
        """|σ₁/R − 1|, (*batch, 1, 1)."""
        return (_largest(x) / self.size(x) - 1.0).abs()

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal matrices with σ₁ doubled, put on their rays: σ₁ is well apart from the others."""
        return numerics.random_normal(
            shape, generator, dtype, device, lambda a: self.nearest(a + _largest(a) * self.normal(a))
        )


def _largest(a: Tensor) -> Tensor:
    """σ₁, (*batch, 1, 1)."""
    return numerics.svd(a)[1][..., :1].unsqueeze(-1)
