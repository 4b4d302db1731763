"""Steepest steps under the spectral norm that stay tangent: argmax ⟨g, A⟩ over tangent A with ‖A‖₂ ≤ 1.

Without the constraint the answer is the polar factor, msign(g) = U Vᵀ for g = U Σ Vᵀ. With normals N(λ), linear in a multiplier λ,
the dual problem is min_λ ‖g + N(λ)‖_*, convex, and its gradient is the normal part of msign(g + N(λ)): where that vanishes, the
polar factor is tangent and the answer. Both solvers work on the tangent part of `g`, scaled to a fixed norm, so that nothing
depends on the scale of the loss, and in float64. They evaluate one polar factor per iteration, through a function `msign` that maps
an array (*batch, rows, columns) to the polar factors of its matrices. Each matrix of a batch is solved by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..manifolds import numerics

__all__ = ["hyperplane", "stiefel"]

Msign = Callable[[Tensor], Tensor]

# A result has at least (1 − _GAP) of the largest value; iterations stop there, or after _MOST polar factors.
_GAP = 1e-7
_MOST = 80


def stiefel(x: Tensor, g: Tensor, msign: Msign) -> Tensor:
    """argmax ⟨g, A⟩ over A with xᵀA + Aᵀx = 0 and ‖A‖₂ ≤ 1, (*batch, n, p), for `x` with orthonormal columns, n ≥ p.

    Split g = x (K + sym(xᵀg)) + R with K skew and xᵀR = 0. The multiplier is a symmetric matrix, and the part sym(xᵀg) is
    absorbed by it: the dual is min_S ‖[K + S; R]‖_* over symmetric S. In the basis of the right singular vectors of R = U r Vᵀ the
    matrix has 2p rows, M = [K + S; r]. For n = p the minimum is S = 0 and A = x msign(K).

    Otherwise the nuclear norm is smoothed to tr √(MᵀM + μ²), which is that of M = [K + S; √(r² + μ²)], and μ is lowered along
    the path of minima S(μ). With the polar decomposition M = Q H, Q = [P; ·] and H = V σ Vᵀ, the gradient is sym P. In the basis V, with
    P for VᵀPV, its derivatives are

        D ↦ sym(P ω + N D σ⁻¹),  ωᵢⱼ = (Pᵀ D − D P)ᵢⱼ / (σᵢ + σⱼ),  with respect to S, and
        −μ sym(P σ⁻²)  with respect to μ, where N is VᵀBᵀB V for the lower half B of Q.

    So each polar factor gives a Newton step towards the path and a step along it, by conjugate gradients over p × p matrices. Of a
    few values for the next μ the lowest is taken for which dM H⁻¹ is short against 1, and there is no line search.

    At the end A is projected and divided by ‖A‖₂: it is tangent and feasible always. With an exact `msign` it has (1 − 1e-7) of the
    largest value, for Gaussian gradients after 6 polar factors if n = 4p and about 10, at most 30, if n = 2p. Where
    the minimum is at a singular M and the nuclear norm has a kink, for n < 2p and for gradients of low rank or with singular
    values from 1 to 1e-4, it is 12 to 60; after 80 some of these, mostly small matrices, stop at a share of 1 − 1e-6, a few at
    1 − 1e-3. With an inexact `msign` the iterations end at ten times its error.

    A tangent part of `g` that is 0 up to rounding gives 0; matrices that are not finite give NaN.

    Args:
        x: Points on the Stiefel manifold.
        g: Gradients, or averages of them; they need not be tangent.
        msign: Polar factors of (*batch, m, p) arrays, m ≥ p. The arrays are in float64 whatever the dtype of `g`.

    Returns:
        The minimizer of −⟨g, A⟩, with the minus sign left to the step.

    Problem and dual: J. Bernstein, "Modular Manifolds" (2025), who ascends the dual by steps of a fixed length, and S. Buchanan,
    "Speeding up manifold Muon with ADMM" (2025). Square matrices: J. Su, "Steepest descent on manifolds: 2. Muon + orthogonality" (2025).
    """
    kept = g.dtype
    finite, x, g = _read(x, g)
    inner = x.mT @ g
    skew, rest = 0.5 * (inner - inner.mT), g - x @ inner
    rest = rest - x @ (x.mT @ rest)
    scale = _scale(torch.hypot(numerics.norm(skew, 2), numerics.norm(rest, 2)), g, kept)
    if g.shape[-2] == g.shape[-1]:
        a = x @ msign(scale * skew)
    else:
        left, singular, right = torch.linalg.svd(scale * rest, full_matrices=False)
        turned = right @ (scale * skew) @ right.mT
        polar, share = _follow(0.5 * (turned - turned.mT), singular.unsqueeze(-1), msign)
        top, bottom = polar.chunk(2, -2)
        a = (x @ right.mT @ top + left @ (share * bottom)) @ right
    a = a - x @ numerics.symmetric(x.mT @ a)
    longest = torch.linalg.eigvalsh(a.mT @ a)[..., -1:, None].clamp(min=0.0).sqrt()
    a = torch.where(scale > 0, a / _divisor(longest), 0.0)
    return torch.where(finite, a, torch.nan).to(kept)


def _read(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which matrices are finite in both arrays, and both in float64, 0 for the others."""
    finite = numerics.finite_matrices(x) & numerics.finite_matrices(g)
    return finite, torch.where(finite, x.double(), 0.0), torch.where(finite, g.double(), 0.0)


