"""Hyperbolic space as a sheet of a hyperboloid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import numerics, series
from .hyperbolic import Hyperbolic, shrinkage

__all__ = ["Lorentz"]


@dataclass(frozen=True)
class Lorentz(Hyperbolic):
    """The hyperboloid ⟨x, x⟩_L = 1/K, x₀ > 0, (*batch, n), n ≥ 2: hyperbolic space of curvature K < 0.

    Its dimension is n − 1. With the Minkowski product ⟨a, b⟩_L = −a₀b₀ + a₁b₁ + … and R = 1/√−K

        T_x = {u : ⟨x, u⟩_L = 0},    ⟨u, v⟩ₓ = ⟨u, v⟩_L,    R_x(u) = √(1 + ‖u‖²/R²) x + u.

    The first coordinate follows from the others, x₀ = √(R² + ‖x̄‖²) and u₀ = x̄·ū/x₀ for a tangent, and every map
    computes that of its result anew, so points and tangents stay where they belong. Rounding the coordinates of a point
    at the distance r from (R, 0, …) moves it by ε R sinh(r/R), and turns a tangent by ε cosh(r/R): far out the maps
    have that error, and tangents have no digits from r = R log(2/ε) on, 16.6 R in float32 and 36.7 R in float64.
    ``geoopt.Lorentz(k)`` is ``Lorentz(curvature=-1/k)``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0, 0.0]])
        >>> u = Lorentz().project(x, torch.tensor([[5.0, 2.0, 0.0]]))  # tangent: orthogonal to x
        >>> Lorentz().exp(x, u)
        tensor([[3.7622, 3.6269, 0.0000]])
        >>> Lorentz().dist(x, Lorentz().exp(x, u))
        tensor([[2.]])

    Raises:
        GeometryError: a curvature that is not a negative number.
    """

    reach = 20.0
    row_kernel = "sheet"

    def longest_step(self, dtype: torch.dtype) -> float:
        """A quarter of the exponents of `dtype`, R log(max)/4."""
        return 0.25 * math.log(torch.finfo(dtype).max) * self.radius

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`; a point has a coordinate besides the first."""
        error = super().event_error(event)
        if error is None and event[0] < 2:
            return "a point needs at least 2 coordinates, of which the first follows from the others"
        return error

    def _lifted(self, space: Tensor) -> Tensor:
        """The point with all coordinates but the first, (*batch, n − 1) → (*batch, n)."""
        return torch.cat([self._time(space), space], -1)

    def _time(self, space: Tensor) -> Tensor:
        return (self.radius**2 + numerics.dot(space, space, 1)).sqrt()

    def _flat(self, x: Tensor, u: Tensor) -> Tensor:
        """(R u₀/x₀, ū − x̄ u₀/x₀), (*batch, n): a vector of R^n, with products that are those of `u` in the metric.

        ‖ū‖² − u₀² loses the square of the digits that are lost here, since far out both terms are much larger; and so
        that these are not lost either, it is computed in float64 there, with u₀ = x̄·ū/x₀.
        """
        if numerics.exceeds(-x[..., :1], -_FAR * self.radius):
            return self._level(x[..., 1:], u[..., 1:], u[..., :1] / x[..., :1])
        space, tangent = (a[..., 1:].to(torch.float64) for a in (x, u))
        return self._level(space, tangent, self._rate(space, tangent)).to(u.dtype)

    def _rate(self, x: Tensor, u: Tensor) -> Tensor:
        """u₀/x₀ of the coordinates but the first."""
        return numerics.dot(x, u, 1) / (self.radius**2 + numerics.dot(x, x, 1))

    def _level(self, x: Tensor, u: Tensor, rate: Tensor) -> Tensor:
        return torch.cat([self.radius * rate, torch.addcmul(u, x, rate, value=-1.0)], -1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """−u₀v₀ + ū·v̄, (*batch, 1), for tangents."""
        flat = self._flat(x, u)
        return numerics.dot(flat, flat if v is u else self._flat(x, v), 1)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """√(‖ū‖² − u₀²), (*batch, 1), for a tangent, without its square."""
        return numerics.length(self._flat(x, u), 1)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """a + x⟨x, a⟩_L/R², (*batch, n), the projection that is orthogonal in ⟨·, ·⟩_L.

        Far out it multiplies rounding errors by cosh²(r/R), so what is tangent up to rounding stays as it is.
        """
        off = a[..., :1] - numerics.dot(x[..., 1:], a[..., 1:], 1) / x[..., :1]
        off = numerics.settle(0.0, off.abs() / numerics.norm(a, 1), off, a.shape[-1])
        return torch.addcmul(a, x, off * x[..., :1], value=-(self.radius**-2))

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """J e + x (x·e)/R², (*batch, n), the projection of J e = (−e₀, e₁, …)."""
        share = numerics.dot(x, egrad, 1) * self.radius**-2
        return _tangent(x[..., :1], x[..., 1:], torch.addcmul(egrad[..., 1:], x[..., 1:], share))

    def nearest(self, a: Tensor) -> Tensor:
        """(√(R² + ‖ā‖²), ā), (*batch, n), the point above or below `a`; a point stays as it is, bitwise."""
        time = self._time(a[..., 1:])
        time = numerics.settle(a[..., :1], (a[..., :1] / time - 1.0).abs(), time, a.shape[-1])
        return torch.cat([time, a[..., 1:]], -1)

    def point_defect(self, x: Tensor) -> Tensor:
        """|x₀/√(R² + ‖x̄‖²) − 1|, (*batch, 1)."""
        return (x[..., :1] / self._time(x[..., 1:]) - 1.0).abs()

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """exp of normal tangents at (R, 0, …), R long in the root mean square."""

        def place(a: Tensor) -> Tensor:
            origin = torch.zeros_like(a)
            origin[..., 0] = self.radius
            steps = a * (self.radius * max(a.shape[-1] - 1, 1) ** -0.5)
            steps[..., 0] = 0.0
            return self.exp(origin, steps)

        return numerics.random_normal(shape, generator, dtype, device, place)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """√(1 + ‖u‖²/R²) x + u, (*batch, n)."""
        return self._retracted(x, u, self._flat(x, u))[0]

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both; the tangent is v + ⟨u, v⟩ₓ/R² (x + u/(1 + α)) with α = √(1 + ‖u‖²/R²)."""
        flat = self._flat(x, u)
        y, root = self._retracted(x, u, flat)
        share = numerics.dot(flat, self._flat(x, v), 1) * self.radius**-2
        return y, _carried(x, u, v, y, share, share / (1.0 + root))

    def _retracted(self, x: Tensor, u: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        square = numerics.dot(flat, flat, 1) * self.radius**-2
        root = (1.0 + square).sqrt()
        return self._moved(x, u, square, root * x[..., 1:] + u[..., 1:]), root

    def _moved(self, x: Tensor, u: Tensor, square: Tensor, space: Tensor) -> Tensor:
        """The point with these coordinates but the first, and x itself where the `square` of u is 0."""
        time = numerics.hold_still(square, self._time(space), x[..., :1] + u[..., :1], 1)
        return torch.cat([time, space], -1)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """cosh θ · x + (sinh θ / θ) u with θ = ‖u‖ₓ/R, (*batch, n).

        θ is no longer than a quarter of the exponents of the dtype, 22 in float32 and 177 in float64, and log x₀ + θ no
        more than half of them, so that the squares fit.
        """
        u, flat = self._shortened(x, u)
        square = numerics.dot(flat, flat, 1) * self.radius**-2
        cosine, sinc = series.hyperbolic(square, 0, 1)
        return self._exponential(x, u, square, cosine, sinc)

    def _exponential(self, x: Tensor, u: Tensor, square: Tensor, cosine: Tensor, sinc: Tensor) -> Tensor:
        return self._moved(x, u, square, torch.addcmul(cosine * x[..., 1:], u[..., 1:], sinc))

    def _shortened(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """`u` as `exp` takes it, with `_flat` of it; that of the rounded product may be much longer far out."""
        flat, longest = self._flat(x, u), self.longest_step(u.dtype)
        room = 2.0 * longest - x.detach()[..., :1].log() * self.radius
        limit = room.clamp(min=torch.finfo(u.dtype).tiny * self.radius, max=longest)
        factor = (limit / numerics.norm(flat.detach(), 1)).clamp(max=1.0)
        return u * factor, flat * factor

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """v + ⟨u, v⟩ₓ/R² ((sinh θ/θ) x + ((cosh θ − 1)/θ²) u), (*batch, n)."""
        u, flat = self._shortened(x, u)
        square = numerics.dot(flat, flat, 1) * self.radius**-2
        cosine, sinc, versine = series.hyperbolic(square, 0, 1, 2)
        share = numerics.dot(flat, self._flat(x, v), 1) * self.radius**-2
        y = self._exponential(x, u, square, cosine, sinc)
        return _carried(x, u, v, y, share * sinc, share * versine)

    def _apart(self, x: Tensor, y: Tensor) -> _Apart:
        """The geometry of two points, in float64.

        Far from the origin it is differences of the coordinates that say how near two points are, and tangential ones
        count cosh(r/R) times as much as radial ones.
        """
        x, y = (a[..., 1:].to(torch.float64) for a in (x, y))
        time, other = self._time(x), self._time(y)
        chord = y - x
        lapse = numerics.dot(chord, x + y, 1) / (time + other)
        # ⟨y − x, y − x⟩_L/2 = R² (cosh(d/R) − 1) = x₀y₀ − x̄·ȳ − R². The terms cancel but where the points are on
        # opposite sides, and multiplied by their sum it is a sum of squares, x₀² times that of the tangent at x with
        # the space coordinates ȳ − x̄.
        product, spatial = time * other, numerics.dot(x, y, 1)
        total = product + spatial + self.radius**2
        flat = self._level(x, chord, self._rate(x, chord))
        square = numerics.dot(flat, flat, 1)
        beside = total > 0.5 * product
        half = torch.where(
            beside, time * square * (time / torch.where(beside, total, 1.0)), product - spatial - self.radius**2
        )
        return _Apart(x, y, time, other, chord, lapse, half * (0.5 * self.radius**-2))

    def half_chord(self, x: Tensor, y: Tensor) -> Tensor:
        """√⟨x − y, x − y⟩_L / 2R, (*batch, 1), computed in float64."""
        square = self._apart(x, y).square.to(torch.promote_types(x.dtype, torch.float32))
        return numerics.safe_sqrt(square).to(x.dtype)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """(θ/sinh θ)(y − cosh θ · x) with θ = dist(x, y)/R, (*batch, n), computed in float64."""
        a = self._apart(x, y)
        space = shrinkage(a.square) * torch.addcmul(a.chord, a.x, a.square, value=-2.0)
        return _tangent(a.time, a.x, space).to(x.dtype)

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """v + ⟨y, v⟩_L/(R² − ⟨x, y⟩_L) (x + y), (*batch, n), computed in float64."""
        a = self._apart(x, y)
        rate, lapse = v[..., :1] / a.time, a.lapse / a.time
        space = v[..., 1:].to(torch.float64)
        along, across = (torch.addcmul(b, a.x, c, value=-1.0) for b, c in ((a.chord, lapse), (space, rate)))
        drop = 2.0 * self.radius**2 * a.square  # −⟨x, y − x⟩_L
        share = numerics.dot(along, across, 1) + rate * (self.radius**2 * lapse - drop)
        moved = torch.addcmul(space, a.x + a.y, share / (2.0 * self.radius**2 + drop))
        return _tangent(a.other, a.y, moved).to(v.dtype)


_FAR = 16.0
"""Points with x₀ below this, in units of R, have tangents that have lost no more than a digit."""


class _Apart(NamedTuple):
    """Of two points, in float64: x̄, ȳ (all coordinates but the first), x₀, y₀, ȳ − x̄, y₀ − x₀ and sinh²(d/2R)."""

    x: Tensor
    y: Tensor
    time: Tensor
    other: Tensor
    chord: Tensor
    lapse: Tensor
    square: Tensor


def _tangent(time: Tensor, x: Tensor, space: Tensor) -> Tensor:
    """The tangent at the point (`time`, `x`) with all coordinates but the first, (*batch, n − 1) → (*batch, n)."""
    return torch.cat([numerics.dot(x, space, 1) / time, space], -1)


def _carried(x: Tensor, u: Tensor, v: Tensor, y: Tensor, on_x: Tensor, on_u: Tensor) -> Tensor:
    """v + on_x · x + on_u · u, as a tangent at `y`."""
    space = torch.addcmul(torch.addcmul(v[..., 1:], x[..., 1:], on_x), u[..., 1:], on_u)
    return _tangent(y[..., :1], y[..., 1:], space)
