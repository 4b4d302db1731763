"""Scalars and factorisations that stay finite, differentiable and on the manifold at the edges.

Reductions run over the last `ndim` (event) dimensions and keep them as size 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

__all__ = [
    "DTYPES",
    "dot",
    "full_precision",
    "hold_still",
    "norm",
    "polar",
    "positive_qr",
    "root_of_squares",
    "root_tiny",
    "safe_sqrt",
    "settle",
    "sinc",
    "squares_fit",
    "svd",
    "symmetric",
    "tolerance",
    "trigonometric",
    "versine",
]


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""In which parameters on a manifold are kept."""


def root_tiny(dtype: torch.dtype) -> float:
    """√ of the smallest normal number, 1e-19 in float32: shorter vectors have squares that vanish, and count as zero."""
    return float(torch.finfo(dtype).tiny ** 0.5)


def tolerance(dtype: torch.dtype) -> float:
    """How far a computed quantity of order one may lie from its law before a check speaks up.

    The square root of the machine epsilon: 1.5e-8 in float64, 3.5e-4 in float32. Rounding of a long row
    or of a thousand steps stays well below it, a wrong formula does not.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


@contextmanager
def full_precision() -> Iterator[None]:
    """Arithmetic in the precision of the arrays, also inside `torch.autocast`, which would take matrix products in half
    precision: an orthonormal frame comes out of one with a defect of 1e-2."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _event(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def dot(u: Tensor, v: Tensor, ndim: int) -> Tensor:
    """Ambient dot product, (*batch, *event) × (*batch, *event) → (*batch, 1…).

    An array with itself goes through the norm, in one pass and without an array of products: two and a half times
    as fast on a CPU.
    """
    if ndim == 0:
        return u * v
    return root_of_squares(u, ndim).square() if u is v else (u * v).sum(_event(ndim), keepdim=True)


def norm(a: Tensor, ndim: int) -> Tensor:
    """Ambient Euclidean norm, (*batch, *event) → (*batch, 1…); its gradient at 0 is 0.

    Norms of float32 arrays are right over the whole range of float32, although squares overflow above 1e19 and vanish
    below 1e-19: such rows are summed again in float64. Where values cannot be read (on a device that would have to be
    waited for, under autograd, `vmap` and the compiler) all rows are summed in float64.
    """
    if has_torch_function_unary(a):
        size: Tensor = handle_torch_function(norm, (a,), a, ndim)
        return size
    if ndim == 0:
        return a.abs()
    if a.dtype != torch.float32:
        return root_of_squares(a, ndim)
    if (
        a.device.type != "cpu"
        or torch.compiler.is_compiling()
        or (a.requires_grad and torch.is_grad_enabled())
        or torch._C._functorch.is_functorch_wrapped_tensor(a)
    ):
        return root_of_squares(a, ndim, torch.float64).to(a.dtype)
    size = root_of_squares(a, ndim)
    if not squares_fit(size):
        again = ~((size > SHORT) & (size < torch.inf)).squeeze(_event(ndim))
        size[again] = root_of_squares(a[again], ndim, torch.float64).to(a.dtype)
    return size


SHORT = 1e-16
"""Norm below which squares of float32 numbers lose digits."""


def squares_fit(size: Tensor) -> bool:
    """Whether norms that were computed in float32 are right, none of them too short or too long for its square."""
    if not size.numel():
        return True
    low, high = torch.aminmax(size)
    return float(low) > SHORT and float(high) < torch.inf


