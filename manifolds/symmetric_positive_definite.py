"""Symmetric positive definite matrices with the affine-invariant metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import numerics
from .geodesic import GeodesicManifold

__all__ = ["SymmetricPositiveDefinite"]

# Up to this distance a point is computed as x plus a difference; beyond, as a product, which is positive.
_NEAR = 0.5


@dataclass(frozen=True)
class SymmetricPositiveDefinite(GeodesicManifold):
    """Symmetric positive definite matrices, (*batch, n, n), with the metric ⟨u, v⟩ₓ = tr(x⁻¹u x⁻¹v).

    The metric does not change under x ↦ g x gᵀ, u ↦ g u gᵀ for invertible g, and neither do distances (Bhatia 2007, ch. 6). With
    x = L Lᵀ every map is one at 1, applied to L⁻¹u L⁻ᵀ and L⁻¹y L⁻ᵀ. The space has no positive curvature, so that any two points are
    joined by one geodesic.

    Factorisations are computed in float64, whatever the dtype, and results are rounded once: distances of float32 matrices are right to
    the last digits, whatever their condition.

    A matrix is a point if its smallest eigenvalue is above n ε times the largest. Steps multiply eigenvalues by up to exp ‖u‖,
    and `max_tangent_norm` is such that their results are still points in float32.

    Example:
        >>> import torch
        >>> from retract.manifolds import SymmetricPositiveDefinite
        >>> manifold = SymmetricPositiveDefinite()
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> y = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        >>> round(float(manifold.dist(x, y)), 6)  # log 4
        1.386294
        >>> mean = manifold.geodesic(x, manifold.log(x, y), 0.5)  # the geometric mean
        >>> [round(float(entry), 6) for entry in mean.diagonal()]
        [1.0, 2.0]
    """

    event_ndim = 2
    max_tangent_norm = 5.0

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`, and the matrix is square."""
        error = super().event_error(event)
        if error is None and event[0] != event[1]:
            return f"a point of {self!r} is a square matrix, not {event[0]} × {event[1]}"
        return error

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """tr(x⁻¹u x⁻¹v), (*batch, 1, 1)."""
        if u is v:
            _, first = _at_one(x, u)
            return numerics.dot(first, first, 2).to(x.dtype)
        _, first, second = _at_one(x, u, v)
        return numerics.dot(first, second, 2).to(x.dtype)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """‖L⁻¹u L⁻ᵀ‖, (*batch, 1, 1): no square of `u` is formed, which may overflow or vanish."""
        return numerics.length(_at_one(x, u)[1].to(x.dtype), 2)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """(a + aᵀ)/2, (*batch, n, n)."""
        return numerics.symmetric(a)

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """x (egrad + egradᵀ)/2 x, (*batch, n, n)."""
        return x @ numerics.symmetric(egrad) @ x

    def nearest(self, a: Tensor) -> Tensor:
        """(a + aᵀ)/2 with eigenvalues below four times the rounding level raised to it, (*batch, n, n); a point stays as it is, bitwise.

        What is added to eigenvalues counts as a constant in derivatives.
        """
        placed, positive = numerics.symmetric(a), _positive(a.detach())
        if not (numerics.readable(positive) and positive.all()):
            values, vectors = _eigh(placed.detach())
            added = (4.0 * _level(placed.detach())[..., 0] - values).clamp(min=0.0)
            lifted = placed + numerics.symmetric((vectors * added.unsqueeze(-2)) @ vectors.mT)
            placed = torch.where(positive, placed, lifted)
        return numerics.settle(a, torch.where(positive, _asymmetry(a.detach()), torch.inf), placed, a.shape[-1] ** 2)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """x + u + u x⁻¹u / 2, (*batch, n, n): the exponential to second order, and positive for every `u` (Jeuris, Vandebril &
        Vandereycken 2012)."""
        solved = torch.linalg.solve_triangular(numerics.cholesky(x), u, upper=False)
        return x + u + 0.5 * numerics.symmetric(solved.mT @ solved)

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`transport_to` the point ``retract(x, u)``, (*batch, n, n)."""
        return self.transport_to(x, self.retract(x, u), v)

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with the new point computed once."""
        y = self.retract(x, u)
        return y, self.transport_to(x, y, v)

    def point_defect(self, x: Tensor) -> Tensor:
        """‖x − xᵀ‖/‖x‖, (*batch, 1, 1), and infinite where an eigenvalue is not above n ε ‖x‖."""
        return torch.where(_positive(x), _asymmetry(x), torch.inf)

    def advice(self, x: Tensor) -> str:
        """The extreme eigenvalues of the symmetric part of `x`, (n, n), and what to do."""
        if not torch.isfinite(x).all():
            return "it is not finite; start again with a finite matrix"
        values = torch.linalg.eigvalsh(numerics.symmetric(x))
        return f"eigenvalues of its symmetric part are from {values[0]:.2g} to {values[-1]:.2g}; {super().advice(x)}"

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Exponentials of symmetric Gaussian matrices with eigenvalues between about −1.4 and 1.4, whatever n."""

        def place(a: Tensor) -> Tensor:
            half = numerics.matrix_exp(0.5 * a.shape[-1] ** -0.5 * numerics.symmetric(a))
            return numerics.symmetric(half @ half.mT)

        return numerics.random_normal(shape, generator, dtype, device, place)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """L exp(L⁻¹u L⁻ᵀ) Lᵀ, (*batch, n, n).

        As a product (L e)(L e)ᵀ with e = exp(L⁻¹u L⁻ᵀ/2), which is positive; after short steps as the sum x + L (e eᵀ − 1) Lᵀ, which
        keeps all digits of x.
        """
        lower, at_one = _at_one(x, u)
        half = numerics.matrix_exp(0.5 * at_one)
        product = lower @ half
        added = lower @ (half @ half.mT - torch.eye(x.shape[-1], dtype=half.dtype, device=x.device)) @ lower.mT
        near = numerics.norm(at_one.detach(), 2) < _NEAR
        return torch.where(near, x + numerics.symmetric(added), numerics.symmetric(product @ product.mT)).to(x.dtype)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """L log(L⁻¹y L⁻ᵀ) Lᵀ, (*batch, n, n)."""
        lower, logarithm = _of_logarithm(x, y, lambda values: values, lambda q: q)
        return (lower @ logarithm @ lower.mT).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """‖log(L⁻¹y L⁻ᵀ)‖, (*batch, 1, 1)."""
        if numerics.differentiated(x) or numerics.differentiated(y):
            return numerics.length(_of_logarithm(x, y, lambda values: values, lambda q: q)[1].to(x.dtype), 2)
        sinh, shift = _sinh(x.double(), y.double())
        finite = numerics.finite_matrices(sinh)
        values = torch.linalg.eigvalsh(torch.where(finite, sinh, 0.0)).asinh() + shift
        return torch.where(finite, numerics.norm(values.unsqueeze(-1), 2), torch.nan).to(x.dtype)

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """e v eᵀ with e = L exp(L⁻¹u L⁻ᵀ/2) L⁻¹, (*batch, n, n)."""
        lower, along, carried = _at_one(x, u, v)
        root = lower @ numerics.matrix_exp(0.5 * along)
        return numerics.symmetric(root @ carried @ root.mT).to(x.dtype)

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """e v eᵀ with e = (y x⁻¹)^{1/2} = L (L⁻¹y L⁻ᵀ)^{1/2} L⁻¹, (*batch, n, n)."""
        lower, half = _of_logarithm(x, y, lambda values: (0.5 * values).exp(), lambda q: numerics.matrix_exp(0.5 * q))
        root = lower @ half
        return numerics.symmetric(root @ _divided(lower, v.double()) @ root.mT).to(x.dtype)


def _at_one(x: Tensor, *tangents: Tensor) -> list[Tensor]:
    """L and L⁻¹u L⁻ᵀ for each u of `tangents`, in float64."""
    lower = numerics.cholesky(x.double())
    return [lower, *(_divided(lower, u.double()) for u in tangents)]


def _divided(lower: Tensor, a: Tensor) -> Tensor:
    """L⁻¹a L⁻ᵀ for symmetric `a`, (*batch, n, n)."""
    once = torch.linalg.solve_triangular(lower, a, upper=False)
    return torch.linalg.solve_triangular(lower, once.mT, upper=False)


def _asymmetry(x: Tensor) -> Tensor:
    """‖x − xᵀ‖/‖x‖, (*batch, 1, 1)."""
    size = numerics.norm(x, 2)
    return numerics.norm(x - x.mT, 2) / torch.where(size > 0, size, 1.0)


def _level(x: Tensor) -> Tensor:
    """n ε ‖x‖, (*batch, 1, 1): smaller eigenvalues are rounding."""
    return x.shape[-1] * torch.finfo(x.dtype).eps * numerics.norm(x, 2)


def _positive(x: Tensor) -> Tensor:
    """Whether the eigenvalues of (x + xᵀ)/2 are above the rounding level, (*batch, 1, 1)."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    info = torch.linalg.cholesky_ex(numerics.symmetric(x) - _level(x) * identity)[1]
    return (info == 0)[..., None, None] & numerics.finite_matrices(x)


