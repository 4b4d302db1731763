"""The Grassmann manifold of k-dimensional subspaces of R^n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics, rotations
from .embedded import EmbeddedManifold
from .geodesic import GeodesicManifold
from .projective import ProjectiveSpace
from .quotient import QuotientManifold
from .stiefel import Stiefel

__all__ = ["Grassmann"]


@dataclass(frozen=True, repr=False)
class Grassmann(QuotientManifold, GeodesicManifold, EmbeddedManifold):
    """k-dimensional subspaces of R^n, k > 1, stored as orthonormal bases modulo rotation of the basis, (*batch, n, k).

    The metric is that of the ambient space on horizontal lifts. Injectivity radius π/2.

    ``Grassmann(1)`` returns ``ProjectiveSpace()``, the same geometry for k = 1 with lines as unit vectors, (*batch, n),
    in place of n × 1 matrices: the G(1, n) of SGDG (Cho & Lee 2017).

    >>> from retract.manifolds import Grassmann
    >>> Grassmann(3), Grassmann(1)
    (Grassmann(3), ProjectiveSpace())

    Geodesics are functions of the k × k matrix uᵀu (`rotations.trigonometric`) rather than of the SVD of u:
    the same values, also differentiable where singular values coincide.

    Example:
        >>> import torch
        >>> x = Grassmann(2).random_point(5, 2, dtype=torch.float64)
        >>> turned = x @ torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # another basis of the same plane
        >>> bool(Grassmann(2).dist(x, turned) < 1e-7)
        True

    Raises:
        GeometryError: k is not a positive integer.
    """

    k: int = 1
    """Dimension of the subspaces."""
    event_ndim = 2
    compact = True
    injectivity_radius = math.pi / 2

    def __new__(cls, k: int = 1) -> Any:
        if not isinstance(k, int) or k < 1:
            raise GeometryError(f"Grassmann(k) needs the dimension of the subspaces as an integer k ≥ 1, not {k!r}")
        return ProjectiveSpace() if k == 1 else object.__new__(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return Grassmann, (self.k,)

    def __repr__(self) -> str:
        return f"Grassmann({self.k})"

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """As `project`, which removes the vertical part as well."""
        return self.project(x, u)

    def event_error(self, event: Sequence[int]) -> str | None:
        """As for Stiefel matrices with k columns."""
        error = super().event_error(event) or Stiefel().event_error(event)
        if error is None and event[1] != self.k:
            return f"a point of {self!r} is an n × {self.k} matrix, not {event[0]} × {event[1]}"
        return error

    @property
    def total_space(self) -> EmbeddedManifold:
        """Stiefel: orthonormal bases."""
        return Stiefel()

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """(1 − x xᵀ) a, (*batch, n, k)."""
        return a - x @ (x.mT @ a)

    def nearest(self, a: Tensor) -> Tensor:
        """As on the Stiefel manifold, (*batch, n, k)."""
        return self.total_space.nearest(a)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthonormal polar factor of x + u, (*batch, n, k)."""
        moved = x + u
        return numerics.hold_still(u, numerics.polar(moved), moved, 2)

    def point_defect(self, x: Tensor) -> Tensor:
        """‖xᵀx − 1‖, (*batch, 1, 1)."""
        return self.total_space.point_defect(x)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform on the manifold."""
        return self.total_space.random_point(*shape, generator=generator, dtype=dtype, device=device)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """x g for orthogonal `g`, (*batch, k, k)."""
        return x @ g

    def random_group_element(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Orthogonal matrices, (*batch, k, k)."""
        shape = x.shape[:-2] + (self.k, self.k)
        return self.random_point(*shape, generator=generator, dtype=x.dtype, device=x.device)

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """y polar(yᵀx), the solution of the orthogonal Procrustes problem, (*batch, n, k)."""
        return y @ numerics.polar(y.mT @ x)

    def canonical(self, x: Tensor) -> Tensor:
        """The basis of the subspace nearest to a fixed generic matrix, (*batch, n, k)."""
        return self.align(numerics.generic(x), x)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """x cos √A + u (sin √A/√A) with A = uᵀu, (*batch, n, k)."""
        far, near = (numerics.shortened(u, limit, 2) for limit in numerics.longest(u.dtype))
        frame, turn = self._turn(x, far)
        value = x + frame @ turn[..., : self.k]
        if not numerics.derivatives_wanted():
            return value
        cosine, sine, _ = rotations.trigonometric(near.mT @ near)
        return numerics.with_value(value, x @ cosine + near @ sine)

    def _turn(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The rotation along `u` as orthonormal columns [x q] and what it adds to a vector in their basis."""
        x, u = x.detach(), u.detach()
        return rotations.swing(x, u, torch.zeros_like(x.mT @ u))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """d g(c) with the aligned `y` = x c + d and g(cos θ) = θ / sin θ, (*batch, n, k).

        c is symmetric with the cosines of the principal angles θ as its eigenvalues, and d has the sines as its singular
        values.
        """
        facing = self.align(x, y)
        cosine = numerics.symmetric(x.mT @ facing)
        return self.project(x, facing) @ rotations.angle_over_sine(cosine)

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """v − (u (1 − cos √A)/A + x sin √A/√A) uᵀv with A = uᵀu, (*batch, n, k)."""
        far, near = (numerics.shortened(u, limit, 2) for limit in numerics.longest(u.dtype))
        frame, turn = self._turn(x, far)
        value = v + frame @ (turn[..., self.k :] @ (frame[..., self.k :].mT @ v))
        if not numerics.derivatives_wanted():
            return value
        _, sine, versed = rotations.trigonometric(near.mT @ near)
        return numerics.with_value(value, v - (near @ versed + x @ sine) @ (near.mT @ v))

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(v − (x + z)(1 + xᵀz)⁻¹ zᵀv) qᵀ with the aligned z = y q, (*batch, n, k): parallel transport along log(x, y),
        turned to the basis `y` at hand. As on the sphere; the cosines of xᵀz are not negative, so the inverse is mild."""
        turn = numerics.polar(y.mT @ x)
        facing = y @ turn
        beside = numerics.symmetric(x.mT @ facing) + torch.eye(self.k, dtype=x.dtype, device=x.device)
        return (v - (x + facing) @ (torch.linalg.inv(beside) @ (facing.mT @ v))) @ turn.mT