def _scale(size: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor that gives the tangent part of `g`, of norm `size`, the norm √rank; 0 where that part is a rounding of `g`."""
    rounding = 8 * torch.finfo(dtype).eps * numerics.norm(g, 2)
    return torch.where(size > rounding, min(g.shape[-2:]) ** 0.5 / _divisor(size), 0.0)


def _divisor(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


# The path starts at _START, where the singular values have a root mean square of 1, and ends at _END. A step is no longer, by columns,
# than _REACH, and after steps that went too far than less, at least _LEAST_REACH. With a reach of 0.9 many singular minima are not found.
_START, _END, _REACH, _LEAST_REACH = 0.5, 1e-7, 0.6, 0.05
_FACTORS = (1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)


def _follow(skew: Tensor, r: Tensor, msign: Msign) -> tuple[Tensor, Tensor]:
    """Polar factor of [skew + S; √(r² + μ²)] at the end of the path, (*batch, 2p, p), and the share r/√(r² + μ²) that undoes the
    smoothing, (*batch, p, 1): those of the smallest bound on what is missing of the value."""
    s = step = torch.zeros_like(skew)
    polar, share = torch.cat([s, s], -2), torch.zeros_like(r)
    mu = torch.full_like(r[..., :1, :], _START)
    reach, curvature = torch.full_like(mu, _REACH), torch.zeros_like(mu)
    least, busy = torch.full_like(mu, torch.inf), torch.ones_like(mu, dtype=torch.bool)
    p = skew.shape[-1]
    identity = torch.eye(p, dtype=skew.dtype, device=skew.device)
    for _ in range(_MOST):
        smooth = torch.hypot(r, mu)
        m = torch.cat([skew + s, torch.diag_embed(smooth.squeeze(-1))], -2)
        q = msign(m)
        top, bottom = q.chunk(2, -2)
        gradient = numerics.symmetric(top)
        sigma, basis = torch.linalg.eigh(numerics.symmetric(q.mT @ m))
        sigma = sigma.unsqueeze(-2).clamp(min=mu)
        # The dual value bounds the optimum; the skew part of the polar factor, shortened to be feasible, has this value.
        smoothing = mu.square() * (bottom.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) / smooth).sum(-2, keepdim=True)
        value = sigma.sum(-1, keepdim=True) - numerics.dot(s, gradient, 2) - smoothing
        dual = ((sigma - mu) * (sigma + mu)).sqrt().sum(-1, keepdim=True)
        gap = (1.0 - value / (1.0 + numerics.norm(gradient, 2)) / _divisor(dual)).abs()
        better = busy & (gap < least)
        polar, share = torch.where(better, q, polar), torch.where(better, r / smooth, share)
        least = torch.where(better, gap, least)
        defect = numerics.norm(q.mT @ q - identity, 2) / p**0.5
        busy = busy & (least > (10.0 * defect).clamp(min=_GAP))
        if not busy.any():
            break
        reach = reach * torch.where(numerics.dot(gradient, step, 2) > 0.5 * curvature, 0.5, 1.4)
        reach = reach.clamp(min=_LEAST_REACH, max=_REACH)
        turned = basis.mT @ top @ basis
        right = torch.stack([-(basis.mT @ gradient @ basis), mu * numerics.symmetric(turned / sigma.square())]) * busy
        towards, along = _newton(turned, basis.mT @ bottom.mT @ bottom @ basis, sigma, right)
        lowered, shorter = _lowered(towards, along, sigma, mu, reach)
        # Far from the minimum of the smoothed norm, small singular values have not settled yet.
        far = 0.1 * numerics.norm(gradient, 2) * sigma.amin(-1, keepdim=True)
        lowered = lowered.maximum(torch.minimum(mu, far)).clamp(min=_END)
        step, image = shorter * (towards + (lowered - mu) * along), shorter * (right[0] + (lowered - mu) * right[1])
        curvature, step = numerics.dot(step, image, 2), basis @ step @ basis.mT
        s, mu = s + step, lowered
    return polar, share


def _lowered(towards: Tensor, along: Tensor, sigma: Tensor, mu: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The next μ, and the factor that shortens the step where μ stays, (*batch, 1, 1).

    μ is lowered as far as dM H⁻¹ is short. Where that is not at all, the step may turn singular vectors of small values further,
    and is measured in H^(−1/2) D H^(−1/2).
    """
    factors = torch.tensor(_FACTORS, dtype=sigma.dtype, device=sigma.device).unsqueeze(-1)
    change = mu * (factors - 1.0)
    squares, mixed = towards.square().sum(-2, keepdim=True), (towards * along).sum(-2, keepdim=True)
    moved = squares + 2.0 * change * mixed + change.square() * (along.square().sum(-2, keepdim=True) + 1.0)
    fits = (moved <= (reach * sigma).square()).all(-1, keepdim=True)
    factor = torch.where(fits, factors, 1.0).amin(-2, keepdim=True)
    length = (towards.square() / (sigma * sigma.mT)).sum(-2, keepdim=True).amax(-1, keepdim=True).sqrt()
    return factor * mu, torch.where(factor < 1.0, 1.0, (reach / length).clamp(max=1.0))


# Conjugate gradients end at this residual, or after so many iterations.
_RESIDUAL, _ITERATIONS = 0.01, 100


def _newton(turned: Tensor, below: Tensor, sigma: Tensor, right: Tensor) -> Tensor:
    """Symmetric D at which the derivative with respect to S in `stiefel` is `right`; P and N are `turned` and `below`."""
    sums = sigma + sigma.mT

    def hessian(d: Tensor) -> Tensor:
        moved = turned.mT @ d
        return numerics.symmetric(turned @ ((moved - moved.mT) / sums) + below @ d / sigma)

    share, length = below.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), turned.square().sum(-1).unsqueeze(-2)
    diagonal = numerics.symmetric(share / sigma) + (length + length.mT) / sums
    solution, residual = torch.zeros_like(right), right
    ahead = residual / diagonal
    direction, product = ahead, numerics.dot(residual, ahead, 2)
    least = _RESIDUAL * numerics.norm(right, 2)
    for _ in range(_ITERATIONS):
        busy = numerics.norm(residual, 2) > least
        if not busy.any():
            break
        image = hessian(direction)
        step = torch.where(busy, product / numerics.dot(direction, image, 2), 0.0)
        solution, residual = solution + step * direction, residual - step * image
        ahead = residual / diagonal
        former, product = product, numerics.dot(residual, ahead, 2)
        direction = ahead + torch.where(busy, product / former, 0.0) * direction
    return solution


