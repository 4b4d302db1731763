"""Hyperbolic space as a ball, in which angles are those of the ambient space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import numerics, series
from .conformal import ConformalManifold
from .hyperbolic import Hyperbolic, shrinkage

__all__ = ["PoincareBall"]


@dataclass(frozen=True)
class PoincareBall(Hyperbolic, ConformalManifold):
    """The ball ‖x‖ < R, (*batch, n): hyperbolic space of dimension n and curvature K = −1/R² < 0.

        ⟨u, v⟩ₓ = 4 u·v / g(x)²,    g(x) = 1 − ‖x‖²/R².

    A point at the distance r from 0 has ‖x‖ = R tanh(r/2R), which is 1 − 2 exp(−r/R) far out: floats end at the
    distance R log(1/ε), 15.9 R in float32 and 36.0 R in float64, and what is farther out is put there. Rounding the
    coordinates of a point moves it by ε R exp(r/R)/2. `Lorentz` holds points at 20 R in float32.
    ``geoopt.PoincareBall(c)`` is ``PoincareBall(curvature=-c)``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0]])
        >>> PoincareBall().exp(x, torch.tensor([[1.0, 0.0]]))  # the metric is 4 u·v at 0, so this is 2 long
        tensor([[0.7616, 0.0000]])
        >>> PoincareBall().dist(x, torch.tensor([[0.76159416, 0.0]]))
        tensor([[2.]])

    Raises:
        GeometryError: a curvature that is not a negative number.
    """

    reach = 15.0
    row_kernel = "ball"

    def longest_step(self, dtype: torch.dtype) -> float:
        """2R log(1/ε), from one end of the floats to the other."""
        return -2.0 * math.log(torch.finfo(dtype).eps) * self.radius

    def gap(self, x: Tensor) -> Tensor:
        """1 − ‖x‖²/R², (*batch, 1), to its last digits, in float64 if need be.

        Near the boundary it is what says where a point is. Outside of the ball and closer to the boundary than rounding
        it is ε of the dtype, so that no map divides by 0.
        """
        gap = 1.0 + self.curvature * numerics.dot(x, x, 1)
        if numerics.exceeds(gap, _INSIDE):
            return gap
        return self._exact_gap(x).clamp(min=torch.finfo(x.dtype).eps)

    def _exact_gap(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:  # products of such numbers are exact in float64
            wide = x.to(torch.float64)
            return 1.0 + self.curvature * numerics.dot(wide, wide, 1)
        # Coordinates in units of 2⁻¹² R have exact squares and sums, also times 26 bits of K; what remains is small.
        grid = 1.5 * 2.0 ** (52 - 12 + math.ceil(math.log2(self.radius)))
        coarse = (x + grid) - grid
        rest = x - coarse
        mantissa, exponent = math.frexp(self.curvature)
        scale = math.ldexp(round(math.ldexp(mantissa, 26)), exponent - 26)
        square = (coarse * coarse).sum(-1, keepdim=True)
        small = (self.curvature - scale) * square + self.curvature * numerics.dot(rest, x + coarse, 1)
        return (1.0 + scale * square) + small

    def conformal_factor(self, x: Tensor) -> Tensor:
        """λ = g(x)²/4 in ⟨u, v⟩ₓ = u·v / λ, (*batch, 1)."""
        return (0.5 * self.gap(x)).square().to(x.dtype)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """`a` itself: every array is tangent."""
        return a

    def nearest(self, a: Tensor) -> Tensor:
        """`a`, or what is on its ray at ‖x‖ = (1 − 2ε) R, if `a` is farther out, (*batch, n)."""
        return self._placed(a)[0]

    def _placed(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """`nearest` and its gap in the dtype of `a`."""
        least, gap = 2.0 * torch.finfo(a.dtype).eps, self.gap(a)
        if not numerics.exceeds(gap, least):
            inside = gap > least
            size = numerics.norm(torch.where(inside, 1.0, a), 1)
            a = torch.where(inside, a, a * ((1.0 - least) * self.radius / size))
            gap = torch.where(inside, gap, 2.0 * least)
        return a, gap.to(a.dtype)

    def point_defect(self, x: Tensor) -> Tensor:
        """max(‖x‖/R − 1, 0), (*batch, 1)."""
        return (numerics.norm(x, 1) / self.radius - 1.0).clamp(min=0.0)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """exp of normal tangents at 0, R long in the root mean square."""

        def place(a: Tensor) -> Tensor:
            return self.exp(torch.zeros_like(a), a * (0.5 * self.radius * max(a.shape[-1], 1) ** -0.5))

        return numerics.random_normal(shape, generator, dtype, device, place)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """As `exp` with sinh θ = ‖u‖ₓ/R: the point at R asinh(‖u‖ₓ/R) on the geodesic of `u`, (*batch, n)."""
        return self._retracted(x, u).y

    def _retracted(self, x: Tensor, u: Tensor) -> _Step:
        gap = self.gap(x).to(x.dtype)
        square, share = numerics.dot(u, u, 1), numerics.dot(x, u, 1)
        sines = square * ((2.0 / self.radius) / gap).square()
        half = 0.5 * sines / (1.0 + (1.0 + sines).sqrt())

        def area() -> Tensor:
            found = (1.0 - gap) * square * self.radius**2 - share.square()
            clamped: Tensor = numerics.with_value(found.clamp(min=0.0), found)
            return clamped

        return self._along(x, u, gap, half, square, share, area)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """x + (s u + g σ x)/D with g = g(x), θ = ‖u‖ₓ/R, s = sinh θ/θ and σ = sinh²(θ/2), (*batch, n), where

            D = cosh²(θ/2) + 2 s x·u/(g R²) + σ ‖x‖²/R².

        It is the geodesic of the hyperboloid seen from (−R, 0, …), or the Möbius sum of x and R tanh(θ/2) u/‖u‖,
        without the cancellation of its terms far out. Steps longer than from one end of the floats to the other are
        shortened to that.
        """
        return self._exponential(x, u).y

    def _exponential(self, x: Tensor, u: Tensor) -> _Step:
        u = u * (self.longest_step(u.dtype) / self.norm(x.detach(), u.detach())).clamp(max=1.0)
        gap = self.gap(x).to(x.dtype)
        square, share = numerics.dot(u, u, 1), numerics.dot(x, u, 1)
        angle = square * ((2.0 / self.radius) / gap).square()
        sinc, versine = series.hyperbolic(angle, 1, 2)
        u, square, share = sinc * u, sinc.square() * square, sinc * share

        def area() -> Tensor:  # without cancellation: it is that of x + k u and u for every number k
            beside = torch.addcmul(x, u, (share / torch.where(square > 0, square, 1.0)).detach(), value=-1.0)
            return numerics.dot(beside, beside, 1) * square - numerics.dot(beside, u, 1).square()

        return self._along(x, u, gap, 0.5 * versine * angle, square, share, area)

    def _along(
        self,
        x: Tensor,
        u: Tensor,
        gap: Tensor,
        half: Tensor,
        square: Tensor,
        share: Tensor,
        area: Callable[[], Tensor],
    ) -> _Step:
        """x + (u + g σ x)/D for u of length g R sinh θ/2, with σ = `half`, ‖u‖² = `square`, x·u = `share` and
        ‖x‖²‖u‖² − (x·u)² = `area`, which short steps do not need.

        With P = 1 + σ (2 − g) and B = 2 x·u/(g R²) it is D = P + B. Where B < 0 these cancel, and not in
        D = (P² − B²)/(P − B), P² − B² = (1 + g σ)² + 4 (‖x‖²‖u‖² − (x·u)²)/(g R²)².
        """
        scale, shift = (2.0 / self.radius**2) / gap, gap * half
        total, drift = torch.add(1.0 - shift, half, alpha=2.0), share * scale
        if not numerics.exceeds(-half, -0.1):
            product = (1.0 + shift).square() + area() * scale.square()
            larger = total + torch.where(drift < 0, -drift, drift)  # not abs, which has no slope at 0
            total = torch.where(drift < 0, product / larger, larger)
        else:
            total = total + drift
        y, other = torch.addcmul(x, torch.addcmul(u, x, shift), 1.0 / total), gap / total
        if not numerics.exceeds(other, _INSIDE):
            y, other = self._placed(y)
        return _Step(x, u, y, gap, other, square, share, half, total)

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both; the tangent as in `transport_to`, with products at hand."""
        step = self._retracted(x, u)
        return step.y, self._carried(step, v)

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """As `transport_to`, to ``exp(x, u)``, (*batch, n)."""
        return self._carried(self._exponential(x, u), v)

    def _carried(self, step: _Step, v: Tensor) -> Tensor:
        """`v` carried along a step, y − x = (u + k x)/D, with ‖y − x‖² = R² σ g(x) g(y)."""
        summed = torch.addcmul(step.gap + step.other, step.half * step.gap, step.other)
        tangent = (2.0 / self.radius**2) / (summed * step.total)
        scale = summed / (step.total * step.gap.square() * (1.0 + step.half) * self.radius**2)
        return self._turned(step.x, step.u, v, tangent, scale, step.gap, step.other, step.share, step.square)

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """g(y)/g(x) times `v`, turned in the plane of x and y, (*batch, n).

        With d = y − x and S a = x (d·a) − d (x·a) the rotation is (1 − τS)⁻¹(1 + τS), where τ √(‖x‖²‖d‖² − (x·d)²) is
        the tangent of half the angle, τ = 1/(R² − x·y) = 2/((g(x) + g(y)) R² + ‖d‖²). It is Ungar's gyration, of which
        the terms cancel far out.
        """
        own, other = (self.gap(a).to(v.dtype) for a in (x, y))
        d = y - x
        square, unit = numerics.dot(d, d, 1), self.radius**2
        summed = (own + other) * unit + square
        scale = summed * other / (own * unit * (own * other * unit + square))
        return self._turned(x, d, v, 2.0 / summed, scale, own, other, numerics.dot(x, d, 1), square)

    def _turned(
        self,
        x: Tensor,
        u: Tensor,
        v: Tensor,
        tangent: Tensor,
        scale: Tensor,
        own: Tensor,
        other: Tensor,
        share: Tensor,
        square: Tensor,
    ) -> Tensor:
        """`v` times g(y)/g(x) = `other`/`own` and turned in the plane of `x` and `u`, with τ = `tangent`, x·u =
        `share`, ‖u‖² = `square` and `scale` = 2τ/(1 + τ² (‖x‖²‖u‖² − (x·u)²)) g(y)/g(x)."""
        xx, xv, uv = (1.0 - own) * self.radius**2, numerics.dot(x, v, 1), numerics.dot(u, v, 1)
        on_x = torch.addcmul(uv, tangent, torch.addcmul(share * uv, square, xv, value=-1.0))
        on_u = torch.addcmul(xv, tangent, torch.addcmul(xx * uv, share, xv, value=-1.0))
        return torch.addcmul(torch.addcmul(v * (other / own), x, scale * on_x), u, scale * on_u, value=-1.0)

    def half_chord(self, x: Tensor, y: Tensor) -> Tensor:
        """‖x − y‖/(R √(g(x) g(y))), (*batch, 1)."""
        scale = (self.gap(x) * self.gap(y)).sqrt() * self.radius
        return numerics.length(y - x, 1) / scale.to(x.dtype)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """asinh h/(h √(1 + h²)) (g(x) d − x ‖d‖²/R²)/g(y), (*batch, n), with d = y − x and h = `half_chord`."""
        own, other = self.gap(x), self.gap(y)
        d = y - x
        dd = numerics.dot(d, d, 1)
        square = (dd * self.radius**-2 / (own * other)).to(x.dtype)
        chord = torch.addcmul(own.to(x.dtype) * d, x, dd, value=-(self.radius**-2))
        return shrinkage(square) * chord / other.to(x.dtype)


_INSIDE = 0.1
"""Gaps above this have lost no more than a digit."""


class _Step(NamedTuple):
    """A step from x to y = x + (u + g σ x)/D, with the gaps of both, ‖u‖², x·u, σ and D."""

    x: Tensor
    u: Tensor
    y: Tensor
    gap: Tensor
    other: Tensor
    square: Tensor
    share: Tensor
    half: Tensor
    total: Tensor
