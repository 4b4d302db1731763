"""Problems on orthogonal matrices: closed forms by an SVD, and planted solutions."""

from __future__ import annotations

import torch
from retract.manifolds import SpecialOrthogonal
from torch import Tensor

from .problem import Draw, Problem

__all__ = ["closest_rotations", "ica", "joint_diagonalization", "procrustes", "synchronization"]


def _nearest_rotations(a: Tensor) -> Tensor:
    """Rotations that maximize tr(XᵀA), (*batch, n, n): U diag(1, …, 1, det UVᵀ) Vᵀ (Umeyama 1991)."""
    u, _, v = torch.linalg.svd(a)
    sign = torch.ones_like(a[..., 0])
    sign[..., -1] = torch.linalg.det(u @ v)
    return (u * sign.unsqueeze(-2)) @ v


def procrustes(
    n: int = 50,
    noise: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """‖A X − B‖²/2 on rotations of Rⁿ, for a Gaussian matrix A with 3n/2 rows, and B a rotated A with noise."""
    draw = Draw(seed)
    a, turn, x0 = draw.normal(3 * n // 2, n) / n**0.5, draw.rotations(n, n), draw.rotations(n, n)
    b = a @ turn + noise / n**0.5 * draw.normal(len(a), n)
    optimum = 0.5 * float((a @ _nearest_rotations(a.mT @ b) - b).square().sum())
    a, b = a.to(device, dtype), b.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.5 * (a @ x - b).square().sum()

    known = "the rotation nearest to AᵀB, by its SVD"
    return Problem("Procrustes", SpecialOrthogonal(), f, x0.to(device, dtype), optimum, known)


def closest_rotations(
    n: int = 100,
    d: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σᵢ ‖Xᵢ − Aᵢ‖²/2n on n rotations of Rᵈ, for Gaussian matrices Aᵢ, nearly singular and reflecting ones among them."""
    draw = Draw(seed)
    a, x0 = draw.normal(n, d, d), draw.rotations(n, d, d)
    optimum = 0.5 / n * float((_nearest_rotations(a) - a).square().sum())
    a = a.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.5 / n * (x - a).square().sum()

    known = "the rotation nearest to each Aᵢ, by its SVD"
    return Problem("closest rotations", SpecialOrthogonal(), f, x0.to(device, dtype), optimum, known)


def synchronization(
    n: int = 60,
    degree: int = 20,
    d: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σ ‖Xᵢ − Hᵢⱼ Xⱼ‖²/2n over the edges of a random graph on n rotations of Rᵈ, for exact relative rotations Hᵢⱼ = Rᵢ Rⱼᵀ.

    Every node has about `degree` neighbours, those before and behind it in a circle among them.
    """
    draw = Draw(seed)
    planted, x0 = draw.rotations(n, d, d), draw.rotations(n, d, d)
    near = torch.arange(n)
    ends = torch.stack([draw.permutation(n) for _ in range(max(0, degree // 2 - 1))] + [near.roll(1)])
    pairs = torch.stack([near.expand_as(ends).flatten(), ends.flatten()])
    i, j = pairs[:, pairs[0] != pairs[1]]
    turn = (planted[i] @ planted[j].mT).to(device, dtype)
    i, j = i.to(device), j.to(device)

    def f(x: Tensor) -> Tensor:
        return 0.5 / n * (x.index_select(0, i) - turn @ x.index_select(0, j)).square().sum()

    known = "0 at the planted rotations"
    return Problem("rotation synchronization", SpecialOrthogonal(), f, x0.to(device, dtype), 0.0, known)


def joint_diagonalization(
    n: int = 20,
    matrices: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σₖ ‖off(XᵀAₖX)‖²/2m on rotations of Rⁿ, for m symmetric matrices Aₖ with the same eigenvectors."""
    draw = Draw(seed)
    planted, values, x0 = draw.rotations(n, n), draw.normal(matrices, 1, n), draw.rotations(n, n)
    a = ((planted * values) @ planted.mT).to(device, dtype)
    off = (1.0 - torch.eye(n, dtype=torch.float64)).to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.5 / matrices * ((x.mT @ a @ x) * off).square().sum()

    known = "0 at the planted eigenvectors"
    return Problem("joint diagonalization", SpecialOrthogonal(), f, x0.to(device, dtype), 0.0, known)


def ica(
    n: int = 20,
    samples: int = 1000,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Independent components of n rotated sources ±1 by their kurtosis: Σᵢ mean (Z xᵢ)⁴/4 on rotations X of Rⁿ, for
    m samples in the rows of Z.

    Rows of Z have length √n, so the numbers (Z xᵢ)² have mean 1 over samples and i, and by Jensen's inequality the sum is at least
    n/4, with equality where all of them are 1.
    """
    draw = Draw(seed)
    planted, signs, x0 = draw.rotations(n, n), draw.uniform(samples, n), draw.rotations(n, n)
    z = (torch.where(signs < 0.5, -1.0, 1.0).double() @ planted.mT).to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.25 / samples * (z @ x).square().square().sum()

    known = "n/4 at the planted sources ±1, a bound by Jensen's inequality"
    return Problem("ICA", SpecialOrthogonal(), f, x0.to(device, dtype), 0.25 * n, known)
