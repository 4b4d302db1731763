"""Problems whose optimum is a sum of eigenvalues."""

from __future__ import annotations

import torch
from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
from torch import Tensor

from .problem import Draw, Problem

__all__ = ["brockett", "dominant_subspace", "generalized_eigen", "pca", "rayleigh", "rayleigh_psi"]


def _rayleigh(n: int, seed: int, dtype: torch.dtype, device: torch.device | str | None) -> tuple[Tensor, Tensor, float]:
    """Symmetric matrix, start of length about 1, and smallest eigenvalue."""
    draw = Draw(seed)
    a, x0 = draw.symmetric(n), draw.normal(n)
    return a.to(device, dtype), (x0 / x0.norm()).to(device, dtype), float(torch.linalg.eigvalsh(a)[0])


def rayleigh(
    n: int = 1000, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Problem:
    """xᵀAx on the sphere Sⁿ⁻¹, for a symmetric Gaussian matrix A."""
    a, x0, optimum = _rayleigh(n, seed, dtype, device)

    def f(x: Tensor) -> Tensor:
        return x @ (a @ x)

    return Problem("Rayleigh quotient", Sphere(), f, x0, optimum, "smallest eigenvalue of A")


def rayleigh_psi(
    n: int = 1000, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Problem:
    """wᵀAw / wᵀw on PSI, vectors modulo positive scaling, from a start of length 3."""
    a, x0, optimum = _rayleigh(n, seed, dtype, device)

    def f(x: Tensor) -> Tensor:
        return x @ (a @ x) / (x @ x)

    return Problem("Rayleigh quotient on PSI", PSI(), f, 3.0 * x0, optimum, "smallest eigenvalue of A")


def dominant_subspace(
    n: int = 500,
    k: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """−tr(XᵀAX)/2 on the Grassmann manifold of k-dimensional subspaces, k > 1, for a symmetric Gaussian matrix A."""
    draw = Draw(seed)
    a, x0 = draw.symmetric(n), draw.frame(n, k)
    optimum = -0.5 * float(torch.linalg.eigvalsh(a)[-k:].sum())
    a = a.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return -0.5 * (x * (a @ x)).sum()

    return Problem("dominant subspace", Grassmann(k), f, x0.to(device, dtype), optimum, "k largest eigenvalues of A")


def generalized_eigen(
    n: int = 200,
    k: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """tr((XᵀBX)⁻¹XᵀAX) on the Grassmann manifold, k > 1, for symmetric A and positive definite B of condition about 40."""
    draw = Draw(seed)
    a, root, x0 = draw.symmetric(n), draw.normal(n, n), draw.frame(n, k)
    b = root @ root.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    lower = torch.linalg.cholesky(b)
    half = torch.linalg.solve_triangular(lower, a, upper=False)
    reduced = torch.linalg.solve_triangular(lower, half.mT, upper=False)
    optimum = float(torch.linalg.eigvalsh(reduced)[:k].sum())
    a, b = a.to(device, dtype), b.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return torch.linalg.solve(x.mT @ (b @ x), x.mT @ (a @ x)).diagonal().sum()

    known = "k smallest generalized eigenvalues, by a Cholesky factor of B"
    return Problem("generalized eigenproblem", Grassmann(k), f, x0.to(device, dtype), optimum, known)


def pca(
    n: int = 100,
    k: int = 5,
    samples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """‖D − D X Xᵀ‖²/2m on the Stiefel manifold, for `samples` m (10 n if None) rows of D with variances 1/j."""
    draw, m = Draw(seed), 10 * n if samples is None else samples
    scales = torch.arange(1, n + 1, dtype=torch.float64).rsqrt()
    data, x0 = draw.normal(m, n) * scales, draw.frame(n, k)
    optimum = 0.5 / m * float(torch.linalg.svdvals(data)[k:].square().sum())
    data = data.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.5 / m * (data - (data @ x) @ x.mT).square().sum()

    return Problem("PCA", Stiefel(), f, x0.to(device, dtype), optimum, "singular values of D but the k largest")


def brockett(
    n: int = 200,
    k: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """tr(XᵀAX N) on the Stiefel manifold, for a symmetric Gaussian matrix A and N = diag(k, …, 1): k ordered eigenvectors."""
    draw = Draw(seed)
    a, x0 = draw.symmetric(n), draw.frame(n, k)
    weights = torch.arange(k, 0, -1, dtype=torch.float64)
    optimum = float(torch.linalg.eigvalsh(a)[:k] @ weights)
    a, weights = a.to(device, dtype), weights.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return ((x * (a @ x)) @ weights).sum()

    known = "k smallest eigenvalues of A, the smallest times the largest weight"
    return Problem("Brockett cost", Stiefel(), f, x0.to(device, dtype), optimum, known)