def hyperplane(normal: Tensor, g: Tensor, msign: Msign) -> Tensor:
    """argmax ⟨g, A⟩ over A with ⟨normal, A⟩ = 0 and ‖A‖₂ ≤ 1, (*batch, n, p).

    The tangent spaces of the sphere of the Frobenius norm, with `normal` the point, and of that of the spectral norm,
    with u₁v₁ᵀ. The multiplier is a number: F(λ) = ‖g + λ normal‖_* is convex, and its derivative h(λ) = ⟨normal, msign(g + λ normal)⟩
    grows from −‖normal‖_* to ‖normal‖_*. So the root is bracketed, λ₋ < λ₊ with h₋ ≤ 0 ≤ h₊, and the combination

        A = (h₊ Q₋ − h₋ Q₊) / (h₊ − h₋)

    of the two polar factors is tangent exactly and feasible, also where h jumps over 0, as it does where g + λ normal is singular:
    there neither factor alone is a solution. By convexity its value is at most −h₋ h₊ (λ₊ − λ₋)/(h₊ − h₋) below the optimum,
    which ends the search at 1e-7 of the value. The bracket shrinks by turns at the root of the secant of h, which
    converges fast where h is smooth, and where the tangents of F at the two ends meet, which does where it jumps.

    A part of `g` beside `normal` that is 0 up to rounding gives 0; matrices that are not finite give NaN.

    Args:
        normal: What A is orthogonal to, not zero.
        g: Gradients, or averages of them; they need not be tangent.
        msign: Polar factors of (*batch, n, p) arrays. The arrays are in float64 whatever the dtype of `g`.

    Returns:
        The minimizer of −⟨g, A⟩, with the minus sign left to the step.

    Source: "Controlled LLM Training on Spectral Sphere", arXiv:2601.08393 (2026), which bisects.
    """
    kept = g.dtype
    finite, normal, g = _read(normal, g)
    normal = normal / _divisor(numerics.norm(normal, 2))
    beside = g - numerics.dot(g, normal, 2) * normal
    scale = _scale(numerics.norm(beside, 2), g, kept)
    a = torch.where(scale > 0, _bracket(normal, scale * beside, msign), 0.0)
    return torch.where(finite, a, torch.nan).to(kept)


