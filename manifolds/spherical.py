"""Great circles: the closed forms that the sphere, the lines and the PSI manifold have in common.

All three look locally like the unit sphere through x ↦ x/‖x‖, and the forms below hold at any
representative, because they use only the metric and a factor that lines two representatives up.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from . import numerics, series
from .embedded import EmbeddedManifold
from .geodesic import GeodesicManifold

__all__ = ["Spherical", "UnitVectors"]


class Spherical(GeodesicManifold):
    """Hypothesis: points are vectors, and x ↦ x/‖x‖ is a local isometry to the unit sphere."""

    event_ndim = 1
    compact = True
    injectivity_radius = math.pi

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`; a vector of one coordinate has nowhere to go."""
        error = super().event_error(event)
        if error is None and event[0] < 2:
            return "a point needs at least 2 coordinates: with 1 no direction is left to move in"
        return error

    def conformal_factor(self, x: Tensor) -> Tensor | float:
        """The factor λ in ⟨u, v⟩ₓ = u·v / λ(x), (*batch, 1) or a number: here 1, the metric of the ambient space."""
        return 1.0

    @abstractmethod
    def alignment(self, x: Tensor, y: Tensor) -> Tensor:
        """Factor f, (*batch, 1), for which f·y is the representative of y's point nearest to `x`."""

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """cos θ · x + (sin θ / θ) u with θ = ‖u‖ₓ, (*batch, n)."""
        u = self._shortened(x, u)
        cosine, sinc = series.circular(self.inner(x, u, u), 0, 1)
        return torch.addcmul(cosine * x, u, sinc)

    def _shortened(self, x: Tensor, u: Tensor) -> Tensor:
        """`u`, no longer than for an angle that has digits."""
        return numerics.shortened(u, self.conformal_factor(x.detach()) ** 0.5 * numerics.longest(u.dtype)[0], 1)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """dist(x, y) times the unit tangent that points from `x` to `y`, (*batch, n); 0 where they coincide. On the cut
        locus every direction is as short, and rounding decides which comes out, or none, 0.

        The part of f y off `x` has length sin θ. Near `x` it is multiplied by θ / sin θ = (1 + t²) arctan t / t, a series
        in t² = tan²(θ/2) = ‖x − f y‖² / ‖x + f y‖², whose derivatives need no direction.
        """
        facing = self.alignment(x, y) * y
        part = self.project(x, facing - x)
        apart, together = (numerics.dot(a, a, 1) for a in (x - facing, x + facing))
        near = apart < _NEAR * together
        tangent = torch.where(near, apart, 0.0) / torch.where(near, together, 1.0)
        short = (1.0 + tangent) * series.polynomial(tangent, _ARCTANGENT)
        far = (torch.where(near, 1.0, square) for square in (apart, together, self.inner(x, part, part)))
        half_sine, half_cosine, length = (numerics.safe_sqrt(square) for square in far)
        long = 2.0 * torch.atan2(half_sine, half_cosine) / torch.where(length > 0, length, 1.0)
        return part * torch.where(near, short, long)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Angle 2 atan2(‖x − f y‖, ‖x + f y‖), (*batch, 1): accurate also for tiny angles and near π.

        Where the points coincide it has no derivative: the first comes out as 0, the shortest subgradient. Its square has
        all of them: ``dist(x, y)**2 / 2`` has the gradient ``-log(y, x)``, and the metric as its Hessian there.
        """
        facing = self.alignment(x, y) * y
        return 2.0 * torch.atan2(numerics.length(x - facing, 1), numerics.norm(x + facing, 1))

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """v − ⟨u, v⟩ₓ (((1 − cos θ)/θ²) u + (sin θ/θ) x), (*batch, n)."""
        u = self._shortened(x, u)
        sinc, versine = series.circular(self.inner(x, u, u), 1, 2)
        share = -self.inner(x, u, v)
        along = torch.addcmul(v, u, share * versine)
        return torch.addcmul(along, x, share * sinc)

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(v − ⟨z, v⟩ₓ (x + z)/(1 + ⟨x, z⟩ₓ)) / f with z = f y, (*batch, n).

        At the antipode, z = −x up to rounding, every great circle is as short. What is orthogonal to all of them is
        carried unchanged by each; so is all of `v` then, but for its part along z: (v − ⟨z, v⟩ₓ z) / f, which is linear
        and no longer than `v`.
        """
        factor = self.alignment(x, y)
        facing = factor * y
        middle, scale = x + facing, self.conformal_factor(x)
        beside = scale + numerics.dot(x, facing, 1)
        share = beside / scale
        if not numerics.exceeds(share, _FACING):
            # 1 + ⟨x, z⟩ cancels where z is nearly −x; ‖x + z‖²/2, the same for points of one length, does not.
            share = torch.where(share > _FACING, share, 0.5 * numerics.dot(middle, middle, 1) / scale)
            antipodal = share <= torch.finfo(x.dtype).eps ** 1.5
            middle, beside = torch.where(antipodal, facing, middle), torch.where(antipodal, scale, share * scale)
        return (v - numerics.dot(facing, v, 1) / beside * middle) / factor


# transport_to: where 1 + ⟨x, z⟩ is larger, it has not cancelled.
_FACING = 0.01
# log: below this tan²(θ/2), θ = 0.2, ten terms of arctan t / t are exact, above it sin θ may be divided by.
_NEAR = 0.01
_ARCTANGENT = [(-1.0) ** j / (2 * j + 1) for j in range(12)]


class UnitVectors(Spherical, EmbeddedManifold):
    """Points stored as vectors of norm 1, with the metric of the ambient space."""

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """a − x⟨x, a⟩, (*batch, n)."""
        return torch.addcmul(a, x, numerics.dot(x, a, 1), value=-1.0)

    def nearest(self, a: Tensor) -> Tensor:
        """a/‖a‖, (*batch, n); a vector whose norm is 1 up to rounding stays as it is, bitwise."""
        size = numerics.norm(a, 1)
        return a / numerics.settle(1.0, (size - 1.0).abs(), size, a.shape[-1])

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """(x + u)/‖x + u‖, (*batch, n)."""
        moved, length = x + u, numerics.root_of_squares(u, 1)
        if numerics.readable(length) and numerics.squares_fit(length):
            return moved / numerics.root_of_squares(moved, 1)
        return moved / numerics.hold_still(u, numerics.norm(moved, 1), 1.0, 1)

    def point_defect(self, x: Tensor) -> Tensor:
        """|‖x‖ − 1|, (*batch, 1)."""
        return (numerics.norm(x, 1) - 1.0).abs()

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform on the unit sphere."""
        return numerics.random_normal(shape, generator, dtype, device, self.nearest)
