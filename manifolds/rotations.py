"""Rotations along tangents of frames: what turns a frame into the end of its geodesic."""

from __future__ import annotations

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from . import numerics

__all__ = ["angle_over_sine", "orthogonalised", "swing", "trigonometric", "turn"]

# Padé's approximant of the exponential of degree 7 is exact to rounding up to this norm (Higham 2005, Table 2.3).
_PADE = [17297280.0, 8648640.0, 1995840.0, 277200.0, 25200.0, 1512.0, 56.0, 1.0]
_PADE_RADIUS = 0.95
# Newton's steps that take an orthogonal matrix off by 0.03, as at the longest steps, to rounding.
_ORTHOGONALISATIONS = 4
# Newton's steps that take such matrices to rounding.
_STEPS = 8
# Nodes and weights of Gauss's rule on [0, 1].
_NODES, _WEIGHTS = ((0.5 * (a + b)).tolist() for a, b in zip(leggauss(13), (1.0, 0.0), strict=True))


def turn(a: Tensor) -> Tensor:
    """exp(a) − 1 for skew-symmetric `a`, (*batch, k, k), without derivatives; NaN where `a` is not finite.

    1 + turn(a) is orthogonal to rounding whatever the size of `a`, where a power series loses ‖a‖ε and overflows in the end:
    i a is Hermitian, so a = V diag(iφ) Vᴴ, and e^{iφ} − 1 = i sin φ − 2 sin²(φ/2) does not cancel. Where φ is long, that is real
    up to φε only, and its real part orthogonal up to (φε)², which Newton's steps for q ← q (3 − qᵀq)/2 put right. Short `a`,
    where this can be read, get by without eigenvalues: Padé's approximant (v − w)⁻¹ (v + w), v even and w odd in `a`, is
    orthogonal as well.
    """
    if numerics.readable(a) and (
        a.numel() == 0 or float(torch.linalg.vector_norm(a, dim=(-2, -1)).amax()) <= _PADE_RADIUS
    ):
        square = a @ a
        fourth = square @ square
        powers = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), square, fourth, fourth @ square
        even, odd = (sum(c * p for c, p in zip(_PADE[first::2], powers, strict=True)) for first in (0, 1))
        odd = a @ odd
        return torch.linalg.solve(even - odd, 2.0 * odd)
    finite = numerics.finite_matrices(a)
    a = torch.where(finite, a, 0.0)
    phases, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(a), -a))
    factors = torch.complex(-2.0 * (0.5 * phases).sin().square(), phases.sin())
    turned = ((vectors * factors.unsqueeze(-2)) @ vectors.mH).real
    for _ in range(_ORTHOGONALISATIONS):
        turned = turned - 0.5 * ((gap := turned + turned.mT + turned.mT @ turned) + turned @ gap)
    return torch.where(finite, turned, torch.nan)


def orthogonalised(a: Tensor) -> Tensor:
    """The orthonormal polar factor of `a`, (*batch, n, p), with singular values between 0.45 and √2, without derivatives: by Newton's steps
    q ← q (3 − qᵀq)/2, which take a tenth of the time of a decomposition and converge quadratically."""
    for _ in range(_STEPS):
        gap = a.mT @ a
        gap.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        a = a - 0.5 * (a @ gap)
        if float(gap.abs().amax()) <= torch.finfo(a.dtype).eps ** 0.5:  # the step has squared it
            break
    return a


def swing(x: Tensor, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """[x q] and exp([[a, −rᵀ], [r, 0]]) − 1, (*batch, n, m) and (*batch, m, m) with m = min(n, 2p), where q r is the part of
    `u` off the frame `x` and `a` is skew-symmetric, (*batch, p, p).

    Columns of q are orthonormal to `x` and to one another, also where `u` has fewer than p independent ones.
    """
    p = x.shape[-1]
    q = torch.linalg.qr(torch.cat([x, u], -1))[0][..., p:]
    r = q.mT @ u
    generator = torch.cat([torch.cat([a, -r.mT], -1), torch.cat([r, r.new_zeros(*r.shape[:-1], r.shape[-2])], -1)], -2)
    return torch.cat([x, q], -1), turn(generator)


def trigonometric(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos √A, sin √A / √A and (1 − cos √A) / A for symmetric A ≥ 0, each (*batch, k, k).

    The three solve c' = −A s, s' = c, k' = s with (1, 0, 0) at time 0, so one matrix exponential gives
    them, differentiable everywhere; through the SVD of the tangent the derivative is undefined at equal
    singular values, u = 0 among them. The blocks are balanced by c ≈ √‖A‖, which changes no result.
    """
    k = gram.shape[-1]
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device).expand_as(gram)
    zero = torch.zeros_like(gram)
    size = numerics.norm(gram.detach(), 2).sqrt()
    balance = torch.where(size > 0, size, 1.0)
    generator = torch.cat(
        [
            torch.cat([zero, -gram / balance, zero], -1),
            torch.cat([balance * identity, zero, zero], -1),
            torch.cat([zero, balance * identity, zero], -1),
        ],
        -2,
    )
    column = numerics.matrix_exp(generator)[..., :k]
    cosine, sine, versed = column.split(k, dim=-2)
    return cosine, sine / balance, versed / balance.square()


def angle_over_sine(cosine: Tensor) -> Tensor:
    """g(c) with g(cos θ) = θ / sin θ for symmetric c ≥ 0, (*batch, k, k).

    g is analytic where cosines are not negative, so no angle is singled out, coinciding or vanishing ones neither:
    g(c) = ∫₀¹ 2 (1 + t² + 2 t c)⁻¹ dt, and Gauss's rule with 13 nodes is exact to rounding, for its error shrinks with the 26th
    power of √5 + 2 or more.
    """
    nodes, weights = (cosine.new_tensor(a).view(-1, 1, 1) for a in (_NODES, _WEIGHTS))
    identity = torch.eye(cosine.shape[-1], dtype=cosine.dtype, device=cosine.device)
    kernel = torch.linalg.inv((1.0 + nodes.square()) * identity + 2.0 * nodes * cosine.unsqueeze(-3))
    return (2.0 * weights * kernel).sum(-3)
