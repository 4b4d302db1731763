"""The PSI manifold: vectors modulo positive scaling, the weights in front of a normalization layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics
from .euclidean import Euclidean
from .quotient import ScalingQuotient
from .spherical import Spherical

__all__ = ["PSI"]


@dataclass(frozen=True)
class PSI(ScalingQuotient, Spherical):
    """(R^n ∖ 0) / positive scaling, (*batch, n): every multiple a·w, a > 0, is the same point.

    A network with a normalization layer behind `w` computes the same function for all of them. Metric,
    gradient and retraction are eqs. (6), (7), (8) of Yi (UAI 2022):

        ⟨u, v⟩_w = u·v / ‖w‖²,    gradient = ‖w‖² ∇L,    R_w(u) = w + u.

    A tangent vector at w is stored as its horizontal lift, orthogonal to w; the lift at a·w is a times
    the lift at w. The quotient is isometric to the unit sphere, with injectivity radius π.

    Example:
        >>> import torch
        >>> w = torch.tensor([[3.0, 4.0]])
        >>> PSI().riemannian_gradient(w, torch.tensor([[-0.5, 0.25]]))  # times ‖w‖² = 25
        tensor([[-12.5000,   6.2500]])
        >>> bool(PSI().same_point(w, 7.0 * w))
        True
    """

    event_ndim = 1
    row_kernel = "rays"

    @property
    def total_space(self) -> Euclidean:
        """R^n, of which the origin is left out."""
        return Euclidean(1)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """a − x⟨x, a⟩/‖x‖²: the horizontal part, (*batch, n)."""
        return torch.addcmul(a, x, numerics.dot(x, a, 1) / self.conformal_factor(x), value=-1.0)

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """As `project`: every ambient array is tangent to the total space."""
        return self.project(x, u)

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the great circle to x + u, (*batch, n)."""
        return self.retract_and_transport(x, u, v)[1]

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with x + u computed once."""
        y = self.retract(x, u)
        return y, self.transport_to(x, y, v)

    def point_defect(self, x: Tensor) -> Tensor:
        """0 for a finite nonzero vector, infinite for the others, (*batch, 1): they represent no point."""
        size = numerics.norm(x, 1)
        return torch.where(torch.isfinite(size) & (size > 0), 0.0, torch.inf).to(x.dtype)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal vectors: uniform on the quotient."""
        return self.total_space.random_point(*shape, generator=generator, dtype=dtype, device=device)