class _End(NamedTuple):
    """λ, the derivative h of F there, F, and the polar factor; h is infinite at an end that has not been evaluated."""

    at: Tensor
    slope: Tensor
    value: Tensor
    polar: Tensor

    def replaced(self, where: Tensor, other: _End) -> _End:
        """`other` where `where` is true."""
        return _End(*(torch.where(where, new, old) for new, old in zip(other, self, strict=True)))


def _bracket(normal: Tensor, g: Tensor, msign: Msign) -> Tensor:
    """The combination of polar factors at the ends of the last bracket, (*batch, n, p)."""
    rank = min(g.shape[-2:])

    def evaluate(at: Tensor) -> _End:
        q = msign(g + at * normal)
        slope = numerics.dot(normal, q, 2)
        slope = torch.where(slope.abs() <= 8 * rank * torch.finfo(g.dtype).eps, 0.0, slope)
        return _End(at, slope, numerics.dot(g, q, 2) + at * slope, q)

    start = evaluate(torch.zeros_like(numerics.dot(g, g, 2)))
    # F(λ) ≥ |λ| ‖normal‖_* − F(0) ≥ |λ| − F(0): no minimum is farther away. Near 0, h grows about like λ over the mean of σ.
    far, reach = 2.0 * start.value, start.slope.abs() * start.value / rank
    low, high = (
        _End(sign * far, torch.full_like(far, sign * torch.inf), start.value, start.polar).replaced(
            sign * start.slope >= 0, start
        )
        for sign in (-1.0, 1.0)
    )
    for turn in range(_MOST - 1):
        width, rise = high.at - low.at, _divisor(high.slope - low.slope)
        inside = torch.isfinite(rise)
        lost = torch.where(inside, -low.slope * high.slope * width / rise, torch.inf)
        busy = (lost > _GAP * torch.minimum(low.value, high.value)) & (far > 0)
        if not busy.any():
            break
        secant, tangents = -low.slope * width, low.value - high.value + high.slope * width
        ahead = ((tangents if turn % 2 else secant) / rise).clamp(min=_INSIDE * width, max=(1.0 - _INSIDE) * width)
        outside = torch.where(torch.isfinite(low.slope), reach, width - reach).minimum(width).clamp(min=0.0)
        reach = 4.0 * reach
        new = evaluate(low.at + torch.where(inside, ahead, outside))
        low = low.replaced(busy & (new.slope <= 0), new)
        high = high.replaced(busy & (new.slope >= 0), new)
    share = torch.where(high.slope > low.slope, high.slope / _divisor(high.slope - low.slope), 1.0)
    return share * low.polar + (1.0 - share) * high.polar


# A trial is not nearer to an end of the bracket than this share of it.
_INSIDE = 1e-3
