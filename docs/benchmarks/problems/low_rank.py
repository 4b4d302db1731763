"""Low-rank models: completion of matrices, robust subspaces, the relaxation of max-cut."""

from __future__ import annotations

import torch
from retract.manifolds import FixedRank, Grassmann, Sphere
from torch import Tensor

from .problem import Draw, Problem

__all__ = ["completion_fixed_rank", "completion_grassmann", "max_cut", "robust_pca"]


def _completion(draw: Draw, n: int, m: int, k: int, observed: float) -> tuple[Tensor, Tensor]:
    """A matrix of rank k with entries of variance 1, and the mask of its observed entries."""
    target = draw.normal(n, k) @ draw.normal(k, m) / k**0.5
    return target, (draw.uniform(n, m) < observed).double()


def completion_grassmann(
    n: int = 200,
    k: int = 5,
    columns: int | None = None,
    observed: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """min_W ‖mask ∘ (X W − M)‖² / 2 |mask| on the Grassmann manifold of column spaces, for M of rank k with n rows and `columns`
    (n if None) columns: the weights W are solved for (Boumal & Absil 2011)."""
    draw = Draw(seed)
    target, mask = _completion(draw, n, n if columns is None else columns, k, observed)
    x0, mask, target = (a.to(device, dtype) for a in (draw.frame(n, k), mask, mask * target))
    number = float(mask.sum())

    def f(x: Tensor) -> Tensor:
        squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        grams = (mask.mT @ squares).unflatten(-1, (k, k))
        weights = torch.linalg.solve(grams, target.mT @ x)
        return 0.5 / number * (mask * (x @ weights.mT) - target).square().sum()

    return Problem("matrix completion", Grassmann(k), f, x0, 0.0, "0 at the planted column space")


def completion_fixed_rank(
    n: int = 200,
    m: int | None = None,
    k: int = 5,
    observed: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """‖mask ∘ (B A − M)‖² / 2 |mask| on matrices B A of rank k, for M of rank k with n rows and m (n if None) columns, from the
    matrix of rank k nearest to the observed entries."""
    m = n if m is None else m
    draw, manifold = Draw(seed), FixedRank(k, n)
    target, mask = _completion(draw, n, m, k, observed)
    x0 = manifold.principal(mask * target / observed)
    x0, mask, target = (a.to(device, dtype) for a in (x0, mask, mask * target))
    number = float(mask.sum())

    def f(x: Tensor) -> Tensor:
        b, a = manifold.split(x)
        return 0.5 / number * (mask * (b @ a.mT) - target).square().sum()

    return Problem("low-rank completion", manifold, f, x0, 0.0, "0 at the planted matrix")


def robust_pca(
    n: int = 50,
    k: int = 5,
    inliers: int | None = None,
    outliers: int | None = None,
    eps: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Mean of √(rᵢ² + ε²) − ε on the Grassmann manifold, for distances rᵢ of points to the subspace: `inliers` (4 n if None)
    on a planted subspace, and `outliers` (n if None, rounded to pairs) off it.

    Outliers come in pairs a ± b, mirrored in the planted subspace, so that its gradient vanishes; there inliers, whose distances
    are 0, outweigh them.
    """
    draw = Draw(seed)
    count, pairs = 4 * n if inliers is None else inliers, (n if outliers is None else outliers) // 2
    planted, x0 = draw.frame(n, k), draw.frame(n, k)
    along, across = draw.normal(pairs, k) @ planted.mT, draw.normal(pairs, n) / n**0.5
    across = across - (across @ planted) @ planted.mT
    points = torch.cat([draw.normal(count, k) @ planted.mT, along + across, along - across])
    total = len(points)
    optimum = 2.0 / total * float(((across.square().sum(-1) + eps**2).sqrt() - eps).sum())
    points = points.to(device, dtype)

    def f(x: Tensor) -> Tensor:
        off = points - (points @ x) @ x.mT
        return ((off.square().sum(-1) + eps**2).sqrt() - eps).sum() / total

    known = "distances of mirrored outliers from the planted subspace"
    return Problem("robust PCA", Grassmann(k), f, x0.to(device, dtype), optimum, known)


def max_cut(
    n: int = 300,
    degree: int = 20,
    d: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """−Σ (1 − xᵢ·xⱼ)/2 over the edges of a random circulant graph, on n unit vectors of Rᵈ: Burer & Monteiro's factors of the
    relaxation of Goemans & Williamson.

    With d(d + 1)/2 > n, as for the default √(2n) + 2, almost all such functions have no local minimum but the global one (Boumal,
    Voroninski & Bandeira 2016).

    By symmetry of the graph all multipliers of its diagonal are equal, so the relaxation's optimum is −n λ/4 with the largest
    eigenvalue λ of the Laplacian (Delorme & Poljak 1993, for vertex-transitive graphs), and eigenvalues of circulants are sums of
    cosines.
    """
    draw = Draw(seed)
    d = int((2.0 * n) ** 0.5) + 2 if d is None else d
    jumps = 1 + draw.permutation((n - 1) // 2)[: degree // 2]
    row = torch.zeros(n, dtype=torch.float64)
    row[jumps] = row[n - jumps] = 1.0
    adjacency = row[(torch.arange(n) - torch.arange(n).unsqueeze(-1)) % n]
    x0 = draw.normal(n, d)
    edges = 0.5 * float(adjacency.sum())
    optimum = -0.25 * n * float(row.sum() - torch.fft.fft(row).real.min())
    adjacency, x0 = adjacency.to(device, dtype), (x0 / x0.norm(dim=-1, keepdim=True)).to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.25 * (x * (adjacency @ x)).sum() - 0.5 * edges

    known = "dual certificate: the largest eigenvalue of the graph's Laplacian"
    return Problem("max-cut", Sphere(), f, x0, optimum, known)
