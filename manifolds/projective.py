"""The real projective space: lines through the origin, as unit vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics
from .quotient import QuotientManifold
from .sphere import Sphere
from .spherical import UnitVectors

__all__ = ["ProjectiveSpace"]


@dataclass(frozen=True)
class ProjectiveSpace(QuotientManifold, UnitVectors):
    """Lines through the origin of R^n as unit vectors modulo sign, (*batch, n): x and −x are the same line.

    This is the Grassmann manifold of 1-dimensional subspaces, the G(1, n) of SGDG and Adam-G (Cho & Lee 2017), with
    vectors in place of n × 1 matrices; ``Grassmann(1)`` returns it. Metric, gradient, retraction and geodesics are
    those of the unit sphere. Injectivity radius π/2.

    >>> import torch
    >>> from retract.manifolds import ProjectiveSpace
    >>> lines = ProjectiveSpace()
    >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    >>> lines.dist(x, y).item(), bool(lines.same_point(x, y))
    (0.0, True)
    """

    injectivity_radius = math.pi / 2
    row_kernel = "lines"

    @property
    def total_space(self) -> Sphere:
        """The unit sphere."""
        return Sphere()

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """As `project`: no direction is vertical."""
        return self.project(x, u)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """g x for signs `g`, (*batch, 1)."""
        return x * g

    def random_group_element(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Signs, (*batch, 1)."""
        uniform = torch.rand(x.shape[:-1] + (1,), generator=generator, dtype=x.dtype, device=x.device)
        return torch.where(uniform < 0.5, -1.0, 1.0).to(x.dtype)

    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """The sign of ⟨x, y⟩, (*batch, 1)."""
        return torch.where(numerics.dot(x, y, 1) < 0, -1.0, 1.0).to(y.dtype)

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """±y, whichever is nearer to `x`, (*batch, n)."""
        return self.alignment(x, y) * y

    def canonical(self, x: Tensor) -> Tensor:
        """The representative whose coordinate of largest magnitude is positive, (*batch, n)."""
        largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
        return torch.where(largest < 0, -x, x)
