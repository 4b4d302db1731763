"""The Stiefel manifold with the metric of the ambient space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics, rotations
from .embedded import EmbeddedManifold
from .geodesic import ExponentialManifold

__all__ = ["Stiefel", "tall_error"]


def tall_error(manifold: object, event: Sequence[int]) -> str | None:
    """Why an n × p event cannot hold p orthonormal columns, or None if it can."""
    n, p = event
    return None if n >= p else f"{manifold!r} needs n ≥ p for orthonormal columns, not {n} × {p}; transpose it"


@dataclass(frozen=True)
class Stiefel(EmbeddedManifold, ExponentialManifold):
    """Matrices with orthonormal columns, (*batch, n, p), n ≥ p, with the metric of R^{n×p}.

    Geodesics are known in closed form (Edelman, Arias & Smith 1998, §2.2.2); logarithm and parallel
    transport are not, so the manifold offers none.

    Example:
        >>> import torch
        >>> x = Stiefel().random_point(5, 2, dtype=torch.float64)
        >>> y = Stiefel().retract(x, Stiefel().random_tangent(x))
        >>> torch.allclose(y.mT @ y, torch.eye(2, dtype=torch.float64))
        True
    """

    event_ndim = 2
    compact = True

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`, and n ≥ p."""
        return super().event_error(event) or tall_error(self, event)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """a − x sym(xᵀa), (*batch, n, p)."""
        return a - x @ numerics.symmetric(x.mT @ a)

    def nearest(self, a: Tensor) -> Tensor:
        """Orthonormal polar factor of `a`, (*batch, n, p); orthonormal columns stay as they are, bitwise."""
        return numerics.settle(a, self.point_defect(a), numerics.polar(a), a.shape[-2] * a.shape[-1])

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthonormal factor of the QR decomposition of x + u with positive diagonal of R, (*batch, n, p)."""
        moved = x + u
        return numerics.hold_still(u, numerics.positive_qr(moved), moved, 2)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """[x q] exp([[2a, −rᵀ], [r, 0]]) [1; 0] exp(−a) with a = xᵀu and u = x a + q r, (*batch, n, p).

        Both exponentials are of skew-symmetric matrices, so that the point is on the manifold for any length of `u`. q and r
        have no derivatives where u has fewer than p independent columns off `x`; derivatives are those of the same curve in
        the basis [x u], [x u] exp([[a, −s], [1, a]]) [1; 0] exp(−a) with s = uᵀu.
        """
        far, near = (numerics.shortened(u, limit, 2) for limit in numerics.longest(u.dtype))
        value = self._turned(x.detach(), far.detach())
        if not numerics.derivatives_wanted():
            return value
        return numerics.with_value(value, self._in_basis_of_tangents(x, near))

    def _turned(self, x: Tensor, u: Tensor) -> Tensor:
        p, a = x.shape[-1], x.mT @ u
        a = 0.5 * (a - a.mT)
        frame, turn = rotations.swing(x, u, 2.0 * a)
        y = x + frame @ turn[..., :p]
        return y + y @ rotations.turn(-a)

    def _in_basis_of_tangents(self, x: Tensor, u: Tensor) -> Tensor:
        """The blocks are balanced by c = ‖u‖, which changes no result."""
        p, a = x.shape[-1], x.mT @ u
        identity = torch.eye(p, dtype=x.dtype, device=x.device).expand_as(a)
        size = numerics.norm(u.detach(), 2)
        balance = torch.where(size > 0, size, 1.0)
        generator = torch.cat([torch.cat([a, -(u.mT @ u) / balance], -1), torch.cat([balance * identity, a], -1)], -2)
        column = numerics.matrix_exp(generator)[..., :p]
        return torch.cat([x, u / balance], -1) @ column @ numerics.matrix_exp(-a)

    def point_defect(self, x: Tensor) -> Tensor:
        """‖xᵀx − 1‖, (*batch, 1, 1)."""
        gram = x.mT @ x
        return numerics.norm(gram - torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device), 2)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform (Haar) on the manifold."""
        return numerics.random_normal(shape, generator, dtype, device, numerics.positive_qr)
