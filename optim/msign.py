"""msign: the matrix with the singular vectors of a given one, and all nonzero singular values 1.

`exact` takes the singular value decomposition. The others iterate odd polynomials p(X) = a X + b (X Xᵀ) X + c (X Xᵀ)² X on X/‖X‖,
which act on the singular values alone: products of matrices only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..manifolds import numerics

__all__ = ["POLAR_EXPRESS", "QUINTIC", "exact", "iterated", "normalized"]

QUINTIC = (3.4445, -4.7750, 2.0315)
"""The coefficients of Jordan (2024), for every step: steep at 0, they leave singular values between 0.68 and 1.13."""
_SAFETY = 1.01
_OPTIMAL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLAR_EXPRESS = (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _OPTIMAL), (1.875, -1.25, 0.375))
"""The coefficients of Amsel et al. (2025, Algorithm 1), one triple per step, with their margin of 1 % for rounding; the last one
is used for all further steps."""


def normalized(a: Tensor, ndim: int) -> Tensor:
    """a/‖a‖ over the last `ndim` dimensions; 0 stays 0."""
    size = numerics.norm(a, ndim)
    return a / torch.where(size == 0, 1.0, size)


def exact(a: Tensor) -> Tensor:
    """U Vᵀ of the reduced singular value decomposition of `a`, (*batch, n, p), without the directions whose singular values are 0
    up to rounding; NaN where `a` is not finite."""
    left, singular, right = numerics.svd(a)
    rounding = max(a.shape[-2:]) * torch.finfo(a.dtype).eps * singular[..., :1]
    return torch.where((singular <= rounding).unsqueeze(-2), 0.0, left) @ right


def iterated(
    a: Tensor, coefficients: Sequence[tuple[float, float, float]], steps: int, dtype: torch.dtype | None = None
) -> Tensor:
    """`steps` steps of the polynomials with `coefficients`, the last of them for all further steps, from a/‖a‖, (*batch, n, p).

    `dtype` None: float64 is iterated in float64, other dtypes in bfloat16 on a GPU and in float32 on a CPU. X Xᵀ is formed on the
    shorter side of the matrix. In float32 or better, where the other side is at least twice as long, the polynomials are multiplied
    first, X ← (… p₂(X Xᵀ) p₁(X Xᵀ)) X, which takes products of small matrices alone, and X Xᵀ is formed anew every three steps,
    since it has lost the digits of small singular values by then.
    """
    used = [coefficients[min(step, len(coefficients) - 1)] for step in range(steps)]
    wide = a.shape[-2] <= a.shape[-1]
    n, p = sorted(a.shape[-2:])
    x = (a if wide else a.mT).reshape(-1, n, p)
    if dtype is None and a.dtype != torch.float64:
        dtype = torch.bfloat16 if a.is_cuda else torch.float32
    size = numerics.norm(x, 2)
    x = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format).copy_(x)
    x = x.div_(torch.where(size == 0, 1.0, size).to(dtype))
    if p < 2 * n or dtype == torch.bfloat16:
        for triple in used:
            x = torch.baddbmm(x, _even(_symmetric(x, x.mT), triple), x, beta=triple[0])
    else:
        for start in range(0, steps, _RENEWED):
            x = torch.bmm(_product(_symmetric(x, x.mT), used[start : start + _RENEWED]), x)
    return (x if wide else x.mT).reshape(a.shape).to(a.dtype)


_RENEWED = 3
_BLOCK = 192
"""Rows of a block: of 768 × 768 in float32, a symmetric product by blocks takes 0.7 of the time of the whole."""


def _symmetric(a: Tensor, b: Tensor) -> Tensor:
    """a b, (matrices, n, n), where that is symmetric: on a CPU by blocks, and those below the diagonal are copied."""
    n = a.shape[-2]
    if a.is_cuda or a.dtype == torch.bfloat16 or n < 2 * _BLOCK:
        return torch.bmm(a, b)
    product = a.new_empty(a.shape[0], n, n)
    for i in range(0, n, _BLOCK):
        j = i + _BLOCK
        rows = torch.bmm(a[:, i:j], b[:, :, i:])
        product[:, i:j, i:] = rows
        product[:, j:, i:j] = rows[:, :, _BLOCK:].mT
    return product


def _even(gram: Tensor, triple: tuple[float, float, float]) -> Tensor:
    """b G + c G² of G, (matrices, n, n), for a triple (a, b, c)."""
    _, b, c = triple
    return _symmetric(gram, gram).mul_(c).add_(gram, alpha=b)


def _product(gram: Tensor, triples: Sequence[tuple[float, float, float]]) -> Tensor:
    """The product of the polynomials a + b G + c G² that the `triples` make of X Xᵀ = G, (matrices, n, n)."""
    total: Tensor | None = None
    for step, triple in enumerate(triples):
        factor = _even(gram, triple)
        factor.diagonal(dim1=-2, dim2=-1).add_(triple[0])
        total = factor if total is None else _symmetric(factor, total)
        if step + 1 < len(triples):
            gram = _symmetric(_symmetric(factor, gram), factor)
    assert total is not None
    return total
