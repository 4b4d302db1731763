"""Points in curved and flat space: means, scaling, charges, Rosenbrock's valley."""

from __future__ import annotations

import math
from itertools import product

import torch
from retract.manifolds import Euclidean, Lorentz, Sphere, SymmetricPositiveDefinite
from torch import Tensor

from .problem import Draw, Problem

__all__ = ["frechet_mean", "hyperbolic_mds", "karcher_mean", "rosenbrock", "thomson"]


def karcher_mean(
    n: int = 10,
    matrices: int = 20,
    spread: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σᵢ d(X, Aᵢ)²/2m on positive definite matrices with the affine-invariant metric, from the arithmetic mean.

    The data are Aᵢ = R exp(Vᵢ) R with Σ Vᵢ = 0 and a symmetric R, so that R² is their mean: the only point where the gradient
    vanishes, for the curvature is not positive.
    """
    draw = Draw(seed)
    root = torch.linalg.matrix_exp(0.5 * draw.symmetric(n))
    v = draw.normal(matrices, n, n)
    v = spread * (v + v.mT - (v + v.mT).mean(0)) / (2.0 * n) ** 0.5
    a = root @ torch.linalg.matrix_exp(v) @ root
    optimum = 0.5 / matrices * float(v.square().sum())
    eye = torch.eye(n, dtype=torch.float64).expand_as(a)
    whitener = torch.linalg.solve_triangular(torch.linalg.cholesky(a), eye, upper=False).to(device, dtype)

    def f(x: Tensor) -> Tensor:
        return 0.5 / matrices * torch.linalg.eigvalsh(whitener @ x @ whitener.mT).log().square().sum()

    known = "planted: data whose tangent vectors at the mean add up to 0"
    return Problem("Karcher mean", SymmetricPositiveDefinite(), f, a.mean(0).to(device, dtype), optimum, known)


def _hyperbolic(x: Tensor, y: Tensor) -> Tensor:
    """Distances on the hyperboloid −x₀² + x₁² + … = −1, time first, (*batch, n + 1) → (*batch,): 2 arsinh(|x − y| / 2)."""
    gap = x - y
    square = gap[..., 1:].square().sum(-1) - gap[..., 0].square()
    return 2.0 * (0.5 * square.sqrt()).asinh()


def _from_origin(v: Tensor) -> Tensor:
    """exp(v) at the origin (1, 0, …) of hyperbolic space, (*batch, n) → (*batch, n + 1)."""
    length = v.norm(dim=-1, keepdim=True)
    return torch.cat([length.cosh(), length.sinh() / length * v], -1)


def frechet_mean(
    n: int = 5,
    samples: int = 100,
    spread: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σᵢ d(x, aᵢ)²/2m on hyperbolic space Hⁿ, in the hyperboloid's n + 1 coordinates, time first.

    The data are aᵢ = exp(vᵢ) at a planted point with Σ vᵢ = 0, so that this point is their mean, the only one in negative curvature.
    """
    draw = Draw(seed)
    v, center = draw.normal(samples, n) / n**0.5, draw.normal(n) / n**0.5
    v = spread * (v - v.mean(0))
    time, space = _from_origin(center).tensor_split([1])
    boost = torch.eye(n + 1, dtype=torch.float64)
    boost[0, 0], boost[0, 1:], boost[1:, 0] = time[0], space, space
    boost[1:, 1:] += space.outer(space) / (1.0 + time)
    a = (_from_origin(v) @ boost).to(device, dtype)
    x0 = _from_origin(2.0 * draw.normal(n) / n**0.5)
    optimum = 0.5 / samples * float(v.square().sum())

    def f(x: Tensor) -> Tensor:
        return 0.5 / samples * _hyperbolic(x, a).square().sum()

    known = "planted: data whose tangent vectors at the mean add up to 0"
    return Problem("Fréchet mean", Lorentz(), f, x0.to(device, dtype), optimum, known)


def hyperbolic_mds(
    n: int = 40,
    d: int = 2,
    noise: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Problem:
    """Σ (d(xᵢ, xⱼ) − δᵢⱼ)²/n over all pairs of n points of hyperbolic space H^d, for distances δ of planted points, from these
    points moved by `noise`."""
    draw = Draw(seed)
    v = draw.normal(n, d)
    planted, x0 = _from_origin(v), _from_origin(v + noise * draw.normal(n, d))
    i, j = torch.triu_indices(n, n, 1)
    target = _hyperbolic(planted[i], planted[j]).to(device, dtype)
    i, j = i.to(device), j.to(device)

    def f(x: Tensor) -> Tensor:
        return (_hyperbolic(x.index_select(0, i), x.index_select(0, j)) - target).square().sum() / n

    return Problem("hyperbolic scaling", Lorentz(), f, x0.to(device, dtype), 0.0, "0 at the planted points")


def _even(n: int, d: int) -> Tensor | None:
    """n points on the unit sphere of R^d with the least energy, where they are known; not of length 1.

    Simplices, cross-polytopes, the icosahedron and the roots of E8 have the least energy for every completely monotonic potential
    (Cohn & Kumar 2007, table 1). 32 points on S² are those of an icosahedron and a dodecahedron.
    """
    eye = torch.eye(max(n, d), dtype=torch.float64)
    if n == d + 1:
        frame = torch.linalg.qr(torch.cat([torch.ones_like(eye[:, :1]), eye[:, :-1]], -1))[0]
        return frame[:, 1:]
    if n == 2 * d:
        return torch.cat([eye[:d, :d], -eye[:d, :d]])
    golden = 0.5 * (1.0 + math.sqrt(5.0))
    if (n, d) in ((12, 3), (32, 3)):
        signs = list(product((-1.0, 1.0), repeat=2))
        points = [[0.0, a, b * golden] for a, b in signs]
        if n == 32:
            points += [[0.0, a * golden, b / golden] for a, b in signs]
        turned = torch.tensor(points, dtype=torch.float64)
        turned = torch.cat([turned.roll(shift, -1) for shift in range(3)])
        cube = torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
        return turned if n == 12 else torch.cat([turned, cube])
    if (n, d) == (240, 8):
        halves = torch.tensor(list(product((-0.5, 0.5), repeat=8)), dtype=torch.float64)
        i, j = torch.triu_indices(8, 8, 1)
        pairs = [a * eye[i, :8] + b * eye[j, :8] for a, b in product((-1.0, 1.0), repeat=2)]
        return torch.cat([*pairs, halves[halves.prod(-1) > 0]])
    return None


def thomson(
    n: int = 32, d: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Problem:
    """Σ 1/|xᵢ − xⱼ| over all pairs of n points on the unit sphere of R^d: the energy of charges.

    The optimum is known for n = d + 1 and n = 2 d, for (n, d) = (12, 3), (32, 3) and (240, 8), and NaN otherwise (`polish`).
    """
    self = torch.eye(n, dtype=torch.bool, device=device)

    def f(x: Tensor) -> Tensor:
        squares = (2.0 - 2.0 * (x @ x.mT)).masked_fill(self, math.inf)
        return 0.5 * squares.rsqrt().sum()

    even, x0 = _even(n, d), Draw(seed).normal(n, d)
    optimum, known = math.nan, "not known for this size"
    if even is not None:
        i, j = torch.triu_indices(n, n, 1)
        even = even / even.norm(dim=-1, keepdim=True)
        optimum = float((even[i] - even[j]).norm(dim=-1).reciprocal().sum())
        known = "published configuration" if n == 32 else "universally optimal configuration (Cohn & Kumar 2007)"
    x0 = (x0 / x0.norm(dim=-1, keepdim=True)).to(device, dtype)
    return Problem("Thomson", Sphere(), f, x0, optimum, known)


def rosenbrock(
    n: int = 100, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Problem:
    """Σ 100 (x₂ᵢ − x₂ᵢ₋₁²)² + (1 − x₂ᵢ₋₁)² in flat space, n even, from points around (−1.2, 1): the extended function of
    Moré, Garbow & Hillstrom (1981), without a local minimum."""
    x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(n // 2) + 0.1 * Draw(seed).normal(n)

    def f(x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return (100.0 * (second - first.square()).square() + (1.0 - first).square()).sum()

    return Problem("Rosenbrock", Euclidean(1), f, x0.to(device, dtype), 0.0, "0 at (1, …, 1)")