def _eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric `a`; the former are NaN for matrices that are not finite, for which LAPACK raises."""
    finite = numerics.finite_matrices(a)
    values, vectors = torch.linalg.eigh(torch.where(finite, a, 0.0))
    return torch.where(finite[..., 0], values, torch.nan), vectors


def _of_logarithm(
    x: Tensor, y: Tensor, f: Callable[[Tensor], Tensor], smooth: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """L and a function of log m, m = L⁻¹y L⁻ᵀ, in float64: `f` of its eigenvalues, with the derivatives of `smooth`, the same of a matrix.

    The derivative of eigenvectors divides by differences of eigenvalues, so they are taken as constants V, and Newton's method for
    exp q = m is started where it has converged, at q = Λ in their basis. With c = e^{−Λ/2} exp(q/2) each step

        q ← q + (e^{−Λ/2} Vᵀ m V e^{−Λ/2} − c cᵀ)ᵢⱼ / (sinh δ / δ),    δ = (λᵢ − λⱼ)/2,

    changes no value and makes one more order of derivatives right: two are. The first step needs no exponential, c is 1 there.
    """
    x, y = x.double(), y.double()
    lower = numerics.cholesky(x)
    sinh, shift = _sinh(x.detach(), y.detach())
    values, vectors = _eigh(sinh)
    values = values.asinh() + shift
    value = (vectors * f(values).unsqueeze(-2)) @ vectors.mT
    if not (numerics.differentiated(x) or numerics.differentiated(y)):
        return lower, value
    shrink = (-0.5 * values).exp().unsqueeze(-1)
    frame = shrink * vectors.mT
    m = frame @ _divided(lower, y) @ frame.mT
    gap = 0.5 * (values.unsqueeze(-1) - values.unsqueeze(-2))
    slope = torch.where(gap == 0, 1.0, gap.sinh() / torch.where(gap == 0, 1.0, gap))
    q = torch.diag_embed(values) + (m - m.detach()) / slope
    c = shrink * numerics.matrix_exp(0.5 * q)
    q = q + (m - c @ c.mT) / slope
    return lower, numerics.with_value(value, vectors @ smooth(q) @ vectors.mT)


def _sinh(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with the eigenvectors of m = L⁻¹y L⁻ᵀ, and a number, (*batch, 1), which with the inverse hyperbolic sine
    of its eigenvalues makes those of log m.

    The matrix is sinh(log m) = (m − m⁻¹)/2: small eigenvalues of m are the large ones of m⁻¹, so both ends of the spectrum keep their
    digits. To have them around 1, m is divided by det(m)^{1/n}, whose logarithm is the number. Where y is near x, it is not, and
    m − m⁻¹ = z + m⁻¹z with z = L⁻¹(y − x)L⁻ᵀ does not cancel.
    """
    lower, other = numerics.cholesky(x), numerics.cholesky(y)
    forth, back = (torch.linalg.solve_triangular(*pair, upper=False) for pair in ((lower, other), (other, lower)))
    z, reciprocal = _divided(lower, y - x), back.mT @ back
    shift = 2.0 * forth.diagonal(dim1=-2, dim2=-1).log().mean(-1, keepdim=True)
    scale = shift.exp().unsqueeze(-1)
    near = numerics.norm(z, 2) < _NEAR
    twice = torch.where(near, z + reciprocal @ z, forth @ forth.mT / scale - scale * reciprocal)
    return 0.5 * numerics.symmetric(twice), torch.where(near[..., 0], 0.0, shift)