def root_of_squares(a: Tensor, ndim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The norm as √Σa², summed in `dtype`: the fastest, for arrays whose squares are known to fit, or where it does not
    matter."""
    return torch.linalg.vector_norm(a, dim=_event(ndim), keepdim=True, dtype=dtype)


def safe_sqrt(square: Tensor) -> Tensor:
    """√max(square, 0), with gradient 0 instead of infinity where the square is 0; NaN stays NaN."""
    positive = ~(square <= 0)
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def sinc(theta: Tensor) -> Tensor:
    """sin θ / θ, 1 at θ = 0. (`torch.sinc` is the one of π θ, less accurate for large angles.)"""
    nonzero = theta != 0
    safe = torch.where(nonzero, theta, 1.0)
    return torch.where(nonzero, safe.sin() / safe, 1.0)


def versine(theta: Tensor) -> Tensor:
    """(1 − cos θ) / θ² = ½ sinc²(θ/2), ½ at θ = 0, without cancellation."""
    return 0.5 * sinc(0.5 * theta).square()


def hold_still(u: Tensor, moved: Tensor, still: Tensor, ndim: int) -> Tensor:
    """`moved` where the tangent `u` is nonzero, `still` where it is zero.

    With ``still = x + u``, which is then `x` bitwise, maps that re-orthonormalise get ``retract(x, 0) = x`` as an
    array, and keep the right derivative with respect to `u` there.
    """
    return torch.where(root_of_squares(u, ndim) > 0, moved, still)


def settle(a: Tensor, defect: Tensor, placed: Tensor, terms: int) -> Tensor:
    """`placed` where `defect` exceeds the rounding of a sum of `terms` products, `a` itself, bitwise, where not.

    Such a sum carries about √terms roundings, so a defect below (8 + √terms) ε is none.
    """
    return torch.where(defect <= torch.finfo(a.dtype).eps * (8.0 + terms**0.5), a, placed)


def symmetric(a: Tensor) -> Tensor:
    """(a + aᵀ)/2, (*batch, p, p) → (*batch, p, p)."""
    return 0.5 * (a + a.mT)


def positive_qr(a: Tensor) -> Tensor:
    """Orthonormal factor of the QR decomposition whose R has a positive diagonal, (*batch, n, p).

    Without the sign convention the factor jumps with the LAPACK build, and the map is no retraction.
    """
    q, r = torch.linalg.qr(a)
    sign = r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q * torch.where(sign == 0, 1.0, sign)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduced singular value decomposition of `a`, (*batch, n, p), with NaN for matrices that are not finite, for which
    LAPACK raises."""
    finite = torch.isfinite(a).all(-1, keepdim=True).all(-2, keepdim=True)
    left, singular, right = torch.linalg.svd(torch.where(finite, a, 0.0), full_matrices=False)
    return torch.where(finite, left, torch.nan), torch.where(finite[..., 0], singular, torch.nan), right


class _Polar(torch.autograd.Function):
    """Orthonormal polar factor, differentiable also where singular values coincide.

    With a = U Σ Vᵀ and Q = U Vᵀ the derivative solves a Sylvester equation whose denominators are
    σᵢ + σⱼ, never the differences σᵢ − σⱼ of the SVD's own derivative, which are 0 at every point of
    the manifold itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        left, singular, right = svd(a)
        return left @ right, left, singular, right

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, left, singular, right = output
        ctx.mark_non_differentiable(left, singular, right)
        ctx.save_for_backward(left, singular, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        left, singular, right = ctx.saved_tensors
        cotangent = grad @ right.mT
        inner = left.mT @ cotangent
        skew = (inner - inner.mT) / (singular.unsqueeze(-1) + singular.unsqueeze(-2))
        outside = (cotangent - left @ inner) / singular.unsqueeze(-2)
        return (left @ skew + outside) @ right


def polar(a: Tensor) -> Tensor:
    """Orthonormal matrix closest to `a`, (*batch, n, p) → (*batch, n, p), n ≥ p.

    Equivariant from the right: polar(a q) = polar(a) q for orthogonal q.
    """
    return _Polar.apply(a)[0]


def trigonometric(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos √A, sin √A / √A and (1 − cos √A) / A for symmetric A ≥ 0, each (*batch, k, k).

    The three solve c' = −A s, s' = c, k' = s with (1, 0, 0) at time 0, so one matrix exponential gives
    them, differentiable everywhere; through the SVD of the tangent the derivative is undefined at equal
    singular values, u = 0 among them. The blocks are balanced by c ≈ √‖A‖, which changes no result.
    """
    k = gram.shape[-1]
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device).expand_as(gram)
    zero = torch.zeros_like(gram)
    size = norm(gram.detach(), 2).sqrt()
    balance = torch.where(size > 0, size, 1.0)
    generator = torch.cat(
        [
            torch.cat([zero, -gram / balance, zero], -1),
            torch.cat([balance * identity, zero, zero], -1),
            torch.cat([zero, balance * identity, zero], -1),
        ],
        -2,
    )
    column = torch.linalg.matrix_exp(generator)[..., :k]
    cosine, sine, versed = column.split(k, dim=-2)
    return cosine, sine / balance, versed / balance.square()
