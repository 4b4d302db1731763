"""Matrices of fixed rank as pairs of factors: what two layers of a network that act as a product leave unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics
from .full_rank import FullRankFactors, Pair, ScaledFactors
from .quotient import QuotientManifold

__all__ = ["FixedRank"]

# To which order derivatives of the damped projection are right: as many as it takes Newton steps.
_SYLVESTER_ORDERS = 2
# Newton's steps for a square root: they reach rounding from eigenvalues between 1e-6 and 1e6.
_ROOT_STEPS = 20


@dataclass(frozen=True, repr=False)
class FixedRank(QuotientManifold, ScaledFactors):
    """Matrices B A of rank k, stored as their factors modulo (B, A) ~ (B R, R⁻¹A) for invertible R: B (n × k) over
    Aᵀ (m × k) in one array, (*batch, n + m, k).

    A network that uses B and A only through their product (low-rank layers and adapters, values and outputs or queries and
    keys of an attention head) computes the same function for every R. Metric, gradient and horizontal projection are

        ⟨ξ, η⟩ = tr(ξ_Bᵀ η_B A Aᵀ) + tr(ξ_A η_Aᵀ BᵀB),
        gradient = (∇_B L (A Aᵀ)⁻¹, (BᵀB)⁻¹ ∇_A L),
        (ξ_B − B S, ξ_A + S A)  with  S = ½ ((BᵀB)⁻¹Bᵀξ_B − ξ_A Aᵀ(A Aᵀ)⁻¹),

    and the retraction is (B + ξ_B, A + ξ_A) (Mishra, Adithya Apuroop & Sepulchre 2012; Manopt's
    fixedrankfactory_2factors_preconditioned). The gradient is horizontal before any projection. With a step in its direction
    this is scaled gradient descent (Tong, Ma & Chi 2021).

    **k = 1**: hidden units. With an activation that is homogeneous of degree p = `degree` (ReLU 1, ReLU² 2) the n incoming weights
    u and the m outgoing weights v of a unit are one point modulo (u, v) ~ (a u, a⁻ᵖ v), a > 0 (and a < 0 for p = 1). Here

        ⟨ξ, η⟩ = p ‖u‖²ᵖ⁻² ‖v‖² ξ_u·η_u + ‖u‖²ᵖ ξ_v·η_v,
        gradient = (∇_u L / (p ‖u‖²ᵖ⁻² ‖v‖²), ∇_v L / ‖u‖²ᵖ),
        (ξ_u − s u, ξ_v + p s v)  with  s = (ξ_u·u / ‖u‖² − ξ_v·v / ‖v‖²) / (1 + p).

    A unit is the tensor v ⊗ u ⊗ … ⊗ u with p factors u; the metric is the squared length of the changes that u and v cause in it
    across themselves. It is the one above for p = 1, and transforms like it: weights of ξ_u by a⁻², of ξ_v by a²ᵖ. For p = 1
    the gradient is Path-SGD's scaled one of a hidden layer (Neyshabur, Salakhutdinov & Srebro 2015).

    **Damping.** B = 0, where adapters start, is no point: BᵀB is singular. With `damping` δ > 0 each of the two weights is
    increased by λ = δ (tr A Aᵀ + tr BᵀB) / 2k, in metric, gradient and projection alike, and one factor may be zero. λ is
    relative to both factors, since relative to its own one it vanishes with it: from B = 0 the first step makes B of the order of
    the learning rate η, and the second would change A by η ∇_A L (BᵀB)⁻¹, a length of the order of 1 at any rate. Relative to
    both it is of the order of η²/δ. The price is invariance: it is left under
    orthogonal R, and under others up to the order of δ (1 + r)/2, where r is the ratio of the larger trace to the smaller.
    Balanced factors have r = 1 (`balanced`).

    Example:
        >>> import torch
        >>> manifold = FixedRank(2, 5)
        >>> x = manifold.random_point(5 + 4, 2, dtype=torch.float64)
        >>> y = manifold.act(torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64), x)  # B R over (R⁻¹A)ᵀ
        >>> bool(manifold.same_point(x, y))
        True
        >>> (b, a), (c, d) = manifold.split(x), manifold.split(y)
        >>> torch.allclose(b @ a.mT, c @ d.mT)
        True

    Raises:
        GeometryError: `k` or `n` is no positive integer, `damping` is outside [0, 1), `degree` is not positive, or not 1
            although k > 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping:
            object.__setattr__(self, "unmet_laws", ("metric_and_maps_respect_the_group",))

    @property
    def total_space(self) -> FullRankFactors:
        """Pairs of factors with the same metric."""
        return FullRankFactors(*astuple(self))

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """As `project`: every array is tangent to the total space."""
        return self.project(x, u)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """(a_B − B S, a_A + S A), orthogonal in the metric to all (B S, −S A), (*batch, n + m, k)."""
        (b, c), (of_b, of_c) = self.split(x), self.split(a)
        if self.k > 1:
            turn = self._turn(x, b.mT @ of_b, c.mT @ of_c)
            return torch.cat([of_b - b @ turn, of_c + c @ turn.mT], -2)
        share = self.vertical_share(
            *(numerics.dot(one, other, 2) for one, other in ((b, b), (c, c), (b, of_b), (c, of_c)))
        )
        return torch.cat([of_b - b * share, of_c + c * (self.degree * share)], -2)

    def vertical_share(self, uu: Tensor, vv: Tensor, along_u: Tensor, along_v: Tensor) -> Tensor:
        """s of the vertical part (s u, −p s v) of ξ for k = 1, (points, 1, 1), from ‖u‖², ‖v‖², ξ_u·u and ξ_v·v."""
        p, (first, second) = self.degree, self.weights_of(uu, vv)
        return (first * along_u - p * second * along_v) / (first * uu + p * p * second * vv)

    def _turn(self, x: Tensor, along_b: Tensor, along_a: Tensor) -> Tensor:
        """S of the projection from Bᵀa_B and A a_Aᵀ, (*batch, k, k)."""
        grams = self._grams(x)
        roots = torch.stack(self._roots(x, grams))

        def divided(a: Tensor) -> Tensor:  # of a stack of tangents both have a dimension in front
            stacked = roots.reshape(2, *(1,) * (a.ndim - roots.ndim), *roots.shape[1:])
            return torch.cholesky_solve(a, stacked)

        return self.turn(*grams, along_b, along_a, divided)

    def turn(
        self, bb: Tensor, aa: Tensor, along_b: Tensor, along_a: Tensor, divided: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """S of the projection from BᵀB, A Aᵀ, Bᵀa_B and A a_Aᵀ, each (*batch, k, k), for k > 1; ``divided`` returns the inverse
        `weights` of B and of Aᵀ times two given matrices.

        With Grams and weights of B and A, X S + S Y = W_A⁻¹ Bᵀa_B − (W_B⁻¹ A a_Aᵀ)ᵀ for X = W_A⁻¹ BᵀB and Y = A Aᵀ W_B⁻¹,
        which are 1 without damping. With it, eigenvectors of the Grams solve the equation; they are taken as constants, and
        Newton's steps make derivatives right.
        """
        for_b, for_a = divided(torch.stack([along_a, along_b])).unbind()
        right = for_a - for_b.mT
        if not self.damping:
            return 0.5 * right
        grams = torch.stack(self._undamped(bb, aa))
        finite = numerics.finite_matrices(grams)  # of others LAPACK raises
        values, vectors = torch.linalg.eigh(torch.where(finite, grams.detach(), 0.0))
        values = torch.where(finite[..., 0], values.clamp(min=0.0), torch.nan)
        ratios = values / (values + torch.as_tensor(self._shift(*grams.detach()))[..., 0])
        sums = (ratios[1].unsqueeze(-1) + ratios[0].unsqueeze(-2)).clamp(min=torch.finfo(bb.dtype).tiny)

        def solved(residual: Tensor) -> Tensor:
            return vectors[1] @ (vectors[1].mT @ residual @ vectors[0] / sums) @ vectors[0].mT

        turn = solved(right)
        if numerics.derivatives_wanted():
            of_a, of_b = divided(grams).unbind()
            for _ in range(_SYLVESTER_ORDERS):
                turn = turn + solved(right - of_b @ turn - turn @ of_a.mT)
        return turn

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Projection of `v` at x + u, (*batch, n + m, k). Vectors that are carried unchanged (``transport="none"`` of the
        optimizers) are equivariant too, and not horizontal."""
        return self.retract_and_transport(x, u, v)[1]

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Pair:
        """Both, with x + u computed once."""
        y = self.retract(x, u)
        return y, self.project(y, v)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """(B g, g⁻¹A) for invertible `g`, (*batch, k, k); for k = 1 (g u, g⁻ᵖ v). Points and lifts alike."""
        b, a = self.split(x)
        if self.k == 1:
            return torch.cat([b * g, a * g**-self.degree], -2)
        return torch.cat([b @ g, torch.linalg.solve(g, a.mT).mT], -2)

    def random_group_element(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Matrices with singular values log-uniform in [1/8, 8] between random rotations, (*batch, k, k)."""
        batch = x.shape[:-2]
        left, right = (
            numerics.random_normal((*batch, self.k, self.k), generator, x.dtype, x.device, numerics.positive_qr)
            for _ in range(2)
        )
        uniform = torch.rand((*batch, 1, self.k), generator=generator, dtype=x.dtype, device=x.device)
        turned = (left * 2.0 ** (6.0 * uniform - 3.0)) @ right
        return turned if self.degree == 1 else turned.abs()

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """The representative of y's class whose difference from `x` is horizontal (undamped), (*batch, n + m, k).

        So ``align(x, y)`` is x + u for every representative `y` of ``retract(x, u)``. It is (B_y R, R⁻¹A_y) with
        R = Q Z^{−½}, Z = P Q, for P = (BᵀB)⁻¹Bᵀ B_y and Q = A_y Aᵀ(A Aᵀ)⁻¹, the solution of P R = R⁻¹Q; for k = 1
        a¹⁺ᵖ = Q/P. `x` has full rank. Where Z has eigenvalues ≤ 0, far from `x`, there is none, and the result means nothing.
        """
        (b, a), (c, d) = self.split(x), self.split(y)
        if self.k == 1:
            first, second = (numerics.dot(one, other, 2) / numerics.dot(one, one, 2) for one, other in ((b, c), (a, d)))
            factor = (second / first).abs() ** (1.0 / (1.0 + self.degree))
            placed = self.act(factor.copysign(first) if self.degree == 1 else factor, y)
        else:
            # Only the factors of `x` are divided by, so those of `y` may be of any condition.
            first, second = _least_squares(b, c), _least_squares(a, d).mT
            root = _inverse_root(first @ second)
            placed = torch.cat([c @ (second @ root), d @ (root @ first).mT], -2)
        gap = numerics.norm((y - x).detach(), 2) / numerics.norm(x.detach(), 2)
        return numerics.settle(y, gap, placed, x.shape[-2] * self.k)

    def balanced(self, x: Tensor) -> Tensor:
        """The representative with BᵀB = A Aᵀ, of these the one nearest to `x`, (*batch, n + m, k), for factors of full rank.

        It has the smallest ‖B‖² + ‖A‖² of its class. For k = 1 that is ‖u‖² = p ‖v‖².
        """
        even = self._even(x)
        return even if self.k == 1 else even @ numerics.polar(even.mT @ x)

    def principal(self, w: Tensor) -> Tensor:
        """Balanced factors of the matrix of rank k nearest to `w`, (*batch, n, m) → (*batch, n + m, k).

        It is U √Σ over V √Σ with the k largest singular values. An adapter that starts here, its base weight reduced by B A, leaves
        the network as it is (PiSSA: Meng, Wang & Zhang 2024).

        Example:
            >>> import torch
            >>> manifold = FixedRank(1, 2)
            >>> b, a = manifold.split(manifold.principal(torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])))
            >>> torch.allclose(b @ a.mT, torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
            True

        Raises:
            GeometryError: `w` has another number of rows than `n`, or a rank below k; the degree is not 1.
        """
        n, m = w.shape[-2:]
        if self.degree != 1 or self.n not in (None, n):
            raise GeometryError(f"{self!r} has no factors of a product of {n} × {m}: it needs degree 1, and n={n}")
        error = replace(self, n=n).event_error((n + m, self.k))
        if error:
            raise GeometryError(error)
        left, values, right = numerics.svd(w)
        least, most = values[..., self.k - 1], values[..., 0]
        if not (least > max(n, m) * torch.finfo(w.dtype).eps * most).all():
            row = int((least / most).nan_to_num(nan=-1.0).argmin())
            raise GeometryError(
                f"matrix {row} of w has rank below {self.k}, with singular value {self.k} {float(least.reshape(-1)[row]):.2g} beside "
                f"{float(most.reshape(-1)[row]):.2g}; take a smaller k"
            )
        root = values[..., None, : self.k].sqrt()
        return torch.cat([left[..., : self.k] * root, right.mT[..., : self.k] * root], -2)

    def canonical(self, x: Tensor) -> Tensor:
        """The balanced representative nearest to a fixed generic array, (*batch, n + m, k)."""
        even = self._even(x)
        if self.degree != 1:
            return even
        return even @ numerics.polar(even.mT @ numerics.generic(even))

    def _even(self, x: Tensor) -> Tensor:
        """Some balanced representative: with B = Q T and Aᵀ = Q' T', and T T'ᵀ = H O in polar form, H = K Kᵀ, it is Q K over
        Q' Oᵀ K."""
        b, a = self.split(x)
        if self.k == 1:
            ratio = self.degree * numerics.dot(a, a, 2) / numerics.dot(b, b, 2)
            return self.act(ratio ** (0.5 / (1.0 + self.degree)), x)
        (frame_b, b), (frame_a, a) = torch.linalg.qr(b), torch.linalg.qr(a)
        product = b @ a.mT
        turn = numerics.polar(product)
        root = numerics.cholesky(numerics.symmetric(product @ turn.mT))
        return torch.cat([frame_b @ root, frame_a @ (turn.mT @ root)], -2)


def _least_squares(a: Tensor, b: Tensor) -> Tensor:
    """(aᵀa)⁻¹aᵀb for `a` of full rank, (*batch, k, k), without the Gram."""
    frame, triangle = torch.linalg.qr(a)
    return torch.linalg.solve_triangular(triangle, frame.mT @ b, upper=True)


def _inverse_root(a: Tensor) -> Tensor:
    """Z^{−½} for matrices `a` without eigenvalues ≤ 0, (*batch, k, k).

    Newton's method in the product form of Denman and Beavers (Cheng, Higham, Kenney & Laub 2001, eq. 2.6); as far as
    it has converged, its derivatives are those of the root.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    root, m = identity.expand_as(a), a
    for _ in range(_ROOT_STEPS):
        inverse = torch.linalg.inv(m)
        root = 0.5 * root @ (identity + inverse)
        m = 0.5 * (identity + 0.5 * (m + inverse))
    return root
