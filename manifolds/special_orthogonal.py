"""Rotations with the metric of the ambient space, which is bi-invariant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics, rotations
from .embedded import EmbeddedManifold
from .geodesic import GeodesicManifold

__all__ = ["SpecialOrthogonal"]

# Each cubes the error of half a rotation: 1e-4, as of an angle of π − 1e-12, becomes rounding.
_REFINEMENTS = 2
# The largest singular value of a tangent up to which Newton's steps take less time than a decomposition.
_LONGEST = 2.8


@dataclass(frozen=True)
class SpecialOrthogonal(EmbeddedManifold, GeodesicManifold):
    """Rotations, (*batch, n, n), xᵀx = 1 and det x = 1, n ≥ 2, with the metric of R^{n×n}. Tangents are x a with skew-symmetric a.

    A rotation by the angles θ₁, θ₂, … in orthogonal planes is at distance √(2 Σ θᵢ²) from 1: √2 times the angle for n = 2 and 3.
    The metric is bi-invariant, so geodesics are x exp(t a), as of the group. Injectivity radius √2 π.

    Example:
        >>> import math, torch
        >>> from retract.manifolds import SpecialOrthogonal
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> y = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> round(float(SpecialOrthogonal().dist(x, y)) / (math.sqrt(2) * math.pi / 2), 12)  # a right angle
        1.0
        >>> middle = SpecialOrthogonal().geodesic(x, SpecialOrthogonal().log(x, y), 0.5)
        >>> torch.allclose(middle @ middle, y)
        True
    """

    event_ndim = 2
    compact = True
    injectivity_radius = math.sqrt(2.0) * math.pi

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`, and the matrix is square, with n ≥ 2."""
        error = super().event_error(event)
        if error is None and (event[0] != event[1] or event[0] < 2):
            return f"a point of {self!r} is an n × n matrix with n ≥ 2, not {event[0]} × {event[1]}"
        return error

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """x (xᵀa − aᵀx)/2, (*batch, n, n)."""
        return x @ _skew(x.mT @ a)

    def nearest(self, a: Tensor) -> Tensor:
        """The rotation closest to `a` (`numerics.special_polar`), (*batch, n, n); rotations stay as they are, bitwise."""
        return numerics.settle(a, self.point_defect(a), numerics.special_polar(a), a.shape[-1] ** 2)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """The rotation closest to x + u, (*batch, n, n). Of second order: angles θ in place of arctan θ."""
        moved = x + u
        if numerics.readable(u) and not numerics.derivatives_wanted() and u.numel() > 0:
            # (x + u)ᵀ(x + u) = 1 + uᵀu, and singular values of u come in pairs: twice the square of the largest is at most ‖u‖²,
            # and √2 times it at most ‖uᵀu‖.
            square = 0.5 * float(numerics.root_of_squares(u, 2).amax()) ** 2
            if square > 1.0:
                square = 0.5**0.5 * float(numerics.root_of_squares(u.mT @ u, 2).amax())
            if square <= _LONGEST**2:
                scaled = moved if square <= 1.0 else moved * (2.0 / (1.0 + square)) ** 0.5
                return numerics.hold_still(u, rotations.orthogonalised(scaled), moved, 2)
        return numerics.hold_still(u, numerics.special_polar(moved), moved, 2)

    def point_defect(self, x: Tensor) -> Tensor:
        """‖xᵀx − 1‖, (*batch, 1, 1), and 2 more where the determinant is negative."""
        gap = numerics.norm(x.mT @ x - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), 2)
        return gap + torch.where(torch.linalg.det(x)[..., None, None] < 0, 2.0, 0.0)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform (Haar) on the rotations."""

        def place(a: Tensor) -> Tensor:
            frame = numerics.positive_qr(a)
            sign = torch.linalg.det(frame).sign()[..., None, None]
            return torch.cat([frame[..., :1] * sign, frame[..., 1:]], -1)

        return numerics.random_normal(shape, generator, dtype, device, place)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """x exp(xᵀu), (*batch, n, n)."""
        far, near = (_skew(x.mT @ numerics.shortened(u, limit, 2)) for limit in numerics.longest(u.dtype))
        value = x + x @ rotations.turn(far.detach())
        if not numerics.derivatives_wanted():
            return value
        return numerics.with_value(value, x @ numerics.matrix_exp(near))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """x log(xᵀy), the principal logarithm, (*batch, n, n).

        With the rotation s by half the angles, s² = xᵀy, and its parts k = (s − sᵀ)/2 with their sines and c = (s + sᵀ)/2 with their
        cosines, which are not negative, it is 2 x k g(c) with g(cos φ) = φ / sin φ. For n ≤ 3 there is one angle.
        """
        n, half = x.shape[-1], _half(x, y)
        sine = _skew(half)
        if n > 3:
            return x @ (2.0 * _skew(sine @ rotations.angle_over_sine(numerics.symmetric(half))))
        cosine = 0.5 * (half.diagonal(dim1=-2, dim2=-1).sum(-1) - (n - 2))[..., None, None]
        return x @ (2.0 * sine * rotations.angle_over_sine(cosine))

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """x exp(a/2) b exp(a/2) with a = xᵀu and b = xᵀv, (*batch, n, n)."""
        far, near = (_skew(0.5 * x.mT @ numerics.shortened(u, limit, 2)) for limit in numerics.longest(u.dtype))
        b, turn = x.mT @ v, rotations.turn(far.detach())
        value = v + x @ (turn @ b + b @ turn + turn @ b @ turn)
        if not numerics.derivatives_wanted():
            return value
        half = numerics.matrix_exp(near)
        return numerics.with_value(value, x @ half @ b @ half)

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """x s b s with b = xᵀv and the rotation s by half the angles from `x` to `y`, (*batch, n, n)."""
        half = _half(x, y)
        return x @ half @ x.mT @ v @ half


def _skew(a: Tensor) -> Tensor:
    """(a − aᵀ)/2, (*batch, n, n)."""
    return 0.5 * (a - a.mT)


def _half(x: Tensor, y: Tensor) -> Tensor:
    """The rotation s by half the angles from `x` to `y`, s² = xᵀy, (*batch, n, n).

    For n > 3 it is the polar factor of 1 + xᵀy, whose singular values are 2 cos(θ/2). Rounding turns that by ε, and by ε/δ in
    the plane of an angle π − δ. It commutes with s where s is near 1 and there, so half of the skew-symmetric part of sᵀ xᵀy sᵀ undoes it.
    """
    n = x.shape[-1]
    apart = x.mT @ (y - x)
    if n <= 3:
        return _half_of_three(torch.nn.functional.pad(apart, (0, 3 - n, 0, 3 - n)))[..., :n, :n]
    identity = torch.eye(n, dtype=x.dtype, device=x.device)
    turn = identity + apart
    half = numerics.polar(identity + turn + _tilt(identity + turn.detach()))
    value = half.detach()
    for _ in range(_REFINEMENTS):
        value = value + value @ rotations.turn(0.5 * _skew(value.mT @ turn.detach() @ value.mT))
    return numerics.with_value(value, half)


def _tilt(a: Tensor) -> Tensor:
    """A skew-symmetric matrix of some ε where `a` = 1 + xᵀy is singular, else 0: of a plane that is turned by π it decides the sense."""
    eps = torch.finfo(a.dtype).eps
    singular = torch.linalg.det(a)[..., None, None] < (100.0 * eps) ** 2
    return torch.where(singular, 128.0 * eps * _skew(numerics.generic(a).triu()), 0.0)


def _half_of_three(apart: Tensor) -> Tensor:
    """The rotation by half the angle of 1 + `apart`, (*batch, 3, 3), through its unit quaternion (w, v), w ≥ 0.

    The products of the components, four times, are sums of entries of the matrix; the row of the largest component is divided by
    its length (Shepperd 1978). With the cross product V of v the rotation is 1 + V + V²/(1 + w).
    """
    entry = [
        [apart[..., j, k : k + 1] for k in range(3)] for j in range(3)
    ]  # (*batch, 1): derivatives of single numbers become float64
    a, b, c = (entry[i][i] for i in range(3))
    across = [(entry[k][j] - entry[j][k], entry[k][j] + entry[j][k]) for j, k in ((1, 2), (2, 0), (0, 1))]
    (p, u), (q, v), (r, w) = across
    rows = [[4.0 + a + b + c, p, q, r], [p, a - b - c, w, v], [q, w, b - a - c, u], [r, v, u, c - a - b]]
    products = torch.stack([torch.cat(row, -1) for row in rows], -2)
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*products.shape[:-2], 1, 4)
    row = products.gather(-2, largest)[..., 0, :]
    row = row / (numerics.root_of_squares(row, 1) * torch.ones_like(row[..., :1]).copysign(row[..., :1]))
    scalar, (p, q, r) = row[..., :1].unsqueeze(-1), row[..., 1:].split(1, -1)
    zero = torch.zeros_like(p)
    cross = torch.stack([torch.cat(one, -1) for one in ([zero, -r, q], [r, zero, -p], [-q, p, zero])], -2)
    identity = torch.eye(3, dtype=apart.dtype, device=apart.device)
    return identity + cross + cross @ cross / (1.0 + scalar)
